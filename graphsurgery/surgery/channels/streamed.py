"""The scores of a network whose weights are not in memory: each is read once, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from graphsurgery.axes import algebra as ax
from graphsurgery.graph import ModelGraph
from graphsurgery.surgery.channels.importance import CHANNEL_CRITERIA, Criterion, Scores
from graphsurgery.surgery.remapping.gathering import Stored, rows_at_a_time

Sums = Mapping[str, Tensor]
"""What is summed over a parameter, by its name, the number of the axis that it was not summed over, and by what."""


class StreamedScores(Scores):
    """The scores of a network by sums over weights that are stored.

    Args:
        graph: typed network, whose tensors may be without values.
        criterion: as of `Scores`; one that needs weights alone.
        seed: for `random`.
        stored: the parameters and buffers by their first names.
    """

    def __init__(self, graph: ModelGraph, criterion: str, seed: int, stored: Mapping[str, Stored]) -> None:
        super().__init__(graph, criterion, seed)
        self._stored = stored

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Sum up these parameters: for each of their axes that has channels, and whatever is asked for later."""
        found: dict[str, Tensor] = {}
        for name in names:
            for criterion, label in self._criteria(name):
                kept: list[tuple[int, ...]] = [(index,) for index in self._axes(name)]
                for axes, total in zip(kept, _summed(criterion, name, self._stored[name], kept), strict=True):
                    found[f"{name}/{axes[0]}/{label}"] = total
        self.know(found)
        return found

    def know(self, sums: Sums) -> None:
        """Take sums that `read` has given."""
        for key, total in sums.items():
            name, index, label = key.rsplit("/", 2)
            self._sums[CHANNEL_CRITERIA[label], name, (int(index),)] = total

    def _criteria(self, name: str) -> Iterator[tuple[Criterion, str]]:
        """What is summed over a parameter, with the name that it goes by."""
        criterion = CHANNEL_CRITERIA.get(self.criterion)
        while criterion is not None:
            if criterion.looks_at(self._graph, name, self._tensors[name]):
                yield criterion, next(label for label, known in CHANNEL_CRITERIA.items() if known is criterion)
            criterion = criterion.fallback

    def _axes(self, name: str) -> list[int]:
        typed = self._graph.types.parameters.get(name)
        return [] if typed is None else [index for index, axis in enumerate(typed.axes) if not ax.is_fixed(axis)]

    def _sum(self, criterion: Criterion, name: str, kept: tuple[int, ...]) -> Tensor:
        key = (criterion, name, kept)
        if key not in self._sums:
            (self._sums[key],) = _summed(criterion, name, self._stored[name], [kept])
        return self._sums[key]


def _summed(criterion: Criterion, name: str, stored: Stored, every: list[tuple[int, ...]]) -> list[Tensor]:
    """The sums over all axes but some, for several choices of these, of a tensor that is read once."""
    totals: list[list[Tensor]] = [[] for _ in every]
    step = rows_at_a_time(stored.shape)
    for start in range(0, max(1, stored.shape[0]), step):
        block = stored.read(start, start + step)
        for kept, parts in zip(every, totals, strict=True):
            part = criterion.sum(name, block, kept).double()
            if 0 in kept or not parts:
                parts.append(part)
            else:
                parts[0] += part
    return [
        torch.cat(parts, kept.index(0)) if 0 in kept else parts[0] for kept, parts in zip(every, totals, strict=True)
    ]
