"""Channel maps, and their lift from dims to whole axes.

An edit gives spaces a map each. Lifting is functorial: over a sum it concatenates with offsets, over a product it is
the Kronecker product, so one edit says what happens to every axis of every parameter. A space inside others may have a
map for each of their indices; it lifts where the term, or another axis of the same tensor, tells which index that is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from graphsurgery.axes.algebra import Axis, Dim, Term, resolve, term_size


@dataclass(frozen=True)
class ChannelMap:
    """Where each new channel comes from.

    Attributes:
        source: the old index that each new channel copies, `[new]`, int64.
        share: the factor on what reads each new channel, `[new]`, or None for ones. The map is exact where the shares
            of every old index sum to 1.
    """

    source: Tensor
    share: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class MapInGroups:
    """A choice in each group: where each new channel of a space comes from, for every index of what it stands inside.

    Attributes:
        sources: by the dim that the space stands inside of, the old index of each new one, `[groups, new]`, int64. All
            have the same number of new channels.
    """

    sources: Mapping[Dim, Tensor]

    def __len__(self) -> int:
        return next(iter(self.sources.values())).shape[1]

    @property
    def share(self) -> None:
        """There are no factors."""


@dataclass(frozen=True)
class Lifted:
    """A map of a whole axis: the old index of each new one, and the factor on what reads it.

    Attributes:
        source: `[new]`; or `[new of another axis, new]` where it depends on the index of that axis.
        share: `[new]`.
        beside: the number of that other axis.
    """

    source: Tensor
    share: Tensor | None
    beside: int | None = None


def axis_beside(axes: Sequence[Axis], index: int, outers: Sequence[Dim]) -> int | None:
    """The one other axis of a tensor that has groups, where each of its indices lies in one; else None."""
    others = {n: resolve(axis) for n, axis in enumerate(axes) if n != index}
    found = [n for n, axis in others.items() if any(dim in outers for term in axis for dim in term)]
    if len(found) != 1:
        return None
    told = all(sum(dim in outers for dim in term) == 1 for term in others[found[0]])
    return found[0] if told else None


class Widths:
    """New sizes of some dims; the others keep theirs. All that counting asks of an edit."""

    def __init__(self, sizes: Mapping[Dim, int]) -> None:
        self.sizes = dict(sizes)

    def size(self, axis: Axis) -> int:
        """New number of indices of the axis."""
        axis = resolve(axis)
        if len(axis) == 1 and len(axis[0]) == 1:
            return self.sizes.get(axis[0][0], axis[0][0].size)
        return sum(prod(self.sizes.get(dim, dim.size) for dim in term) for term in axis)


class Edit(Widths):
    """Maps for some dims; the others stay. What a rebuild asks for new sizes."""

    def __init__(self, maps: Mapping[Dim, ChannelMap | MapInGroups]) -> None:
        super().__init__({dim: len(channel_map) for dim, channel_map in maps.items()})
        self.maps = dict(maps)
        self._has_shares = any(channel_map.share is not None for channel_map in maps.values())
        self._in_groups = any(isinstance(channel_map, MapInGroups) for channel_map in maps.values())
        self._lifted: dict[Axis, Lifted | None] = {}

    def lift(self, axis: Axis) -> Lifted | None:
        """The map of an axis by itself; None where it stays as it is.

        A space `d` of 3 channels keeps the first and the last, and is copied by nothing. An axis of two heads, `h·d`,
        keeps two of three in each of them: new index `[i, j]` of the product was `[i, source[j]]`, which is `3·i +
        source[j]` in row-major order. Behind 2 other channels in a concat, all of that is moved by 2:

        >>> h, d, other = Dim(2), Dim(3), Dim(2)
        >>> edit = Edit({d: ChannelMap(torch.tensor([0, 2]))})
        >>> edit.lift(((h, d),)).source.tolist()
        [0, 2, 3, 5]
        >>> edit.lift(((other,), (h, d))).source.tolist()
        [0, 1, 2, 4, 5, 7]

        A copy of the last channel shares with it what it counts for; shares of a product are multiplied:

        >>> edit = Edit({d: ChannelMap(torch.tensor([0, 1, 2, 2]), torch.tensor([1, 1, 0.75, 0.25]))})
        >>> edit.lift(((h, d),)).source.tolist(), edit.lift(((h, d),)).share.tolist()
        ([0, 1, 2, 2, 3, 4, 5, 5], [1.0, 1.0, 0.75, 0.25, 1.0, 1.0, 0.75, 0.25])

        Raises:
            ValueError: it depends on another axis, see `lift_in`.
        """
        axis = resolve(axis)
        if axis not in self._lifted:
            if self._bare(axis):
                raise ValueError("a choice in each group, where the axis does not tell the group")
            touched = any(dim in self.maps for term in axis for dim in term)
            self._lifted[axis] = self._lift(axis, {}) if touched else None
        return self._lifted[axis]

    def lift_in(self, axes: Sequence[Axis], index: int) -> Lifted | None:
        """The map of axis number `index` of a tensor with these axes; None where it stays as it is.

        Raises:
            ValueError: channels have a choice in each group there, and no axis tells the group.
        """
        if not self._in_groups:
            return self.lift(axes[index])
        axis = resolve(axes[index])
        rows: dict[Dim, Tensor] = {}
        besides: set[int | None] = set()
        for dim, sources in self._bare(axis).items():
            beside = axis_beside(axes, index, tuple(sources))
            besides.add(beside)
            if beside is None or len(besides) > 1:
                raise ValueError("a choice in each group, where no axis tells the group")
            rows[dim] = self._rows(resolve(axes[beside]), sources)
        return replace(self._lift(axis, rows), beside=besides.pop()) if rows else self.lift(axis)

    def _bare(self, axis: Axis) -> dict[Dim, Mapping[Dim, Tensor]]:
        """The dims of an axis that have a choice in each group and stand there without one, and their choices."""
        found = {}
        for term in axis:
            for dim in term:
                known = self.maps.get(dim)
                if isinstance(known, MapInGroups) and not any(outer in known.sources for outer in term):
                    found[dim] = known.sources
        return found

    def _rows(self, axis: Axis, sources: Mapping[Dim, Tensor]) -> Tensor:
        """The choice `[new of the axis, new channels]` that holds at each new index of an axis that tells the group."""
        found = []
        for term in axis:
            outer = next(dim for dim in term if dim in sources)
            sizes = [self.sizes.get(dim, dim.size) for dim in term]
            group = _placed(self._source(outer), len(term), term.index(outer)).expand(sizes)
            found.append(sources[outer][group.reshape(-1)])
        return torch.cat(found)

    def _lift(self, axis: Axis, rows: Mapping[Dim, Tensor]) -> Lifted:
        count = len(next(iter(rows.values()))) if rows else 1
        sources, offset = [], 0
        for term in axis:
            sources.append(self._lift_term(term, rows).expand(count, -1) + offset)
            offset += term_size(term)
        source = torch.cat(sources, 1)
        return Lifted(source if rows else source[0], self.share(axis))

    def share(self, axis: Axis, apart_from: Collection[Dim] = ()) -> Tensor | None:
        """The factor on what reads each new index, `[new]`, None where it is 1; some dims have no part in it."""
        if not self._has_shares:
            return None
        axis = resolve(axis)
        if all(self._share(dim) is None or dim in apart_from for term in axis for dim in term):
            return None
        return torch.cat([self._share_of(term, apart_from) for term in axis])

    def _lift_term(self, term: Term, rows: Mapping[Dim, Tensor]) -> Tensor:
        """The old index of each new one, `[rows, new]`, over the grid of the new indices of all dims."""
        if len(term) == 1 and term[0] not in rows:
            return self._source(term[0])[None]
        rank = len(term) + 1
        index = torch.zeros([1] * rank, dtype=torch.int64)
        for position, dim in enumerate(term, 1):
            known = self.maps.get(dim)
            if isinstance(known, MapInGroups):
                groups = [p for p, outer in enumerate(term, 1) if outer in known.sources]
                if len(groups) > 1:
                    raise ValueError("a choice in each group, in a product of several groups")
                group = groups[0] if groups else 0
                choice = known.sources[term[group - 1]][self._source(term[group - 1])] if groups else rows[dim]
                old = _placed(choice, rank, group, position)
            else:
                old = _placed(self._source(dim), rank, position)
            index = index * dim.size + old
        return index.reshape(index.shape[0], -1)

    def _source(self, dim: Dim) -> Tensor:
        """The old index of each new one of a dim that has one choice."""
        known = self.maps.get(dim)
        assert not isinstance(known, MapInGroups)
        return torch.arange(dim.size) if known is None else known.source

    def _share_of(self, term: Term, apart_from: Collection[Dim]) -> Tensor:
        share = torch.ones(1, dtype=torch.float64)
        for dim in term:
            factor = None if dim in apart_from else self._share(dim)
            size = self.sizes.get(dim, dim.size)
            inner = torch.ones(size, dtype=torch.float64) if factor is None else factor.to(torch.float64)
            share = (share[:, None] * inner).reshape(-1)
        return share

    def _share(self, dim: Dim) -> Tensor | None:
        known = self.maps.get(dim)
        return known.share if known is not None else None


def _placed(tensor: Tensor, rank: int, *places: int) -> Tensor:
    """A tensor of one or two axes as one of `rank` axes that has them at these places, in whatever order."""
    shape = [1] * rank
    for place, size in zip(places, tensor.shape, strict=True):
        shape[place] = size
    return (tensor if list(places) == sorted(places) else tensor.t()).reshape(shape)
