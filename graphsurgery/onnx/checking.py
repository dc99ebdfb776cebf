"""Whether an `.onnx` file computes what the network computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from graphsurgery.errors import CheckFailedError, SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.verify import deviation, tensors_of

_ERRORS_ONLY = 3


@dataclass(frozen=True)
class OnnxCheck:
    """What a comparison found.

    Attributes:
        path: the file.
        deviations: `max |ONNX - PyTorch| / max |PyTorch|` in float32, by what was fed ("batch 3", "given inputs").
        allowed: the largest deviation that passes.
        agreement: share of the examples whose largest output is the same, of all outputs `[batch, classes]`; None when
            there is no such output.
    """

    path: Path
    deviations: Mapping[str, float]
    allowed: float
    agreement: float | None

    @property
    def deviation(self) -> float:
        """The largest of the deviations."""
        return max(self.deviations.values(), default=0.0)

    @property
    def holds(self) -> bool:
        """Whether all deviations are within what is allowed."""
        return self.deviation <= self.allowed


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
    network = ModelGraph(copy.deepcopy(graph.module).cpu().float().eval(), graph.inputs)
    session = open_session(path, threads=torch.get_num_threads())
    feeds = {f"batch {size}": network.example_inputs(size, seed=size) for size in batches}
    if inputs is not None:
        feeds["given inputs"] = tuple(x.cpu().float() if x.is_floating_point() else x.cpu() for x in inputs)
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(graph.inputs):
        raise SurgeryError(f"{path}: takes {len(names)} inputs, the network takes {len(graph.inputs)}; export it again")
    deviations: dict[str, float] = {}
    same: list[Tensor] = []
    for label, tensors in feeds.items():
        with torch.no_grad():
            expected = tensors_of(network.module(*tensors))
        found = _run(session, dict(zip(names, tensors, strict=True)), f"{path}: {label}")
        try:
            deviations[label] = deviation(found, expected)
        except SurgeryError as cause:
            raise CheckFailedError(f"{path}: {label}: {cause}") from cause
        same += [(a.argmax(1) == b.argmax(1)) for a, b in zip(found, expected, strict=True) if b.dim() == 2]
    check = OnnxCheck(Path(path), deviations, rtol, float(torch.cat(same).double().mean()) if same else None)
    if raise_on_failure and not check.holds:
        label = max(deviations, key=lambda key: deviations[key])
        raise CheckFailedError(
            f"{path}: {label}: ONNX Runtime deviates by {check.deviation:.1e} of the largest output, "
            f"allowed is {rtol:.1e}; export the network again or raise rtol"
        )
    return check


def open_session(path: Path | str, *, threads: int) -> onnxruntime.InferenceSession:
    """A file ready to run on the CPU.

    Args:
        path: the file.
        threads: how many threads one operator may use.

    Raises:
        SurgeryError: ONNX Runtime does not read it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # ONNX Runtime's errors have no public base class
        raise SurgeryError(f"{path}: ONNX Runtime cannot open it: {one_line(cause)}") from cause


def _run(session: onnxruntime.InferenceSession, feed: Mapping[str, Tensor], where: str) -> list[Tensor]:
    try:
        outputs: list[Any] = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
    except Exception as cause:  # ONNX Runtime's errors have no public base class
        raise SurgeryError(f"{where}: ONNX Runtime cannot run it: {one_line(cause)}") from cause
    return [torch.from_numpy(output) for output in outputs]
