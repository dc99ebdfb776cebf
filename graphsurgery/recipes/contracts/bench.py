"""What the passes are measured on, and how far a contract may be off there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.naming import run
from graphsurgery.recipes.contracts.contract import Contract, NothingToCompareError, measure
from graphsurgery.recipes.contracts.subjects import calibrate, draw_inputs, fill, has_values, narrow, randomize
from graphsurgery.surgery.deviation import apart, double

LARGEST = 4
FLOAT32 = 1e-4
IN_FLOAT32 = "in float32, because the module does not run in float64"
ILL_CONDITIONED = 1e-6
WELL_CONDITIONED = 1e-13


@dataclass(frozen=True)
class Subject:
    """What the passes are measured on: a network with values, its precision, and what a reader should know of it."""

    graph: ModelGraph
    dtype: torch.dtype = torch.float64
    note: str = ""

    def sensitivity(self, seed: int) -> float | None:
        """By what share of itself the least sensitive output changes when the inputs are others.

        Where it is close to 0, equal outputs say little about the layers in front of them. None for a network that does
        not run in this precision.
        """
        try:
            outputs = [
                run(self.graph.module.eval(), draw_inputs(self.graph.inputs, 2, seed + other, self.dtype), seed)
                for other in (0, 1)
            ]
        except Exception:  # whatever the network's own code raises; it shows in the contracts
            return None
        return apart(*outputs, over=min)


def settle(graph: ModelGraph, seed: int, size: float, traced: ModelGraph | None, dtype: torch.dtype) -> Subject:
    """What the passes are measured on: the network itself, or a narrow cut of a large one.

    Args:
        graph: the network, with or without values.
        seed: of the values.
        size: its parameters in proportion to what is not yet large.
        traced: of a network that is not large, the trace with random norms that was compared with the module.
        dtype: the precision of that comparison.

    Raises:
        NothingToCompareError: a network far too large cannot be cut, or the network has no values that could be drawn.
    """
    if traced is not None and dtype != torch.float64:
        return Subject(traced, dtype, IN_FLOAT32)
    if traced is not None and size <= 1:
        return Subject(double(traced))
    try:
        subject, note = (graph, "") if size <= 1 else _narrowed(graph, seed, size)
        if not has_values(subject.module):
            subject = subject.copy()
            fill(subject.module, seed)
        exact = double(subject)
    except SurgeryError as cause:
        raise NothingToCompareError(one_line(cause)) from cause
    found = _settled(exact, torch.float64, note, seed)
    if found.sensitivity(seed) is not None:
        return found
    single = replace(subject, module=copy.deepcopy(subject.module).cpu().float().eval())
    other = _settled(single, torch.float32, "; ".join(filter(None, (note, IN_FLOAT32))), seed)
    return found if other.sensitivity(seed) is None else other


def _settled(graph: ModelGraph, dtype: torch.dtype, note: str, seed: int) -> Subject:
    """A copy that was made for it, with random norms."""
    randomize(graph.module, seed)
    calibrate(graph.module, graph.inputs, dtype, seed)
    return Subject(graph, dtype, note)


def _narrowed(graph: ModelGraph, seed: int, size: float) -> tuple[ModelGraph, str]:
    share = math.sqrt(1 / (2 * size))
    try:
        return narrow(graph, share, seed), f"on a cut to {share:.0%} of every space"
    except Exception as cause:  # a mistake in the pass shows in its own contract
        if size > LARGEST:
            raise NothingToCompareError(
                f"the network is too large to be measured in float64, and a narrow cut is refused: {one_line(cause)}"
            ) from cause
        return graph, "in full width, because a narrow cut is refused"


class Bench:
    """One network and inputs for it.

    Args:
        subject: the network.
        seed: draws the inputs.
    """

    def __init__(self, subject: Subject, seed: int) -> None:
        self.subject, self.note, self.dtype, self.seed = subject.graph, subject.note, subject.dtype, seed
        self.x = draw_inputs(self.subject.inputs, 2, seed, self.dtype)
        self._roundings: float | None = None

    def outputs(self, graph: ModelGraph) -> dict[str, Tensor]:
        """What a network gives for the inputs."""
        return run(graph.module.eval(), self.x, self.seed)

    def contract(self, name: str, deviation: Callable[[], float]) -> Contract:
        """A contract that is measured; on a network that enlarges rounding more is allowed."""
        contract = measure(name, deviation)
        if self.dtype != torch.float64 and contract.allowed:
            contract = replace(contract, allowed=max(contract.allowed, FLOAT32))
        elif contract.status == "fails" and contract.allowed and contract.measured is not None:
            contract = self._within_rounding(contract)
        return replace(contract, note="; ".join(filter(None, (self.note, contract.note))))

    def _within_rounding(self, contract: Contract) -> Contract:
        """A contract of a network that itself enlarges the rounding of its input: then ten times as much is allowed.

        A saturated softmax does so. Above `ILL_CONDITIONED` nothing is excused: wrong results would hide there.
        """
        if self._roundings is None:
            generator = torch.Generator().manual_seed(self.seed)
            step = torch.finfo(torch.float64).eps
            x = [
                t * (1 + step * torch.randn(t.shape, generator=generator, dtype=t.dtype))
                if t.is_floating_point()
                else t
                for t in self.x
            ]
            self._roundings = apart(run(self.subject.module.eval(), x, self.seed), self.outputs(self.subject))
        enlarged = min(10 * self._roundings, ILL_CONDITIONED)
        if contract.allowed is None or enlarged <= contract.allowed or self._roundings < WELL_CONDITIONED:
            return contract
        note = f"rounding the input changes the outputs by {self._roundings:.0e}"
        return replace(contract, allowed=enlarged, note="; ".join(filter(None, (contract.note, note))))

    def rounding(self, network: ModelGraph) -> float:
        """How far a network's outputs in float32 lie from those in float64; 0 where only float32 can be had."""
        if self.dtype != torch.float64:
            return 0.0
        exact = self.outputs(network)
        single = copy.deepcopy(network.module).float().eval()
        x = [tensor.float() if tensor.is_floating_point() else tensor for tensor in self.x]
        return apart(run(single, x, self.seed), exact)
