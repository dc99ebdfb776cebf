"""Whether an `.onnx` file computes what the network computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from graphsurgery.errors import CheckFailedError, SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.locating import Difference, first_difference
from graphsurgery.onnx.sessions import open_session, run_session
from graphsurgery.verify import deviation, tensors_of

_GIVEN = "given inputs"


@dataclass(frozen=True)
class OnnxCheck:
    """What a comparison found.

    Attributes:
        path: the file.
        deviations: `max |ONNX - PyTorch| / max |PyTorch|` in float32, by what was fed ("batch 3", "given inputs").
        allowed: the largest deviation that passes.
        agreement: share of the examples whose largest output is the same, of all outputs `[batch, classes]`; None when
            there is no such output.
        first: where the check does not hold, the first node that computes something else; None where every value of
            the file agrees, taken by itself.
        unlocated: why that node could not be looked for; empty where it was.
    """

    path: Path
    deviations: Mapping[str, float]
    allowed: float
    agreement: float | None
    first: Difference | None = None
    unlocated: str = ""

    @property
    def deviation(self) -> float:
        """The largest of the deviations."""
        return max(self.deviations.values(), default=0.0)

    @property
    def holds(self) -> bool:
        """Whether all deviations are within what is allowed."""
        return self.deviation <= self.allowed

    @property
    def failure(self) -> str:
        """What does not hold, in words."""
        if self.first is not None:
            where = f"the first node that differs is {self.first}"
        elif self.unlocated:
            where = f"the node could not be looked for: {self.unlocated}"
        else:
            where = "every value by itself agrees, so what ONNX Runtime fuses differs"
        label = max(self.deviations, key=lambda key: self.deviations[key])
        return (
            f"ONNX Runtime deviates by {self.deviation:.1e} of the largest output on {label}, "
            f"allowed is {self.allowed:.1e}; {where}"
        )


def check_onnx(
    graph: ModelGraph,
    path: Path | str,
    *,
    batches: Sequence[int] = (1, 3, 8),
    rtol: float = 1e-4,
    inputs: Sequence[Tensor] | None = None,
    raise_on_failure: bool = True,
) -> OnnxCheck:
    """Compare a file in ONNX Runtime with a float32 copy of the network in evaluation mode, on the CPU.

    Where they do not agree, `first_difference` finds the node; that takes an export and a run of every value.

    Args:
        graph: the network; it is not modified.
        path: what `export_onnx` wrote.
        batches: sizes of the batches of random inputs.
        rtol: largest deviation allowed, relative to the largest output.
        inputs: real inputs, each `[batch, ...]`, compared too.
        raise_on_failure: False returns a check that does not hold.

    Raises:
        CheckFailedError: the deviation is larger than `rtol`, or the outputs differ in number or shape.
        SurgeryError: ONNX Runtime does not read or run the file, or the network takes other inputs.
    """
    tensors = (*graph.module.parameters(), *graph.module.buffers())
    alike = {id(t): t for t in tensors if t.device.type == "cpu" and t.dtype == torch.float32}  # need no copy
    network = ModelGraph(copy.deepcopy(graph.module, alike).cpu().float().eval(), graph.inputs)
    session = open_session(path, threads=torch.get_num_threads())
    feeds = {f"batch {size}": network.example_inputs(size, seed=size) for size in batches}
    if inputs is not None:
        feeds[_GIVEN] = tuple(x.cpu().float() if x.is_floating_point() else x.cpu() for x in inputs)
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(graph.inputs):
        raise SurgeryError(f"{path}: takes {len(names)} inputs, the network takes {len(graph.inputs)}; export it again")
    deviations: dict[str, float] = {}
    same: list[Tensor] = []
    failing: tuple[Tensor, ...] | None = None
    for label, tensors in feeds.items():
        with torch.no_grad():
            expected = tensors_of(network.module(*tensors))
        found = run_session(session, dict(zip(names, tensors, strict=True)), f"{path}: {label}")
        try:
            deviations[label] = deviation(found, expected)
        except SurgeryError as cause:
            raise CheckFailedError(f"{path}: {label}: {cause}") from cause
        if failing is None and not deviations[label] <= rtol:
            failing = _worst_example(tensors, found, expected) if label == _GIVEN else tensors
        same += [(a.argmax(1) == b.argmax(1)) for a, b in zip(found, expected, strict=True) if b.dim() == 2]
    agreement = float(torch.cat(same).double().mean()) if same else None
    first, unlocated = None, ""
    if failing is not None:
        try:
            first = first_difference(network, path, failing, rtol=rtol)
        except Exception as cause:  # whatever the exporter raises must not hide that the check fails
            unlocated = one_line(cause)
    check = OnnxCheck(Path(path), deviations, rtol, agreement, first, unlocated)
    if raise_on_failure and not check.holds:
        raise CheckFailedError(f"{path}: {check.failure}; export the network again or raise rtol")
    return check


def _worst_example(
    tensors: Sequence[Tensor], found: Sequence[Tensor], expected: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The inputs of the example whose outputs lie furthest apart: all values of many examples take much memory."""
    size = len(tensors[0])
    apart = torch.zeros(size, dtype=torch.float64)
    for a, b in zip(found, expected, strict=True):
        if a.dim() and len(a) == size:
            difference = (a.double() - b.double()).abs().nan_to_num(nan=float("inf"))
            apart = torch.maximum(apart, difference.reshape(size, -1).amax(1))
    worst = int(apart.argmax())
    return tuple(x[worst : worst + 1] for x in tensors)
