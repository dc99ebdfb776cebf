"""One merge in progress: the parents, the books, and the steps that several ways have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from graphsurgery.axes.maps import ChannelMap
from graphsurgery.graph import ModelGraph
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.recipes.contracts.edit_checks import check_cut, check_mean
from graphsurgery.recipes.experiment import Effort, Experiment
from graphsurgery.recipes.merging.plan import PARENT, MergePlan, trained_epochs
from graphsurgery.recipes.outcome import GateEpoch, at_chance
from graphsurgery.surgery.merging.parts import parts_of, shared_out
from graphsurgery.training.data.dataset import size_of
from graphsurgery.training.data.loading import recorded
from graphsurgery.training.data.transfer import answered
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.loop.evaluation import recalibrate
from graphsurgery.training.objectives.imitation import Mimicry
from graphsurgery.training.objectives.tasks import Objective
from graphsurgery.training.objectives.teachers import Teachers, logits_of

GUESSES = "no better than guessing: is it trained, and on this data?"


def as_large_as_the_first(parents: Sequence[ModelGraph]) -> list[int]:
    """The numbers of the parents whose spaces have the sizes of the first one's, that one among them."""
    sizes = [[space.size for space in parent.spaces] for parent in parents]
    return [number for number, own in enumerate(sizes) if own == sizes[0]]


class Merging:
    """One merge in progress."""

    def __init__(self, parents: Sequence[ModelGraph], plan: MergePlan, books: Experiment) -> None:
        self.parents, self.plan, self.books = parents, plan, books
        self.gate_epochs: list[GateEpoch] = []
        self.origins: dict[str, tuple[int, ...]] = {}
        known = [plan.parent_epochs if plan.parent_epochs is not None else trained_epochs(p) for p in parents]
        self.parent_efforts = [books.effort(parent, e, 0.0) for parent, e in zip(parents, known, strict=True)]
        self.all_parents = sum(self.parent_efforts, Effort())
        self.spent = self.all_parents

    def measure_parents(self) -> None:
        """A row for each parent, and for their ensemble."""
        for position, (parent, effort) in enumerate(zip(self.parents, self.parent_efforts, strict=True), 1):
            row = self.books.measured(f"{PARENT}{position}", parent, effort)
            guesses = at_chance(row.validation, self.books.data.classes, size_of(self.books.data.validation))
            self.books.rows.append(replace(row, note=GUESSES) if guesses else row)
        self.books.measure("ensemble", _copied(self.parents), self.all_parents, "the parents' outputs, averaged")

    def best_parent(self) -> int:
        """The number of the parent that is best on validation data, of those that have the size of the first."""
        rows = [row for row in self.books.rows if row.name.startswith(PARENT)]
        return max(as_large_as_the_first(self.parents), key=lambda number: self.books.rank(rows[number]))

    @property
    def way(self) -> str:
        """How it is done; of `auto`, which of the ways that train is tried."""
        if self.plan.by != "auto":
            return self.plan.by
        return "joint" if self.books.data.classes is None else "distil"

    @property
    def mixes(self) -> bool:
        """Whether it learns from mixtures of examples."""
        return self.way == "distil" and self.plan.imitation.mixed and self.books.data.classes is not None

    def concatenated(self) -> ModelGraph:
        """The parents side by side; the contract is checked and the row written."""
        big = concatenate(self.parents)
        self.books.require(check_mean(self.parents, big, self.plan.seed))
        self.books.measure("concatenated", big, self.spent)
        return big

    def targets(self, big: ModelGraph) -> dict[str, int]:
        """How many channels each outer space of the result shall have.

        Where a space has a part for each parent, as what the parents compute one by one has, each gives in proportion.
        """
        first = {space.name: space.size for space in self.parents[0].spaces}
        sizes = {space.name: space.size for space in big.spaces if space.outer}
        parts = parts_of(self.parents[0], big)
        known = {part for found in parts.values() for part in found}
        alone = {name: [name] for name in sizes if name not in known}
        targets: dict[str, int] = {}
        for name, found in (parts | alone).items():
            whole = sum(sizes[part] for part in found)
            size = first.get(name, whole // len(self.parents))
            total = min(whole, max(1, round(size * self.plan.budget)))
            targets.update(zip(found, shared_out(total, [sizes[part] for part in found]), strict=True))
        return {name: targets[name] for name in sizes}

    def cut(self, big: ModelGraph, kept: Mapping[str, Any]) -> tuple[ModelGraph, str]:
        """What is left of a network, and why the cut is not exact; the contract is checked."""
        small = compress(big, kept)
        found = check_cut(big, small, self.plan.seed)
        self.books.require(found.check)
        assert small.origin is not None
        sizes = {space.name: space.size for space in big.spaces}
        places = {
            part: (name, sum(sizes[before] for before in parts[:number]))
            for name, parts in parts_of(self.parents[0], big).items()
            for number, part in enumerate(parts)
        }
        for dim, name in small.origin.spaces.items():
            chosen = small.origin.edit.maps.get(dim)
            if name in kept and isinstance(chosen, ChannelMap):
                space, start = places.get(name, (name, 0))
                counts = self._origins(space, chosen.source + start)
                known = self.origins.get(space, (0,) * len(counts)) if start else (0,) * len(counts)
                self.origins[space] = tuple(a + b for a, b in zip(known, counts, strict=True))
        return small, found.why

    def _origins(self, name: str, kept: Tensor) -> tuple[int, ...]:
        """How many of these channels came from each parent."""
        counts, start = [], 0
        for parent in self.parents:
            size = next((s.size for s in parent.spaces if s.name == name), 0)
            counts.append(int(((kept >= start) & (kept < start + size)).sum()))
            start += size
        return tuple(counts)

    def recalibrated(self, graph: ModelGraph) -> None:
        """Find the statistics of a network's BatchNorms anew, in place, and write its row."""
        norms = self.recalibrate(graph)
        note = f"{norms} BatchNorms, 1,000 images" if norms else "no BatchNorm"
        self.books.measure("recalibrated", graph, self.spent, note)

    def recalibrate(self, graph: ModelGraph) -> int:
        """Find the statistics of a network's BatchNorms anew, in place; how many there are."""
        return recalibrate(graph.module, self.books.data.train, seed=self.plan.seed, device=self.books.device)

    def taught(
        self, teachers: Sequence[ModelGraph], imitation: Imitation | None = None
    ) -> tuple[Objective, Dataset[Any]]:
        """What a network learns from labels, and from what others say; by default as the plan has it.

        Of examples in memory the answers are computed once; mixtures of them, and others, may be new in every epoch,
        and are answered as they come.
        """
        data = self.books.data
        imitation = imitation or self.plan.imitation
        if data.classes is None:
            imitation = replace(imitation, mixed=False)
        if imitation.labels == 1:
            return Mimicry(data.classes, imitation) if imitation.mixed else self.books.objective, data.train
        stored = data.train if type(data.train) is TensorDataset and not imitation.mixed else None
        if stored is not None and (data.classes is not None or stored.tensors[1].dim() == 2):
            logits = self._what_parents_say if teachers is self.parents else self._logits(teachers)
            return Mimicry(data.classes, imitation), answered(data.train, logits)
        return Mimicry(data.classes, imitation, teacher=_copied(teachers)), data.train

    @cached_property
    def _what_parents_say(self) -> Tensor:
        return self._logits(self.parents)

    def _logits(self, teachers: Sequence[ModelGraph]) -> Tensor:
        return logits_of(_copied(teachers), self.books.data.train, device=self.books.device)

    def lineage(self, graph: ModelGraph, **more: Any) -> ModelGraph:
        """The network with a record of the merge."""
        record = {"pass": "merge", "parents": len(self.parents), **recorded(self.books.data), **more}
        return replace(graph, lineage=(*graph.lineage, {**record, "plan": asdict(self.plan)}))


def _copied(teachers: Sequence[ModelGraph]) -> Teachers:
    return Teachers([teacher.copy().module for teacher in teachers])
