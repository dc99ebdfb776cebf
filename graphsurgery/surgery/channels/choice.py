"""Which channels can be chosen, and which are the best: whole groups, or channels inside groups (see `nesting`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from graphsurgery.axes.algebra import Dim
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.surgery.channels.nesting import Family, Nesting

WITHIN = ("groups", "same", "each", "best")


class Scored(Protocol):
    """Scores of channels.

    Attributes:
        criterion: by what.
        comparable: whether those of different spaces can be compared as they are.
    """

    criterion: str
    comparable: bool

    def of(self, space: Space, outers: Sequence[Dim] = ()) -> Tensor:
        """The scores `[channels]` of a space, or `[groups, channels]` in each group of these dims."""


@dataclass(frozen=True)
class Choice:
    """A space to choose channels from: once, or in each group of `outers` by itself."""

    space: Space
    outers: tuple[Dim, ...] = ()


class Choices:
    """What can be chosen in a network.

    Args:
        graph: typed network.
        scores: of its channels.
        alike: names of spaces inside groups in which the choice must be the same, whatever the types allow.
    """

    def __init__(self, graph: ModelGraph, scores: Scored, alike: Sequence[str] = ()) -> None:
        self.scores = scores
        self.nesting = Nesting(graph)
        self._alike = frozenset(alike)

    def why_alike(self, space: Space) -> str | None:
        """Why a space has one choice for all groups; None where each may have its own."""
        return "its gates are the same in all groups" if space.name in self._alike else self.nesting.why_alike(space)

    def inside(self, space: Space, *, apart: bool) -> Choice:
        """The choice from a space; in each of its groups where they may differ and `apart` wants it."""
        return Choice(space, self.nesting.outers(space) if apart and self.why_alike(space) is None else ())

    def best(self, choice: Choice, count: int) -> Tensor:
        """The indices of the channels with the highest scores, in order: `[count]` or `[groups, count]`."""
        scores = self.scores.of(choice.space, choice.outers)
        return torch.topk(scores, count).indices.sort().values

    def worth(self, choice: Choice) -> Tensor:
        """What each channel more is worth, best first, to be compared between spaces.

        It is the score over the mean of the space's scores; in groups, the mean over the groups.
        """
        scores = self.scores.of(choice.space, choice.outers)
        ranked = scores.sort(descending=True).values
        ranked = ranked.mean(0) if choice.outers else ranked
        return ranked if self.scores.comparable else ranked / ranked.mean().clamp_min(torch.finfo(ranked.dtype).tiny)

    def of_family(self, family: Family, within: str, size: Callable[[Space], int]) -> list[Choice]:
        """Which spaces of a family are cut, and how.

        Args:
            family: spaces that are cut together.
            within: one of `WITHIN`. `groups`: whole groups; `same`: the same channels in every group; `each`: others in
                each group, where the types allow it; `best`: `groups` or `each`, whichever keeps the more important
                channels. Where nothing is inside there are only groups.
            size: how many indices of a space would stay, to compare by.
        """
        groups = [Choice(space) for space in family.outers]
        if within == "groups" or not family.inners:
            return groups
        inside = [self.inside(space, apart=within != "same") for space in family.inners]
        if within == "best" and self._gain(family, inside, size) <= self._gain(family, groups, size):
            return groups
        return inside

    def _gain(self, family: Family, choices: Sequence[Choice], size: Callable[[Space], int]) -> float:
        """The share of importance that stays, over the share of channels that stays, inside a family."""
        kept = {choice.space.dim: self.best(choice, size(choice.space)) for choice in choices}
        important = total = count = channels = 0.0
        for space in family.inners:
            outers = self.nesting.outers(space)
            scores = self.scores.of(space, outers)
            stays = _stays(space, outers, kept)
            important += float((scores * stays).sum())
            total += float(scores.sum())
            count += float(stays.sum())
            channels += stays.numel()
        return (important / total if total > 0 else 0.0) - count / channels


def _stays(space: Space, outers: Sequence[Dim], kept: Mapping[Dim, Tensor]) -> Tensor:
    """1 for every channel in every group, `[groups, channels]`, that stays when these indices of these dims do."""
    stays = torch.zeros(sum(dim.size for dim in outers), space.size, dtype=torch.float64)
    inside = kept.get(space.dim, torch.arange(space.size))
    start = 0
    for dim in outers:
        groups = kept.get(dim, torch.arange(dim.size))
        channels = inside[start : start + dim.size][groups] if inside.dim() == 2 else inside.expand(len(groups), -1)
        stays[start + groups[:, None], channels] = 1
        start += dim.size
    return stays
