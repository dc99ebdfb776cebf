"""The contracts of the passes, measured on one network.

They are measured in float64, with random norms, on a copy. A large network is measured on a narrow cut, which is made
without its values, so that memory stays in bounds.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphsurgery.checkpoint.files import load, save
from graphsurgery.graph import ModelGraph
from graphsurgery.passes.align import align
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.deepen import deepen
from graphsurgery.passes.factorize import factorizable, factorize, unfactorize
from graphsurgery.passes.gate import fold, gate
from graphsurgery.passes.mask import mask
from graphsurgery.passes.prune_dead import prune_dead
from graphsurgery.passes.widen import undo, widen
from graphsurgery.progress import phase
from graphsurgery.recipes.contracts.bench import Bench, Subject
from graphsurgery.recipes.contracts.contract import Contract, NothingToCompareError
from graphsurgery.recipes.contracts.export_contract import exported
from graphsurgery.recipes.contracts.hard_gates import OPEN, hard_gates
from graphsurgery.recipes.contracts.slim_contracts import slimmed
from graphsurgery.recipes.contracts.subjects import (
    calibrate,
    holes,
    redraw,
    skeleton,
)
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import apart, mean_of
from graphsurgery.surgery.gates import gates
from graphsurgery.surgery.growth.places import places
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable
from graphsurgery.surgery.masks.training import masked

if TYPE_CHECKING:
    pass

WIDER = 1.5


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
        self.bench = Bench(subject, seed)
        self.subject, self.dtype, self.seed = subject.graph, subject.dtype, seed
        self.cut: ModelGraph | None = None

    def all(self, wanted: Collection[str]) -> list[Contract]:
        """The contracts of these names that the network has."""
        steps: list[tuple[str, Callable[[], list[Contract]]]] = [
            ("concatenated", lambda: [self.concatenation()]),
            ("gates open", lambda: [self.open_gates()]),
            ("gates 0 or 1", lambda: hard_gates(self.bench)),
            ("gates folded", lambda: [self.folded()]),
            ("widened", self.widened),
            ("deepened", lambda: [self.deepened()]),
            ("factorized", lambda: [self.factorized()]),
            ("aligned", lambda: [self.aligned()]),
            ("masked", lambda: [self.masked()]),
            ("dead", lambda: [self.pruned()]),
            ("saved", lambda: [self.stored()]),
            ("compressed", lambda: [self.compressed()]),
            ("slim", lambda: slimmed(self.bench)),
            ("ONNX", lambda: [exported(self.bench, self.cut)]),
        ]
        taken = {begin: step for begin, step in steps if any(name.startswith(begin) for name in wanted)}
        contracts: list[Contract] = []
        with phase("contracts", len(taken)) as at:
            for begin, step in taken.items():
                at.say(begin)
                contracts += step()
                at.step()
        return contracts

    def concatenation(self) -> Contract:
        """The mean of this network and another of its topology."""

        def deviation() -> float:
            other = self._other()
            calibrate(other.module, other.inputs, self.dtype, self.seed + 1)
            expected = _mean(self.bench.outputs(self.subject), self.bench.outputs(other))
            both = concatenate([self.subject, other])
            del other
            return apart(self.bench.outputs(both), expected)

        return self.bench.contract("concatenated = mean of two", deviation)

    def _other(self) -> ModelGraph:
        """A network of the same topology with other weights."""
        other = self.subject.copy()
        redraw(other.module, self.seed + 1)
        return other

    def open_gates(self) -> Contract:
        """Gates that are all open change nothing."""
        return self.bench.contract(
            "gates open = no gates",
            lambda: apart(self.bench.outputs(gate(self.subject, loc=OPEN)), self.bench.outputs(self.subject)),
        )

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
            return apart(self.bench.outputs(fold(gated)), self.bench.outputs(gated))

        return self.bench.contract("gates folded = gated", deviation)

    def widened(self) -> list[Contract]:
        """Half as many channels more in every space that can grow, and back again."""
        wide: list[ModelGraph] = []

        def deviation() -> float:
            wide.append(widen(self.subject, WIDER, seed=self.seed))
            return apart(self.bench.outputs(wide[0]), self.bench.outputs(self.subject))

        found = [self.bench.contract("widened = original", deviation)]
        if wide:
            stays = wide[0].lineage[-1]["kept"]
            if stays:
                found[0] = replace(found[0], note="; ".join(filter(None, (found[0].note, f"{len(stays)} spaces stay"))))
            back = self.bench.contract(
                "widened and undone = original",
                lambda: apart(self.bench.outputs(undo(wide[0])), self.bench.outputs(self.subject)),
            )
            found.append(back)
        return found

    def deepened(self) -> Contract:
        """A part repeated at every place that is proposed."""

        def deviation() -> float:
            if not places(self.subject):
                raise NothingToCompareError("no part of the network can be repeated as the identity")
            return apart(self.bench.outputs(deepen(self.subject, seed=self.seed)), self.bench.outputs(self.subject))

        return self.bench.contract("deepened = original", deviation)

    def factorized(self) -> Contract:
        """Every layer that has a matrix as two of full rank, and as one again."""

        def deviation() -> float:
            if not factorizable(self.subject):
                raise NothingToCompareError("the network has no layer that can be factorized")
            expected, two = self.bench.outputs(self.subject), factorize(self.subject, rank=1.0, force=True)
            return max(apart(self.bench.outputs(graph), expected) for graph in (two, unfactorize(two)))

        return self.bench.contract("factorized at full rank = original", deviation)

    def aligned(self) -> Contract:
        """Its channels in the order of another network's, by their weights."""
        return self.bench.contract(
            "aligned = original",
            lambda: apart(self.bench.outputs(align(self.subject, self._other())), self.bench.outputs(self.subject)),
        )

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
                outputs = self.bench.outputs(trained)
            return max(
                apart(maskable(small), zeroed),
                apart(maskable(whole), weights),
                apart(self.bench.outputs(small), outputs),
            )

        return self.bench.contract("masked = weights zeroed", deviation)

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
            return apart(self.bench.outputs(small), self.bench.outputs(full))

        return self.bench.contract("dead channels pruned = masked", deviation)

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
                    found.append(apart(self.bench.outputs(load(Path(folder) / "m.pt")), self.bench.outputs(network)))
            return max(found)

        return self.bench.contract("saved and loaded = original", deviation)

    def compressed(self) -> Contract:
        """Half of every space, typed anew."""

        def deviation() -> float:
            self.cut = compress(self.subject, 0.5, seed=self.seed)
            self.bench.outputs(self.cut)
            won = len(self.cut.spaces) - len(self.subject.spaces)
            # A space of one channel is as good as fixed, and its dim may vanish from the types.
            single = sum(new == 1 for _, new in self.cut.lineage[-1]["sizes"].values())
            return float(won if won > 0 else max(0, -won - single))

        return self.bench.contract("compressed keeps its spaces", deviation)


def _mean(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mean_of([a[name], b[name]]) for name in a}
