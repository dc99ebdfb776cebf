"""Channel maps, and their lift from dims to whole axes.

An edit gives spaces a map each. Lifting is functorial: over a sum it concatenates with offsets, over a product it is
the Kronecker product, so one edit says what happens to every axis of every parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphsurgery.axes import Axis, Dim, Term, resolve, size_of, term_size


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
class Lifted:
    """A map of a whole axis: the old index of each new one, and the factor on what reads it."""

    source: Tensor
    share: Tensor | None


class Edit:
    """Maps for some dims; the others stay. What a rebuild asks for new sizes."""

    def __init__(self, maps: Mapping[Dim, ChannelMap]) -> None:
        self.maps = dict(maps)
        self._lifted: dict[Axis, Lifted | None] = {}

    def lift(self, axis: Axis) -> Lifted | None:
        """The map of an axis; None where it stays as it is."""
        if axis not in self._lifted:
            resolved = resolve(axis)
            touched = any(dim in self.maps for term in resolved for dim in term)
            if resolved not in self._lifted:
                self._lifted[resolved] = self._lift(resolved) if touched else None
            self._lifted[axis] = self._lifted[resolved]
        return self._lifted[axis]

    def _lift(self, axis: Axis) -> Lifted:
        sources, shares, offset = [], [], 0
        for term in axis:
            source, share = self._lift_term(term)
            sources.append(source + offset)
            shares.append(share if share is not None else torch.ones(len(source), dtype=torch.float64))
            offset += term_size(term)
        scaled = any(self.maps[d].share is not None for term in axis for d in term if d in self.maps)
        return Lifted(torch.cat(sources), torch.cat(shares) if scaled else None)

    def _lift_term(self, term: Term) -> tuple[Tensor, Tensor | None]:
        source, share = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
        scaled = False
        for dim in term:
            known = self.maps.get(dim)
            inner = torch.arange(dim.size) if known is None else known.source
            source = (source[:, None] * dim.size + inner).reshape(-1)
            factor = None if known is None else known.share
            scaled |= factor is not None
            inner_share = torch.ones(len(inner), dtype=torch.float64) if factor is None else factor.to(torch.float64)
            share = (share[:, None] * inner_share).reshape(-1)
        return source, share if scaled else None

    def size(self, axis: Axis) -> int:
        """New number of indices of the axis."""
        lifted = self.lift(axis)
        return size_of(axis) if lifted is None else len(lifted.source)

    def segments(self, axis: Axis, sizes: Sequence[int]) -> tuple[int, ...]:
        """New sizes of consecutive old segments of the axis; what is left empty has size 0."""
        lifted = self.lift(axis)
        if lifted is None:
            return tuple(sizes)
        borders = torch.tensor(sizes).cumsum(0)
        owner = torch.bucketize(lifted.source, borders, right=True)
        counts = torch.bincount(owner, minlength=len(sizes))
        if bool((owner.diff() < 0).any()):
            raise ValueError("a map mixes the segments of a segmented norm")
        return tuple(int(n) for n in counts)
