"""Which channels of which spaces stay: from what is asked for to the maps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphsurgery.axes.maps import ChannelMap, MapInGroups, Widths
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.surgery.channels.choice import WITHIN, Choice, Choices
from graphsurgery.surgery.channels.nesting import Family
from graphsurgery.surgery.channels.planned_cost import PlannedCost
from graphsurgery.surgery.channels.targets import Lane, Target, search

_Counter = Callable[[Mapping[Choice, int]], int]
Price = Callable[[Mapping[str, int]], int]
"""What a network costs at sizes of spaces, by name; never less for more channels."""
Request = float | int | Sequence[int] | Sequence[Sequence[int]] | Tensor


class CutPlan:
    """What stays of a network: of the spaces that are named, and of the others by a share or by a target.

    Args:
        graph: typed network.
        choices: what can be chosen in it.
        named: by the name of a space, a share, a number of channels, or the indices that stay.
        within: how spaces in groups are cut, one of `WITHIN`.
        round_to: numbers of channels become multiples of this where the space has as many.

    Raises:
        SurgeryError: an unknown space, or a request that its space cannot meet.
    """

    def __init__(
        self, graph: ModelGraph, choices: Choices, named: Mapping[str, Request], within: str, round_to: int
    ) -> None:
        if round_to < 1:
            raise SurgeryError(f"compress: round_to is {round_to}, expected at least 1")
        if within not in WITHIN:
            raise SurgeryError(f"compress: within is {within!r}; choose from {', '.join(WITHIN)}")
        self._graph, self._choices, self._within, self._round_to = graph, choices, within, round_to
        self._given: dict[Choice, Tensor] = {}
        self.sizes: dict[Choice, int] = {}
        for name, request in named.items():
            self._ask(graph.space(name), request)
        self._families = [rest for family in choices.nesting.families if (rest := _without(family, named)).outers]

    @property
    def is_open(self) -> bool:
        """Whether a share or a target has anything to cut."""
        return bool(self._families)

    def _ask(self, space: Space, request: Request) -> None:
        """CutPlan one space that is named."""
        if isinstance(request, (int, float)):
            choice = self._choices.inside(space, apart=self._within in ("each", "best"))
            self.sizes[choice] = _count(space, request, self._round_to)
            return
        indices = torch.as_tensor(request, dtype=torch.int64)
        if indices.dim() > 1:
            why = self._choices.why_alike(space)
            if why is not None:
                raise SurgeryError(f"compress: space {space.name} cannot have a choice in each group: {why}")
        choice = self._choices.inside(space, apart=indices.dim() > 1)
        self._given[choice] = _given(choice, indices)
        self.sizes[choice] = self._given[choice].shape[-1]

    def share(self, share: float) -> None:
        """Every outer space that is not named keeps this share, whole groups or what is inside them."""
        if not 0 < share <= 1:
            raise SurgeryError(f"compress: keep is {share:g}, expected a share above 0 and at most 1")
        for family in self._families:
            for choice in self._choices.of_family(family, self._within, self._rounded(share)):
                self.sizes[choice] = self._rounded(share)(choice.space)

    def _rounded(self, share: float) -> Callable[[Space], int]:
        return lambda space: _rounded(space.size, share, self._round_to)

    def meet(self, target: Target, price: Price | None = None) -> dict[str, Any]:
        """The outer spaces that are not named get the sizes that a target allows, whole groups or what is inside them.

        What `best` cuts in groups is decided at the shares that whole groups would keep. The price of a size is
        counted; only a latency has to be given.

        Returns:
            The target, with what it asked for, what there was before, and what is reached.
        """
        count = _counter(self._graph, target.quantity) if price is None else _priced(price)
        shares = [1.0] * len(self._families)
        if self._within == "best" and any(family.inners for family in self._families):
            shares = self._shares(target, count)
        choices = [
            self._choices.of_family(family, self._within, self._rounded(share))
            for family, share in zip(self._families, shares, strict=True)
        ]
        found = self._search(list(itertools.chain(*choices)), target, count)
        self.sizes = found.sizes
        return {"asked": str(target), **asdict(target), "before": found.before, "reached": found.reached}

    def _shares(self, target: Target, count: _Counter) -> list[float]:
        """The share that each family keeps when whole groups go; the smallest where that is not enough."""
        groups = [Choice(space) for family in self._families for space in family.outers]
        try:
            sizes = self._search(groups, target, count).sizes
        except SurgeryError:
            sizes = {choice: self._rounded(1 - target.max_cut)(choice.space) for choice in groups}
        return [
            sum(sizes[Choice(s)] for s in family.outers) / sum(s.size for s in family.outers)
            for family in self._families
        ]

    def _search(self, choices: Sequence[Choice], target: Target, count: _Counter) -> _Found:
        """Sizes for these choices, besides those of the spaces that are named."""
        worth = [self._choices.worth(choice) if target.ranking == "global" else None for choice in choices]
        lanes = [Lane(choice.space.size, of) for choice, of in zip(choices, worth, strict=True)]
        before = count({choice: choice.space.size for choice in (*self.sizes, *choices)})

        def sizes(searched: Sequence[int]) -> dict[Choice, int]:
            return self.sizes | dict(zip(choices, searched, strict=True))

        found = sizes(search(lanes, target, self._round_to, lambda n: count(sizes(n)), before))
        return _Found(found, before, count(found))

    @property
    def removes(self) -> bool:
        """Whether any channel goes."""
        return any(size < choice.space.size for choice, size in self.sizes.items())

    def maps(self) -> Iterator[tuple[Space, ChannelMap | MapInGroups]]:
        """The map of every planned space that loses channels."""
        for choice, size in self.sizes.items():
            if size < choice.space.size:
                indices = self._given.get(choice)
                indices = self._choices.best(choice, size) if indices is None else indices
                yield choice.space, _map(choice, indices)

    def as_dict(self) -> dict[str, Any]:
        """JSON-like: every planned space with its sizes before and after, and what is cut inside groups."""
        inside = {choice.space.name: bool(choice.outers) for choice in self.sizes if not choice.space.outer}
        return {
            "sizes": {choice.space.name: [choice.space.size, size] for choice, size in self.sizes.items()},
            "inside groups": {name: "each" if apart else "same" for name, apart in inside.items()},
        }


class _Found(NamedTuple):
    """Sizes that meet a target, and the count of its quantity before and with them."""

    sizes: dict[Choice, int]
    before: int
    reached: int


def _without(family: Family, named: Mapping[str, Request]) -> Family:
    """What is left of a family to plan: no positions; where a part of it is named, whole groups only."""
    outers = tuple(space for space in family.outers if space.name not in named and space.chosen)
    touched = any(space.name in named for space in (*family.outers, *family.inners))
    inners = tuple(space for space in family.inners if not space.positions)
    return Family(outers, () if touched else inners)


def _priced(price: Price) -> _Counter:
    """A price by the names of the spaces, as a counter of what is chosen in them."""
    return lambda sizes: price({choice.space.name: size for choice, size in sizes.items()})


def _counter(graph: ModelGraph, quantity: str) -> _Counter:
    """How much of a quantity a network has at given sizes of its spaces."""
    if quantity == "width":
        return lambda sizes: sum(sizes.values())
    cost = PlannedCost(graph)
    counts = {"params": cost.parameters, "macs": cost.macs, "size": cost.bytes}
    if quantity not in counts:
        raise SurgeryError(
            f"compress: a target of {quantity} is not possible without a price; use {', '.join(counts)} or width"
        )
    count = counts[quantity]
    return lambda sizes: count(Widths({choice.space.dim: size for choice, size in sizes.items()}))


def _map(choice: Choice, indices: Tensor) -> ChannelMap | MapInGroups:
    """The map that keeps these channels."""
    if not choice.outers:
        return ChannelMap(indices)
    rows = indices.split([dim.size for dim in choice.outers])
    return MapInGroups(dict(zip(choice.outers, rows, strict=True)))


def _given(choice: Choice, request: Tensor) -> Tensor:
    """Indices that were asked for, checked and in order."""
    space, indices = choice.space, request.sort().values
    groups = sum(dim.size for dim in choice.outers)
    if choice.outers and (indices.dim() != 2 or len(indices) != groups):
        raise SurgeryError(
            f"compress: space {space.name} stands in {groups} groups, expected indices [{groups}, kept], got "
            f"{list(indices.shape)}"
        )
    if indices.numel() == 0:
        raise SurgeryError(
            f"compress: space {space.name} would be empty; keep at least one of its {space.size} channels"
        )
    if int(indices.min()) < 0 or int(indices.max()) >= space.size:
        raise SurgeryError(f"compress: space {space.name} has channels 0 to {space.size - 1}, got {int(indices.max())}")
    if bool((indices.diff(dim=-1) == 0).any()):
        raise SurgeryError(f"compress: space {space.name} would keep a channel twice; widen copies channels")
    return indices


def _count(space: Space, request: float | int, round_to: int) -> int:
    """Number of channels that stay."""
    if isinstance(request, int) and not isinstance(request, bool):
        if not 1 <= request <= space.size:
            raise SurgeryError(f"compress: space {space.name} has {space.size} channels, cannot keep {request}")
        return request
    if not 0 < request <= 1:
        raise SurgeryError(f"compress: keep is {request:g}, expected a share above 0 and at most 1")
    return _rounded(space.size, request, round_to)


def _rounded(size: int, share: float, round_to: int) -> int:
    """A share of a space, in multiples of `round_to` where it has as many; at least one."""
    rounded = round(share * size / round_to) * round_to
    return min(size, max(rounded, min(round_to, size), 1))
