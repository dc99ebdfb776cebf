"""From mask to structure: what a masked network becomes without its dead channels, measured."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.exporting.exporter import export_onnx
from graphsurgery.onnx.runtime.latency import measure_latency
from graphsurgery.passes.prune_dead import prune_dead
from graphsurgery.recipes.outcome import Check
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import changed_by
from graphsurgery.surgery.masks.mask_set import MaskSet

ALLOWED = {torch.float64: 1e-10, torch.float32: 1e-5}
"""The largest relative change of the outputs, by the precision into which the folded constants are rounded."""


@dataclass(frozen=True)
class Measured:
    """One network as it is: masked or compressed.

    Attributes:
        parameters, macs: its size, and multiply-adds per example.
        living: how many of its weights are not 0.
        weights: how many weights could be.
        onnx_bytes: size of its ONNX file.
        latency: median milliseconds in ONNX Runtime for one example on one thread.
    """

    parameters: int
    macs: int
    living: int
    weights: int
    onnx_bytes: int
    latency: float


@dataclass(frozen=True)
class DeadReport:
    """What masking alone costs, and what compressing makes of it."""

    masked: Measured
    compressed: Measured
    check: Check

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form."""
        return asdict(self)


def without_dead(graph: ModelGraph) -> tuple[ModelGraph, DeadReport]:
    """The network without its dead channels, and both measured; see `prune_dead`.

    Raises:
        SurgeryError: the network has gates, or cannot be exported.
    """
    small = prune_dead(graph)
    dtype = next((p.dtype for p in graph.module.parameters() if p.is_floating_point()), torch.float32)
    check = Check("compressed = masked", changed_by(graph, small), ALLOWED.get(dtype, 1e-2))
    networks = {"masked": graph, "compressed": small}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in networks}
        sizes = {name: export_onnx(networks[name], file).bytes for name, file in files.items()}
        times = measure_latency(files)
    found = {name: _measured(network, sizes[name], times[name].median) for name, network in networks.items()}
    return small, DeadReport(found["masked"], found["compressed"], check)


def _measured(graph: ModelGraph, size: int, latency: float) -> Measured:
    masks, counted = MaskSet.nonzero(graph), cost(graph)
    return Measured(counted.parameters, counted.macs, masks.kept, masks.total, size, latency)
