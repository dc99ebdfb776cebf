"""Doctor: what can be done with a network, by applying every pass to it and measuring every contract."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from graphsurgery.axes import resolve
from graphsurgery.cost import cost
from graphsurgery.graph import ModelGraph
from graphsurgery.recipes.contracts import Contract, Patient


@dataclass(frozen=True)
class DoctorReport:
    """What was found out about a network.

    Attributes:
        nodes: of the traced graph.
        spaces: how many sets of channels can change.
        frozen: nodes around which axes may not change, each with the reason.
        parameters, macs: size; multiply-accumulates per image.
        editable: share of the parameters that have an axis which can change.
        kept: share of the parameters that stays when half of every space is kept; None if nothing can be removed.
        contracts: what was measured.
        seconds: wall-clock time of everything.
    """

    nodes: int
    spaces: int
    frozen: tuple[tuple[str, str], ...]
    parameters: int
    macs: int
    editable: float
    kept: float | None
    contracts: tuple[Contract, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether no contract fails; refused ones do not count."""
        return all(contract.status != "fails" for contract in self.contracts)

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form; a deviation that is not finite is None."""
        contracts = []
        for contract in self.contracts:
            fields = {**asdict(contract), "status": contract.status}
            if contract.measured is not None and not math.isfinite(contract.measured):
                fields["measured"] = None
            contracts.append(fields)
        return {**asdict(self), "frozen": [list(pair) for pair in self.frozen], "contracts": contracts}


def examine(graph: ModelGraph, reference: nn.Module | None = None, *, seed: int = 0, onnx: bool = True) -> DoctorReport:
    """Apply every pass to a network and measure every contract.

    Args:
        graph: the network; it is not modified.
        reference: the module that was traced, to compare the trace with; it is not modified.
        seed: draws norms, inputs, the second network and what is cut.
        onnx: also compare with ONNX Runtime.

    Returns:
        The report. A pass that refuses the network and an error in a pass are in it, not raised.
    """
    began = time.perf_counter()
    size = cost(graph)
    patient = Patient(graph, reference, size.parameters, seed)
    contracts = list(patient.compare_trace())
    patient.settle()
    contracts += [patient.concatenation(), patient.open_gates(), *patient.hard_gates(), patient.folded()]
    contracts += [patient.stored(), patient.compressed()]
    if onnx:
        contracts.append(patient.exported())
    return DoctorReport(
        nodes=len(graph.module.graph.nodes),
        spaces=len(graph.spaces),
        frozen=tuple((frozen.node, frozen.reason) for frozen in graph.frozen),
        parameters=size.parameters,
        macs=size.macs,
        editable=_editable(graph) / max(1, size.parameters),
        kept=patient.kept,
        contracts=tuple(contracts),
        seconds=time.perf_counter() - began,
    )


def _editable(graph: ModelGraph) -> int:
    """Number of parameters with an axis that can change, tied ones once."""
    own = {id(p) for p in graph.module.parameters()}
    tensors = graph.tensors()
    total = 0
    for name, typed in graph.types.parameters.items():
        tensor = tensors[name]
        free = any(not dim.fixed for axis in typed.axes for term in resolve(axis) for dim in term)
        if free and id(tensor) in own:
            total += tensor.numel()
    return total
