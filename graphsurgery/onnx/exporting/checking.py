"""Whether an `.onnx` file computes what the network computes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor

from graphsurgery.errors import CheckFailedError, SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.naming import tensors_of
from graphsurgery.onnx.exporting.judging import (
    BLURRED,
    CONSTANT,
    EFFORTS,
    NOT_FINITE,
    FedOutput,
    Judgement,
    judge,
    worst_example,
)
from graphsurgery.onnx.exporting.locating import Difference, first_difference
from graphsurgery.onnx.exporting.probing import GIVEN, Feed, feeds
from graphsurgery.onnx.files.storage import open_model
from graphsurgery.onnx.runtime.sessions import open_session, run_session
from graphsurgery.progress import phase
from graphsurgery.surgery.deviation import InDouble, beginning_of_nan, shapes_text

_OPTIONS = frozenset({"Resize", "Upsample", "Range", "Pad", "Clip", "Dropout"})
"""Operators whose later inputs are no weights: a size that moves a little is another one."""
_BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softmax"})
_MOVES = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Concat", "Flatten"})
_BOUNDED_ERROR = 2.0**-23
_MOST = 0.1
"""No advice to allow more than this share of what an output varies by."""
_NUDGE = 2.0**-18
"""Relative change of inputs and weights that stands for the rounding of some operators."""
_DRAWS = 2
"""How often the weights are moved."""
LARGE = 2**26
"""Bytes of weights from which a file is not opened in a second form, nor moved, in order to measure rounding."""


@dataclass(frozen=True)
class OnnxCheck:
    """What a comparison found.

    Attributes:
        path: the file.
        deviations: in float32, by what was fed ("batch 3", "noise from 0 to 1", "given inputs"): the largest difference
            between ONNX Runtime and PyTorch, each output measured by what it varies by from example to example.
        allowed: the largest deviation that passes.
        agreement: share of the examples whose largest output is the same, of all outputs `[batch, classes]`; None when
            there is no such output.
        first: where the check does not hold, the first node that computes something else; None where every value of
            the file agrees, taken by itself.
        unlocated: why that node could not be looked for; empty where it was.
        outputs: the largest deviation of each output, by its name.
        untested: outputs that nothing was fed for which they say anything, with the reason.
        broken: where the network itself gives what is not a number, on which inputs and from which node on.
    """

    path: Path
    deviations: Mapping[str, float]
    allowed: float
    agreement: float | None
    first: Difference | None = None
    unlocated: str = ""
    outputs: Mapping[str, float] = field(default_factory=dict)
    untested: Mapping[str, str] = field(default_factory=dict)
    broken: str = ""

    @property
    def deviation(self) -> float:
        """The largest of the deviations."""
        return max(self.deviations.values(), default=0.0)

    @property
    def holds(self) -> bool:
        """Whether all deviations are within what is allowed, and there was something to compare."""
        return self.deviation <= self.allowed and not self.broken

    @property
    def failure(self) -> str:
        """What does not hold, in words."""
        if self.broken:
            return f"{self.broken}, so nothing can be compared"
        if self.first is not None:
            where = f"the first node that differs is {self.first}"
        elif self.unlocated:
            where = f"the node could not be looked for: {self.unlocated}"
        else:
            where = "every value by itself agrees, so what ONNX Runtime fuses differs"
        label = max(self.deviations, key=lambda key: self.deviations[key])
        output = max(self.outputs, key=lambda key: self.outputs[key], default="")
        return (
            f"ONNX Runtime deviates by {self.deviation:.1e} of what output {output} varies by on {label}, "
            f"allowed is {self.allowed:.1e}; {where}"
        )

    @property
    def advice(self) -> str:
        """What lets the file pass, where a person knows better; empty where nothing does."""
        if self.broken or not self.deviation <= _MOST:
            return ""
        return f"; if that much is right, allow it: --rtol {_rounded_up(self.deviation)}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was not tested, in words, a line for each reason."""
        found: dict[str, list[str]] = {}
        for name, reason in self.untested.items():
            found.setdefault(reason, []).append(name)
        return tuple(
            f"not tested: {'output' if len(names) == 1 else 'outputs'} {', '.join(names)}, {reason}"
            for reason, names in found.items()
        )

    def as_dict(self) -> dict[str, object]:
        """What `--json` and a checkpoint hold of it."""
        return {
            "deviations": dict(self.deviations),
            "allowed": self.allowed,
            "agreement": self.agreement,
            "outputs": dict(self.outputs),
            "untested": dict(self.untested),
        }


@phase("comparing with ONNX Runtime")
def check_onnx(
    graph: ModelGraph,
    path: Path | str,
    *,
    batches: Sequence[int] = (1, 3, 8),
    rtol: float = 1e-4,
    inputs: Sequence[Tensor] | None = None,
    values: Mapping[str, str] | None = None,
    raise_on_failure: bool = True,
) -> OnnxCheck:
    """Compare a file in ONNX Runtime with a float32 copy of the network in evaluation mode, on the CPU.

    Every output is judged by itself, by what it varies by from example to example; where rounding alone explains a
    difference, it passes. Rounding is measured where it matters: ONNX Runtime without its optimisations, the network
    in float64, inputs and weights moved by 4e-6. Without real inputs, noise of several scales is fed.

    Where they do not agree, `first_difference` finds the node; that takes an export and a run of every value.

    Args:
        graph: the network; it is not modified.
        path: what `export_onnx` wrote.
        batches: sizes of the batches of random inputs.
        rtol: largest deviation allowed, relative to what an output varies by; 0 asks for equal numbers.
        inputs: real inputs, each `[batch, ...]`, compared too.
        values: the node of the network that computes a value of the file, by the value's name; by default those of an
            export.
        raise_on_failure: False returns a check that does not hold.

    Raises:
        CheckFailedError: a deviation is larger than `rtol`, the outputs differ in number or shape, or the network
            gives what is not a number.
        SurgeryError: ONNX Runtime does not read or run the file, or the network takes other inputs.
    """
    if not (math.isfinite(rtol) and rtol >= 0):
        raise SurgeryError(f"{path}: rtol is {rtol}, expected a number that is not negative, such as 1e-4")
    network = _in_float(graph)
    runtime = _Runtime(path, network)
    fed = feeds(network, batches, inputs)
    runs = [_Compared(runtime, network, feed) for feed in fed]
    deviations = dict.fromkeys((feed.label for feed in fed), 0.0)
    outputs: dict[str, float] = {}
    untested: dict[str, str] = {}
    for number, name in enumerate(runtime.outputs):
        judgements = _judged(runs, number, rtol)
        for judgement in judgements:
            for label, value in judgement.deviations.items():
                deviations[label] = max(deviations[label], value)
                outputs[name] = max(outputs.get(name, 0.0), value)
        reasons = {judgement.untested for judgement in judgements}
        if "" not in reasons:
            untested[name] = next(reason for reason in (BLURRED, CONSTANT, NOT_FINITE) if reason in reasons)
    agreement = _agreement(runs)
    check = OnnxCheck(Path(path), deviations, rtol, agreement, outputs=outputs, untested=untested)
    if not check.holds or NOT_FINITE in untested.values():
        check = _explained(check, runs, network, values)
    if raise_on_failure and not check.holds:
        raise CheckFailedError(f"{path}: {check.failure}{check.advice}")
    return check


def _in_float(graph: ModelGraph) -> ModelGraph:
    """A float32 network in evaluation mode on the CPU; what is so already is shared."""
    tensors = (*graph.module.parameters(), *graph.module.buffers())
    alike = {id(t): t for t in tensors if t.device.type == "cpu" and t.dtype == torch.float32}  # need no copy
    return ModelGraph(copy.deepcopy(graph.module, alike).cpu().float().eval(), graph.inputs)


class _Runtime:
    """A file in ONNX Runtime, and the same without optimisations where rounding is asked for."""

    def __init__(self, path: Path | str, network: ModelGraph) -> None:
        self.path = path
        makers = _makers(Path(path))  # before the session has the weights in memory
        self.session = open_session(path, threads=torch.get_num_threads())
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        if len(self.inputs) != len(network.inputs):
            raise SurgeryError(
                f"{path}: takes {len(self.inputs)} inputs, the network takes {len(network.inputs)}; export it again"
            )
        self._plain: onnxruntime.InferenceSession | None = None
        weights = sum(t.numel() * t.element_size() for t in network.tensors().values())
        self.is_large = weights > LARGE
        self.resolved = [_BOUNDED_ERROR if _is_bounded(name, makers) else 0.0 for name in self.outputs]
        """Below what the values of each output say nothing: ONNX Runtime approximates bounded functions to 1e-7."""

    @cached_property
    def nudged(self) -> list[onnxruntime.InferenceSession]:
        """The file with its weights moved by what rounding moves values by; none of a very large one."""
        if self.is_large:
            return []
        model = onnx.load(self.path)
        generator = np.random.default_rng(0)
        found = []
        for _ in range(_DRAWS):
            moved = onnx.ModelProto()
            moved.CopyFrom(model)
            options = {name for node in moved.graph.node if node.op_type in _OPTIONS for name in node.input[1:]}
            for tensor in moved.graph.initializer:
                if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in options:
                    array = numpy_helper.to_array(tensor)
                    factors = 1 + _NUDGE * generator.uniform(-1, 1, array.shape)
                    tensor.CopyFrom(numpy_helper.from_array((array * factors).astype(np.float32), tensor.name))
            content = moved.SerializeToString()
            found.append(open_session(self.path, threads=torch.get_num_threads(), content=content))
        return found

    def run(self, tensors: Sequence[Tensor], label: str, *, optimised: bool = True) -> list[Tensor]:
        """The outputs for these inputs."""
        if not optimised and self._plain is None:
            self._plain = open_session(self.path, threads=torch.get_num_threads(), optimised=False)
        session = self.session if optimised or self._plain is None else self._plain
        return run_session(session, dict(zip(self.inputs, tensors, strict=True)), f"{self.path}: {label}")


class _Compared:
    """The outputs of a file and of a network on one feed."""

    def __init__(self, runtime: _Runtime, network: ModelGraph, feed: Feed) -> None:
        self.runtime, self.network, self.feed = runtime, network, feed
        with torch.no_grad():
            self.expected = tensors_of(network.module(*feed.tensors), numbers=False)
        self.found = runtime.run(feed.tensors, feed.label)
        if [t.shape for t in self.found] != [t.shape for t in self.expected]:
            raise CheckFailedError(
                f"{runtime.path}: {feed.label}: outputs have shapes {shapes_text(self.found)} and "
                f"{shapes_text(self.expected)}; only equal shapes can be compared"
            )
        pairs = zip(self.found, runtime.resolved, strict=True)
        self._moved = [torch.full(t.shape, least, dtype=torch.float64) for t, least in pairs]
        self._efforts = 0

    def run(self, number: int) -> FedOutput:
        """One of the outputs."""
        size = len(self.feed.tensors[0])
        found, expected = self.found[number], self.expected[number]
        return FedOutput(self.feed.label, found, expected, size, lambda effort: self.rounding(effort)[number])

    def rounding(self, effort: int) -> list[Tensor]:
        """How far the values of each output move when only the rounding differs, after at least so many efforts."""
        while self._efforts < effort:
            self._efforts += 1
            for left, right in self._rounded(self._efforts):
                for at, (a, b) in enumerate(zip(left, right, strict=True)):
                    if a.shape == b.shape:
                        moved = (a.double() - b.double()).abs().nan_to_num(nan=0.0, posinf=0.0)
                        self._moved[at] = torch.maximum(self._moved[at], moved)
        return self._moved

    def _rounded(self, effort: int) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """What is given, and with other roundings: of inputs, then of operators, of weights, of the network."""
        runtime, feed = self.runtime, self.feed
        if effort == 1:
            generator = torch.Generator().manual_seed(0)
            given = zip(feed.tensors, self.network.inputs, strict=True)
            nudged = [_nudged(x, generator) if spec.is_noise else x for x, spec in given]
            yield self.found, runtime.run(nudged, feed.label)
        elif effort == 2 and not runtime.is_large:
            yield self.found, runtime.run(feed.tensors, feed.label, optimised=False)
        elif effort == 3:
            feed_by_name = dict(zip(runtime.inputs, feed.tensors, strict=True))
            for session in runtime.nudged:
                yield self.found, run_session(session, feed_by_name, f"{runtime.path}: {feed.label}")
        elif effort == EFFORTS:
            with torch.no_grad(), suppress(Exception):  # an operator that there is in float32 alone
                yield self.expected, tensors_of(InDouble(self.network)(*feed.tensors), numbers=False)


def _makers(path: Path) -> dict[str, onnx.NodeProto]:
    """The operator that gives each value of a file, whose weights are not read; ONNX Runtime says what is wrong."""
    try:
        model, _ = open_model(path)
    except (OSError, ValueError):
        return {}
    return {name: node for node in model.graph.node for name in node.output}


def _is_bounded(name: str, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a value is one of a bounded function, or what was moved of one."""
    node = makers.get(name)
    if node is None or not node.input:
        return False
    return node.op_type in _BOUNDED or (node.op_type in _MOVES and _is_bounded(node.input[0], makers))


def _nudged(x: Tensor, generator: torch.Generator) -> Tensor:
    return x * (1 + _NUDGE * (2 * torch.rand(x.shape, generator=generator) - 1))


def _judged(runs: Sequence[_Compared], number: int, rtol: float) -> list[Judgement]:
    """What is found of one output, by groups of feeds. A single real example is judged beside the noise."""
    groups: dict[str, list[FedOutput]] = {}
    for compared in runs:
        groups.setdefault(compared.feed.group, []).append(compared.run(number))
    alone = groups.get(GIVEN, [])
    if len(groups) > 1 and sum(run.batch for run in alone) == 1:
        del groups[GIVEN]
        next(iter(groups.values())).extend(alone)
    return [judge(group, rtol) for group in groups.values()]


def _agreement(runs: Sequence[_Compared]) -> float | None:
    same = [
        a.argmax(1) == b.argmax(1)
        for compared in runs
        for a, b in zip(compared.found, compared.expected, strict=True)
        if b.dim() == 2 and b.numel() and b.is_floating_point()
    ]
    return float(torch.cat(same).double().mean()) if same else None


def _explained(
    check: OnnxCheck, runs: Sequence[_Compared], network: ModelGraph, values: Mapping[str, str] | None
) -> OnnxCheck:
    """A check that does not hold, with the node at which it begins."""
    worst = max(check.deviations, key=lambda key: check.deviations[key])
    fails = not check.deviation <= check.allowed
    compared = next(run for run in runs if run.feed.label == worst or not fails)
    if any(not bool(t.isfinite().all()) for t in compared.expected):
        beginning = beginning_of_nan(network, compared.feed.tensors)
        if beginning:
            return _with(check, broken=f"the network itself gives {beginning} on {compared.feed.label}")
    if check.holds:
        return check
    tensors = compared.feed.tensors
    if compared.feed.label == GIVEN:  # all values of many examples take much memory
        worst_one = worst_example(compared.found, compared.expected, len(tensors[0]))
        tensors = tuple(x[worst_one : worst_one + 1] for x in tensors)
    try:
        return _with(check, first=first_difference(network, check.path, tensors, rtol=check.allowed, values=values))
    except Exception as cause:  # whatever the exporter raises must not hide that the check fails
        return _with(check, unlocated=one_line(cause))


def _with(check: OnnxCheck, **fields: object) -> OnnxCheck:

    return replace(check, **fields)  # type: ignore[arg-type]


def _rounded_up(value: float) -> str:
    """A number of two digits that is not below this one, as it is typed."""
    exponent = math.floor(math.log10(value)) - 1
    return f"{math.ceil(value / 10**exponent * (1 + 1e-9)) * 10**exponent:.1e}"
