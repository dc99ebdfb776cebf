"""What wider spaces copy: channel maps that keep a network's function, and what stands in the way of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from graphsurgery.axes.algebra import Dim, dims_of
from graphsurgery.axes.maps import ChannelMap
from graphsurgery.axes.types import Mixing
from graphsurgery.graph import ModelGraph
from graphsurgery.network.paths import place_of

WEIGHED = frozenset(
    {
        "layer_norm", "rms_norm", "group_norm", "instance_norm", "normalize", "grouped_norm", "mean", "sum", "norm",
        "cosine_similarity",
    }
)  # fmt: skip
"""Operators that mix indices and keep their result when copies count by their shares."""

INDIFFERENT = frozenset({"maximum"})
"""Operators that give the same however often an index is there, or mix by weights of their own."""


def copies(size: int, new: int, generator: torch.Generator) -> Tensor:
    """The old index of each of `new` channels, in order: copies stand beside what they copy.

    The numbers of copies differ by at most one, and chance says which channels get one more.
    """
    whole, rest = divmod(new, size)
    counts = torch.full((size,), whole)
    counts[torch.randperm(size, generator=generator)[:rest]] += 1
    return torch.arange(size).repeat_interleave(counts)


def even_shares(source: Tensor) -> Tensor:
    """The same share for every copy of a channel, float64; those of one channel sum to 1."""
    return torch.bincount(source).double().reciprocal()[source]


def uneven_shares(source: Tensor, generator: torch.Generator) -> Tensor:
    """Another share for every copy of a channel, float64; those of one channel sum to 1.

    The shares of n copies lie evenly between 0.5 / n and 1.5 / n, in random order. What reads copies by other shares
    gives them other gradients, so that training takes them apart, while the sum of what they add is what it was.

    Source: the uneven split of Wang et al., "LEMON: Lossless model expansion", ICLR 2024, section 3, for the
    duplication of Chen, Goodfellow, Shlens, "Net2Net", arXiv:1511.05641, section 2.
    """
    counts = torch.bincount(source)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])[source]
    # Chance orders the copies of each channel among themselves.
    order = torch.argsort(source + torch.rand(len(source), generator=generator, dtype=torch.float64) * 0.999)
    rank = (torch.arange(len(source)) - first)[torch.argsort(order)]
    count = counts[source].double()
    place = torch.where(count > 1, rank.double() / (count - 1).clamp_min(1), torch.tensor(0.5, dtype=torch.float64))
    return (0.5 + place) / count


def firsts(source: Tensor) -> Tensor:
    """Whether each new channel is the first that copies its old one."""
    return torch.cat([torch.ones(1, dtype=torch.bool), source.diff() != 0])


def first_of_each(source: Tensor) -> Tensor:
    """The same for the indices of a whole axis, whose copies may lie apart."""
    order = torch.argsort(source, stable=True)
    found = torch.empty_like(source, dtype=torch.bool)
    found[order] = firsts(source[order])
    return found


def inverse(channel_map: ChannelMap) -> ChannelMap:
    """The map that leads back: the first copy of each channel, with all of what its copies were read by."""
    kept = firsts(channel_map.source).nonzero().flatten()
    return ChannelMap(kept, None if channel_map.share is None else channel_map.share[kept].reciprocal())


def keeps_size(mixing: Mixing) -> bool:
    """Whether copies are summed in front of an operator that would change with them, and given out behind it."""
    return mixing.dim is not None and mixing.kind not in WEIGHED | INDIFFERENT


def obstacles(graph: ModelGraph) -> Mapping[Dim, str]:
    """The dims whose copies would change what the network computes, with the operator that does."""
    found: dict[Dim, str] = {}
    for mixing in graph.types.mixings:
        if mixing.kind in INDIFFERENT or (mixing.kind in WEIGHED and mixing.dim is not None) or keeps_size(mixing):
            continue
        for dim in dims_of(mixing.axis):
            found.setdefault(dim, f"a {mixing.kind} at {place_of(mixing.node)} would change with copies")
    return found | {dim: why for dim, why in without_place(graph).items() if dim not in found}


def without_place(graph: ModelGraph) -> dict[Dim, str]:
    """The dims that are summed over where there is neither a weight for a factor nor a place for one in front."""
    found: dict[Dim, str] = {}
    for access in graph.types.readers:
        if access.weighted or (access.value is not None and access.given == 1):
            continue
        for dim in dims_of(access.axis):
            found.setdefault(dim, f"{place_of(access.node)} sums over it where no factor can stand")
    return found
