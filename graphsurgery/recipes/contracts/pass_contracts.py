"""The contracts of the passes, measured on one network.

They are measured in float64, with random norms, on a copy. A large network is measured on a narrow cut, which is made
without its values, so that memory stays in bounds.
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphsurgery.checkpoint.files import load, save
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.naming import run
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.deepen import deepen
from graphsurgery.passes.gate import fold, gate, gateable
from graphsurgery.passes.mask import mask
from graphsurgery.passes.prune_dead import prune_dead
from graphsurgery.passes.widen import undo, widen
from graphsurgery.recipes.contracts.contract import Contract, NothingToCompareError, measure
from graphsurgery.recipes.contracts.subjects import (
    calibrate,
    draw_inputs,
    fill,
    has_values,
    holes,
    narrow,
    randomize,
    redraw,
    skeleton,
)
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.channels.slimming import Slimmable, Width
from graphsurgery.surgery.deviation import apart, double, mean_of
from graphsurgery.surgery.gates import gates, why_nothing
from graphsurgery.surgery.growth.places import places
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable
from graphsurgery.surgery.masks.training import masked

if TYPE_CHECKING:
    from graphsurgery.onnx.exporting.checking import OnnxCheck

LARGEST = 4
OPEN = 100.0
WIDER = 1.5
NARROWEST = 0.25
FLOAT32 = 1e-4
IN_FLOAT32 = "in float32, because the module does not run in float64"
ILL_CONDITIONED = 1e-6
WELL_CONDITIONED = 1e-13
BLURRED = 1e-2


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


def kept_at_half(graph: ModelGraph, seed: int) -> float | None:
    """Share of the parameters that stays when half of every space is kept; None if nothing can be removed."""
    bare = replace(graph, module=skeleton(graph.module))
    try:
        return cost(compress(bare, 0.5, importance="random", seed=seed)).parameters / max(1, cost(bare).parameters)
    except Exception:  # a mistake in the pass shows in its own contract
        return None


class PassContracts:
    """One contract at a time, nothing kept between them but the network and its cut to a half."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self.subject, self.note, self.dtype = subject.graph, subject.note, subject.dtype
        self.seed = seed
        self.x = draw_inputs(self.subject.inputs, 2, seed, self.dtype)
        self.cut: ModelGraph | None = None
        self._roundings: float | None = None

    def all(self, wanted: Collection[str]) -> list[Contract]:
        """The contracts of these names that the network has."""
        steps: list[tuple[str, Callable[[], list[Contract]]]] = [
            ("concatenated", lambda: [self.concatenation()]),
            ("gates open", lambda: [self.open_gates()]),
            ("gates 0 or 1", self.hard_gates),
            ("gates folded", lambda: [self.folded()]),
            ("widened", self.widened),
            ("deepened", lambda: [self.deepened()]),
            ("masked", lambda: [self.masked()]),
            ("dead", lambda: [self.pruned()]),
            ("saved", lambda: [self.stored()]),
            ("compressed", lambda: [self.compressed()]),
            ("slim", self.slimmed),
            ("ONNX", lambda: [self.exported()]),
        ]
        taken = [step for begin, step in steps if any(name.startswith(begin) for name in wanted)]
        return [contract for step in taken for contract in step()]

    def concatenation(self) -> Contract:
        """The mean of this network and another of its topology."""

        def deviation() -> float:
            other = self.subject.copy()
            redraw(other.module, self.seed + 1)
            calibrate(other.module, other.inputs, self.dtype, self.seed + 1)
            expected = _mean(self._outputs(self.subject), self._outputs(other))
            both = concatenate([self.subject, other])
            del other
            return apart(self._outputs(both), expected)

        return self._contract("concatenated = mean of two", deviation)

    def open_gates(self) -> Contract:
        """Gates that are all open change nothing."""
        return self._contract(
            "gates open = no gates",
            lambda: apart(self._outputs(gate(self.subject, loc=OPEN)), self._outputs(self.subject)),
        )

    def hard_gates(self) -> list[Contract]:
        """Closed gates are removed channels: exact for spaces that no operator mixes, stated for the others."""
        every = [s for s in self.subject.spaces if s.chosen and s.scalable and s.readers]
        try:
            gated = gateable(self.subject)
        except SurgeryError:  # the gate pass says why
            gated = every
        left = f"{len(every) - len(gated)} spaces cannot be gated" if len(gated) < len(every) else ""
        exact = [s.name for s in gated if not s.mixed]
        mixed = [s.name for s in gated if s.mixed]
        name = "gates 0 or 1 = compressed"
        found = []
        if exact or not mixed:
            contract = self._contract(name, lambda: self._hard(exact))
            found.append(replace(contract, note="; ".join(filter(None, (left, contract.note)))))
        if mixed:
            contract = self._contract(f"{name}, mixed spaces", lambda: self._hard(mixed))
            operators = sorted({m.partition(" at ")[0] for s in gated for m in s.mixed})
            note = f"not exact: {len(mixed)} spaces are mixed by {', '.join(operators)}"
            found.append(replace(contract, note="; ".join(filter(None, (note, contract.note)))))
        return found

    def folded(self) -> Contract:
        """Half-open gates, folded into the weights.

        The norms get the statistics of what the gates let through: with those of the ungated network the signal may
        grow from layer to layer, until rounding is all that a softmax sees.
        """

        def deviation() -> float:
            gated = gate(self.subject, seed=self.seed)
            generator = torch.Generator().manual_seed(self.seed)
            for module in gates(gated).values():
                module.loc.data.copy_(3 * torch.randn(module.channels, generator=generator) + 1)
            calibrate(gated.module, gated.inputs, self.dtype, self.seed)
            return apart(self._outputs(fold(gated)), self._outputs(gated))

        return self._contract("gates folded = gated", deviation)

    def widened(self) -> list[Contract]:
        """Half as many channels more in every space that can grow, and back again."""
        wide: list[ModelGraph] = []

        def deviation() -> float:
            wide.append(widen(self.subject, WIDER, seed=self.seed))
            return apart(self._outputs(wide[0]), self._outputs(self.subject))

        found = [self._contract("widened = original", deviation)]
        if wide:
            stays = wide[0].lineage[-1]["kept"]
            if stays:
                found[0] = replace(found[0], note="; ".join(filter(None, (found[0].note, f"{len(stays)} spaces stay"))))
            back = self._contract(
                "widened and undone = original",
                lambda: apart(self._outputs(undo(wide[0])), self._outputs(self.subject)),
            )
            found.append(back)
        return found

    def deepened(self) -> Contract:
        """A part repeated at every place that is proposed."""

        def deviation() -> float:
            if not places(self.subject):
                raise NothingToCompareError("no part of the network can be repeated as the identity")
            return apart(self._outputs(deepen(self.subject, seed=self.seed)), self._outputs(self.subject))

        return self._contract("deepened = original", deviation)

    def masked(self) -> Contract:
        """Weights under a mask: those of the pass are set to 0, and it computes what training under the mask does."""

        def deviation() -> float:
            masks = holes(self.subject, self.seed)
            if not masks:
                raise NothingToCompareError("the network has no weight that can be masked")
            weights = maskable(self.subject)
            small, whole = mask(self.subject, masks), mask(self.subject, MaskSet.ones(self.subject))
            zeroed = {name: weight * masks[name] for name, weight in weights.items()}
            trained = self.subject.copy()
            with masked(trained, masks):
                outputs = self._outputs(trained)
            return max(
                apart(maskable(small), zeroed),
                apart(maskable(whole), weights),
                apart(self._outputs(small), outputs),
            )

        return self._contract("masked = weights zeroed", deviation)

    def pruned(self) -> Contract:
        """Masked, without the channels that are dead then.

        The norms get the statistics of what the mask leaves: with those of the whole network the signal may fade.
        """

        def deviation() -> float:
            full = mask(self.subject, holes(self.subject, self.seed))
            calibrate(full.module, full.inputs, self.dtype, self.seed)
            small = prune_dead(full)
            if cost(small).parameters == cost(full).parameters:
                raise NothingToCompareError("no channel can go that random masks leave without weights")
            return apart(self._outputs(small), self._outputs(full))

        return self._contract("dead channels pruned = masked", deviation)

    def stored(self) -> Contract:
        """Written and read again, bit by bit; what a cut and growth leave, too, where there is something to change."""

        def deviation() -> float:
            networks = [self.subject]
            for edit in (lambda: compress(self.subject, 0.5, seed=self.seed), lambda: widen(self.subject, WIDER)):
                with contextlib.suppress(Exception):  # whatever is wrong with a pass shows in its own contract
                    networks.append(edit())
            found = []
            for network in networks:
                with tempfile.TemporaryDirectory() as folder:
                    save(network, Path(folder) / "m.pt")
                    found.append(apart(self._outputs(load(Path(folder) / "m.pt")), self._outputs(network)))
            return max(found)

        return self._contract("saved and loaded = original", deviation)

    def compressed(self) -> Contract:
        """Half of every space, typed anew."""

        def deviation() -> float:
            self.cut = compress(self.subject, 0.5, seed=self.seed)
            self._outputs(self.cut)
            won = len(self.cut.spaces) - len(self.subject.spaces)
            # A space of one channel is as good as fixed, and its dim may vanish from the types.
            single = sum(new == 1 for _, new in self.cut.lineage[-1]["sizes"].values())
            return float(won if won > 0 else max(0, -won - single))

        return self._contract("compressed keeps its spaces", deviation)

    def slimmed(self) -> list[Contract]:
        """One set of weights at the whole width, and at two narrow ones and a width for each space.

        Narrow networks are run on the shared weights, and with weights of their own.
        """
        made: list[Slimmable] = []

        def whole() -> float:
            made.append(Slimmable(self.subject, min_width=NARROWEST))
            return apart(self._outputs(made[0].extract(1.0)), self._outputs(self.subject))

        found = [self._contract("slim at width 1 = original", whole)]
        if made:
            generator = torch.Generator().manual_seed(self.seed)
            shares = NARROWEST + (1 - NARROWEST) * torch.rand(len(made[0].spaces), generator=generator)
            widths = (NARROWEST, 0.5, dict(zip(made[0].spaces, shares.tolist(), strict=True)))
            name = "slim at width w = compressed to the first channels"
            found.append(self._contract(name, lambda: max(self._slim_at(made[0], width) for width in widths)))
        return found

    def _slim_at(self, slimmable: Slimmable, width: Width) -> float:
        """How far a width lies from the network cut to its first channels, on shared weights and on its own."""
        sizes = slimmable.sizes(width)
        keep = {name: list(range(size)) for name, size in sizes.items() if size < slimmable.spaces[name].size}
        expected = self._outputs(compress(self.subject, keep) if keep else self.subject)
        on_shared = run(slimmable.at(width), self.x, self.seed)
        return max(apart(on_shared, expected), apart(self._outputs(slimmable.extract(width)), expected))

    def exported(self) -> Contract:
        """The compressed network in ONNX Runtime, in float32.

        Two computations in float32 may lie twice as far apart as each lies from the exact one.
        """
        from graphsurgery.onnx.exporting.checking import check_onnx
        from graphsurgery.onnx.exporting.exporter import export_onnx

        network = self.cut or self.subject
        rounding = 0.0
        check: OnnxCheck | None = None

        def deviation() -> float:
            nonlocal rounding, check
            rounding = self._rounding(network)
            if rounding > BLURRED:
                raise NothingToCompareError(f"rounding to float32 alone changes its outputs by {rounding:.1%}")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "m.onnx"
                export_onnx(network, path)
                check = check_onnx(network, path, batches=(1, 3), raise_on_failure=False)
                return check.deviation

        contract = measure("ONNX Runtime = PyTorch, compressed", deviation)
        notes = [self.note] if self.note.startswith("on a cut") else []
        if self.cut is None:
            notes.append("not compressed: nothing can be removed")
        if contract.allowed is not None and contract.allowed < 2 * rounding <= 2 * BLURRED:
            contract = replace(contract, allowed=2 * rounding)
            notes.append(f"rounding to float32 changes the outputs by {rounding:.1e}")
        if contract.status == "fails" and check is not None and check.first is not None:
            notes.append(f"the first node that differs is {check.first}")
        return replace(contract, note="; ".join([*notes, *filter(None, [contract.note])]))

    def _rounding(self, network: ModelGraph) -> float:
        """How far a network's outputs in float32 lie from those in float64; 0 where only float32 can be had."""
        if self.dtype != torch.float64:
            return 0.0
        exact = self._outputs(network)
        single = copy.deepcopy(network.module).float().eval()
        x = [tensor.float() if tensor.is_floating_point() else tensor for tensor in self.x]
        return apart(run(single, x, self.seed), exact)

    def _hard(self, names: Sequence[str]) -> float:
        if not names:
            raise SurgeryError(f"gate: no space can be gated; {why_nothing(self.subject)}")
        gated = gate(self.subject, names, seed=self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        kept: dict[str, Tensor] = {}
        for name, module in gates(gated).items():
            kept[name] = torch.randperm(module.channels, generator=generator)[: math.ceil(module.channels / 2)]
            module.loc.data.fill_(-OPEN)
            module.loc.data[kept[name]] = OPEN
        expected = self._outputs(gated)
        return apart(self._outputs(compress(gated, kept)), expected)

    def _outputs(self, graph: ModelGraph) -> dict[str, Tensor]:
        return run(graph.module.eval(), self.x, self.seed)

    def _contract(self, name: str, deviation: Callable[[], float]) -> Contract:
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
            self._roundings = apart(run(self.subject.module.eval(), x, self.seed), self._outputs(self.subject))
        enlarged = min(10 * self._roundings, ILL_CONDITIONED)
        if contract.allowed is None or enlarged <= contract.allowed or self._roundings < WELL_CONDITIONED:
            return contract
        note = f"rounding the input changes the outputs by {self._roundings:.0e}"
        return replace(contract, allowed=enlarged, note="; ".join(filter(None, (contract.note, note))))


def _mean(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mean_of([a[name], b[name]]) for name in a}
