"""Which spaces of a direct sum are the parts of one space: what is computed for each network has spaces of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from graphsurgery.axes.algebra import Axis, Dim, Term, resolve, size_of, term_size
from graphsurgery.graph import ModelGraph

_OF = re.compile(r"_of_(\d+)(_\d+)?(?=\.|$)")
"""How `apart` names what every network has of its own."""


def parts_of(first: ModelGraph, big: ModelGraph) -> dict[str, list[str]]:
    """The outer spaces of a direct sum that are parts of an outer space of its networks, in the networks' order.

    Args:
        first: the first of the networks.
        big: their direct sum, whose lineage says how many channels each network had in every space.

    Returns:
        By the name of each space of `first` those of `big`: a single one where all networks stand side by side.
    """
    made: Mapping[str, Any] = next(
        (record for record in reversed(big.lineage) if record.get("pass") == "concatenate"), {}
    )
    channels = made.get("channels", {})
    outer = {space.dim: space.name for space in first.spaces if space.outer and space.name in channels}
    inside = {space.dim: space.name for space in big.spaces if space.outer}
    found: dict[str, dict[str, None]] = {name: {} for name in outer.values()}
    for name, typed in big.types.parameters.items():
        old, teacher = first.types.parameters.get(name), None
        if old is None:
            owner = _OF.search(name)
            old = first.types.parameters.get(_OF.sub("", name))
            teacher = None if owner is None else int(owner[1]) - 1
        for before, after in zip(old.axes if old else (), typed.axes, strict=False):
            sizes = {dim: channels[space] for dim, space in outer.items()}
            for dim, part in _walked(resolve(before), resolve(after), sizes, teacher):
                if part in inside:
                    found[outer[dim]].setdefault(inside[part])
    return {space: list(parts) for space, parts in found.items() if parts}


def _walked(
    before: Axis, after: Axis, sizes: Mapping[Dim, Sequence[int]], teacher: int | None
) -> Iterator[tuple[Dim, Dim]]:
    """The dims of an axis of a network with those that stand in their place in the direct sum.

    Args:
        before: the axis in the first network.
        after: in the direct sum, or as one network has it there.
        sizes: the channels of every network in each outer dim.
        teacher: that network; None may also be the first.
    """
    wholes = [[term_size(term) for term in before]]
    for chosen in (range(1) if teacher is None else [teacher], range(len(next(iter(sizes.values()), ())))):
        wholes.append([_whole(term, sizes, chosen) for term in before])
    whole = next((found for found in reversed(wholes) if sum(found) == size_of(after)), None)
    terms = list(after)
    for term, size in zip(before, whole or (), strict=False):
        dims = [dim for dim in term if dim in sizes]
        while size > 0 and terms:
            part = terms.pop(0)
            size -= term_size(part)
            if len(dims) == 1:
                yield from ((dims[0], dim) for dim in part if not dim.fixed)


def _whole(term: Term, sizes: Mapping[Dim, Sequence[int]], teachers: Sequence[int]) -> int:
    """How long a term is with the channels of some networks."""
    return prod(sum(sizes[dim][t] for t in teachers) if dim in sizes else dim.size for dim in term)


def shared_out(total: int, sizes: Sequence[int]) -> list[int]:
    """A number in proportion to sizes, in whole numbers of at least 1 and at most the size.

    The sum is the total, as far as these bounds let it be.
    """
    whole = sum(sizes)
    shares = [total * size / whole for size in sizes]
    found = [min(size, max(1, int(share))) for share, size in zip(shares, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda index: found[index] - shares[index])
    for index in order:
        if sum(found) < total and found[index] < sizes[index]:
            found[index] += 1
    return found
