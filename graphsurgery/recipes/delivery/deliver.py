"""Deliver: a network as an ONNX file that was compared with PyTorch and timed before it is put in place."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import CheckFailedError, SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.exporting.checking import OnnxCheck, check_onnx
from graphsurgery.onnx.exporting.exporter import ExportReport, export_onnx
from graphsurgery.onnx.runtime.latency import Latency, measure_latency
from graphsurgery.recipes.outcome import Check, Outcome


@dataclass(frozen=True)
class Delivery:
    """What was written, how far it is from PyTorch, and how long a run takes, by the name of the network."""

    report: ExportReport
    check: OnnxCheck
    latency: Mapping[str, Latency]

    def recorded(self, outcome: Outcome) -> Outcome:
        """An outcome with the comparison as a check, and the latency of every row that was timed."""
        times = {name: found.median for name, found in self.latency.items()}
        rows = tuple(replace(row, latency=times.get(row.name, row.latency)) for row in outcome.rows)
        check = Check("ONNX Runtime = PyTorch", self.check.deviation, self.check.allowed)
        return replace(outcome, rows=rows, checks=(*outcome.checks, check))


def deliver(
    graph: ModelGraph,
    path: Path | str,
    *,
    name: str = "network",
    opset: int | None = None,
    inputs: Sequence[Tensor] | None = None,
    against: Mapping[str, ModelGraph] | None = None,
    rtol: float = 1e-4,
    accept: Callable[[Path], object] | None = None,
) -> Delivery:
    """Write `path` once the exported network agrees with PyTorch; see `check_onnx`.

    It is compared on random inputs in three batch sizes and of several scales, or on real ones where they are given.

    Args:
        graph: the network; it is not modified.
        path: the `.onnx` file.
        name: what the network is called in the latencies.
        opset: version of the operators; by default the exporter's choice.
        inputs: real inputs, each `[batch, ...]`.
        against: other networks, timed in turn with this one for one example on one thread; they are not kept.
        rtol: largest deviation allowed, relative to what each output varies by.
        accept: given the file that becomes `path`, where that is proved; what it raises leaves `path` as it is.

    Raises:
        SurgeryError: the network cannot be exported or the file not written.
        CheckFailedError: ONNX Runtime computes something else; the first node that differs is named. The old file, if
            any, is untouched then.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        try:
            report = export_onnx(graph, file, opset=opset)
        except SurgeryError as cause:
            raise type(cause)(str(cause).replace(str(file), str(path))) from cause
        check = check_onnx(graph, file, inputs=inputs, rtol=rtol, raise_on_failure=False)
        if not check.holds:
            raise CheckFailedError(f"{path}: not written: {check.failure}{check.advice}")
        files = {name: file}
        for number, (other, network) in enumerate((against or {}).items()):
            files[other] = Path(folder) / f"{number}.onnx"
            export_onnx(network, files[other], opset=opset)
        latency = measure_latency(files)
        if accept is not None:
            accept(file)
        with atomic_write(path) as temporary:
            temporary.write_bytes(file.read_bytes())
    return Delivery(replace(report, path=path), replace(check, path=path), latency)
