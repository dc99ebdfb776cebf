"""Doctor: what can be done with a network, by applying every pass to it and measuring every contract."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from graphsurgery.axes.algebra import is_fixed
from graphsurgery.errors import CheckFailedError
from graphsurgery.graph import ModelGraph
from graphsurgery.recipes.contracts.bench import settle
from graphsurgery.recipes.contracts.contract import TOLERANCES, Contract, NothingToCompareError
from graphsurgery.recipes.contracts.held import UNUSED, held_parameters
from graphsurgery.recipes.contracts.pass_contracts import PassContracts, kept_at_half
from graphsurgery.recipes.contracts.trace_contracts import TraceContracts
from graphsurgery.surgery.channels.cost import cost

LARGE = 30_000_000


@dataclass(frozen=True)
class DoctorReport:
    """What was found out about a network.

    Attributes:
        nodes: of the traced graph.
        spaces: how many sets of channels can change.
        frozen: nodes around which axes may not change, each with the reason.
        parameters: of the module, or of the graph where there is no module; tied ones once.
        macs: multiply-accumulates per image.
        editable: share of the parameters that have an axis which can change.
        held: the other parameters: what holds them, and how many that are.
        kept: share of the parameters that stays when half of every space is kept; None if nothing can be removed.
        sensitivity: by what share of itself the least sensitive output of what the passes were measured on changes
            when the inputs are others; where it is close to 0, equal outputs say little. None if nothing was measured.
        contracts: what was measured.
        seconds: wall-clock time of everything.
    """

    nodes: int
    spaces: int
    frozen: tuple[tuple[str, str], ...]
    parameters: int
    macs: int
    editable: float
    held: tuple[tuple[str, int], ...]
    kept: float | None
    sensitivity: float | None
    contracts: tuple[Contract, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether no contract fails; refused ones do not count."""
        return all(contract.status != "fails" for contract in self.contracts)

    @property
    def insensitive(self) -> bool:
        """Whether the outputs hardly depend on the inputs, so that equal ones say little."""
        return self.sensitivity is not None and self.sensitivity < 1e-3

    def require(self, name: str) -> None:
        """Refuse to say that all is well with a network where a contract fails.

        Raises:
            CheckFailedError: it names those that fail.
        """
        failing = [contract.name for contract in self.contracts if contract.status == "fails"]
        if failing:
            found = f"{len(failing)} of {len(self.contracts)} contracts fail: {', '.join(failing)}"
            raise CheckFailedError(f"{name}: {found}")

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form; a deviation that is not finite is None."""
        contracts = []
        for contract in self.contracts:
            fields = {**asdict(contract), "status": contract.status}
            if contract.measured is not None and not math.isfinite(contract.measured):
                fields["measured"] = None
            contracts.append(fields)
        pairs = {"frozen": [list(pair) for pair in self.frozen], "held": [list(pair) for pair in self.held]}
        return {**asdict(self), **pairs, "contracts": contracts}


def examine(
    graph: ModelGraph,
    reference: nn.Module | None = None,
    *,
    seed: int = 0,
    onnx: bool = True,
    slim: bool = False,
    only: Collection[str] = (),
) -> DoctorReport:
    """Apply every pass to a network and measure every contract.

    Networks above `LARGE` parameters are compared with their trace in float32, and the passes are measured on a narrow
    cut. Only that comparison needs the values: give the graph of a very large network as traced from its `skeleton`.

    Args:
        graph: the network, with values or with its parameters on meta; it is not modified.
        reference: the module that was traced, to compare the trace with; it is not modified.
        seed: draws norms, inputs, the second network and what is cut.
        onnx: also compare with ONNX Runtime.
        slim: also run it as a slimmable network, at several widths.
        only: names of contracts (keys of `TOLERANCES`); the others are left out, and those of `slim` need no asking.

    Returns:
        The report. A pass that refuses the network and an error in a pass are in it, not raised.
    """
    began = time.perf_counter()
    size = cost(graph)
    contracts: list[Contract] = []
    traced, dtype = None, torch.float64
    wanted = _wanted(onnx, slim, only)
    if reference is not None and any(name.startswith("traced") for name in wanted):
        compared = TraceContracts(reference, graph.inputs, large=size.parameters > LARGE, seed=seed)
        contracts += compared.contracts
        dtype = compared.dtype
        traced = compared.traced if size.parameters <= LARGE else None
        del compared
    passes, sensitivity = _passes(graph, size.parameters, seed, traced, dtype, wanted)
    contracts += passes
    held = held_parameters(graph)
    parameters = size.parameters if reference is None else sum(p.numel() for p in reference.parameters())
    if parameters > size.parameters:
        held[UNUSED] = held.get(UNUSED, 0) + parameters - size.parameters
    return DoctorReport(
        nodes=len(graph.module.graph.nodes),
        spaces=len(graph.spaces),
        frozen=tuple((frozen.node, frozen.reason) for frozen in graph.frozen),
        parameters=parameters,
        macs=size.macs,
        editable=_editable(graph) / max(1, parameters),
        held=tuple(held.items()),
        kept=kept_at_half(graph, seed),
        sensitivity=sensitivity,
        contracts=tuple(contracts),
        seconds=time.perf_counter() - began,
    )


def _wanted(onnx: bool, slim: bool, only: Collection[str]) -> list[str]:
    """The names of the contracts that are to be measured."""
    left_out = [begin for begin, asked in (("ONNX", onnx), ("slim", slim or only)) if not asked]
    return [name for name in only or TOLERANCES if not name.startswith(tuple(left_out))]


def _passes(
    graph: ModelGraph,
    parameters: int,
    seed: int,
    traced: ModelGraph | None,
    dtype: torch.dtype,
    wanted: Collection[str],
) -> tuple[list[Contract], float | None]:
    """The contracts of the passes, where memory allows them to be measured, and the sensitivity of what they are of."""
    try:
        subject = settle(graph, seed, parameters / LARGE, traced, dtype)
    except NothingToCompareError as cause:
        names = [name for name in wanted if not name.startswith("traced") and "mixed" not in name]
        return [Contract(name, None, TOLERANCES[name], 0.0, absent=str(cause)) for name in names], None
    del traced
    return PassContracts(subject, seed).all(wanted), subject.sensitivity(seed)


def _editable(graph: ModelGraph) -> int:
    """Number of parameters with an axis that can change, tied ones once."""
    own = {id(p) for p in graph.module.parameters()}
    tensors = graph.tensors()
    total = 0
    for name, typed in graph.types.parameters.items():
        tensor = tensors[name]
        if id(tensor) in own and not all(is_fixed(axis) for axis in typed.axes):
            total += tensor.numel()
    return total
