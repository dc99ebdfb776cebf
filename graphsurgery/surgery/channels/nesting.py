"""Which spaces stand inside which: head sizes inside heads, channels inside groups.

Where a term is `g·k`, surgery may take whole `g`s, the same `k`s in every `g`, or other `k`s in each `g`. The last is a
choice of pairs, so it needs to know `g` wherever `k` is: from the same term, or from another axis of the same tensor,
as in the weight `[g·o, i, 3, 3]` of a grouped convolution, whose row tells the group of the channels `i`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from graphsurgery.axes.algebra import Axis, Dim, Term, resolve
from graphsurgery.axes.maps import axis_beside
from graphsurgery.axes.types import Access, Mixing, tensor_types
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.network.paths import place_of

Axes = Sequence[Axis]


@dataclass(frozen=True)
class Family:
    """Outer spaces that share what is inside them, mostly one, and the spaces inside.

    Attributes:
        outers: such as the heads.
        inners: such as the head sizes of queries and keys, and of values. Empty where nothing is inside, and where
            spaces inside stand inside each other, so that a share of each would count twice.
    """

    outers: tuple[Space, ...]
    inners: tuple[Space, ...]


class Nesting:
    """How the spaces of a network stand inside each other."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._spaces = {space.dim: space for space in graph.spaces}
        self._positions = {dim: position for position, dim in enumerate(self._spaces)}

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """Every outer space, in order, with those that share what is inside it."""
        found: list[Family] = []
        placed: set[Dim] = set()
        for space in self._graph.spaces:
            if space.outer and space.dim not in placed:
                outers, inners = self._connected(space.dim)
                placed |= outers
                if any(sum(dim in inners for dim in term) > 1 for term in self._products):
                    inners = set()
                found.append(Family(self._in_order(outers), self._in_order(inners)))
        return tuple(found)

    def _connected(self, outer: Dim) -> tuple[set[Dim], set[Dim]]:
        """The outer dims that share what is inside them with this one, and what that is."""
        outers, inners = {outer}, set[Dim]()
        while True:
            more = {dim for term in self._products if term[0] in outers for dim in term[1:] if dim in self._spaces}
            wider = {term[0] for term in self._products if self._is_outer(term[0]) and not more.isdisjoint(term[1:])}
            if more <= inners and wider <= outers:
                return outers, inners
            outers, inners = outers | wider, inners | more

    def _is_outer(self, dim: Dim) -> bool:
        return dim in self._spaces and self._spaces[dim].outer

    def _in_order(self, dims: set[Dim]) -> tuple[Space, ...]:
        return tuple(self._spaces[dim] for dim in sorted(dims, key=self._positions.__getitem__))

    def outers(self, space: Space) -> tuple[Dim, ...]:
        """The dims that a space stands inside of."""
        terms = [term for term in self._products if space.dim in term]
        return tuple(dict.fromkeys(dim for term in terms for dim in term[: term.index(space.dim)]))

    def why_alike(self, space: Space) -> str | None:
        """Why what stays of a space must be the same in all of its groups; None where it may differ."""
        outers = self.outers(space)
        if not outers:
            return "it stands inside no other space"
        for where, axes in self._tensors:
            if not _is_told(axes, space.dim, outers):
                return f"{where} does not tell its groups"
        for node, around in self._around.items():
            there = any(_holds(axis, space.dim) for axes in around for axis in axes)
            if there and any(_count_bare(axes, space.dim, outers) > 1 for axes in around):
                return f"{place_of(node)} pairs its groups with each other"
        return self._why_mixed(space.dim, outers)

    def _why_mixed(self, inner: Dim, outers: Sequence[Dim]) -> str | None:
        """Where indices of the groups are summed over, or mixed, while those of the space stand beside them."""
        types = self._graph.types
        summed: list[Access | Mixing] = [*types.readers, *types.mixings]
        for place in summed:
            axis = resolve(place.axis)
            taken = [axes for source in place.node.all_input_nodes for axes in self._values[source]]
            beside = any(other != axis and _holds(other, inner) for axes in taken for other in axes)
            if _is_bare(axis, inner, outers) and beside:
                return f"{place_of(place.node)} mixes its groups"
        return None

    @cached_property
    def _products(self) -> tuple[Term, ...]:
        """The free dims of every term that has several."""
        terms = (term for axis in self._graph.types.axes() for term in resolve(axis) if len(term) > 1)
        free = (tuple(dim for dim in term if not dim.fixed) for term in terms)
        return tuple(dict.fromkeys(term for term in free if len(term) > 1))

    @cached_property
    def _tensors(self) -> list[tuple[str, tuple[Axis, ...]]]:
        """Every parameter, and every value in the network, with its axes."""
        types = self._graph.types
        found = [(name, _resolved(typed.axes)) for name, typed in types.parameters.items()]
        found += [(place_of(node), axes) for node, values in self._values.items() for axes in values]
        return found

    @cached_property
    def _values(self) -> Mapping[fx.Node, list[tuple[Axis, ...]]]:
        types = self._graph.types.types
        return {node: [_resolved(typed.axes) for typed in tensor_types(value)] for node, value in types.items()}

    @cached_property
    def _around(self) -> Mapping[fx.Node, list[tuple[Axis, ...]]]:
        """The values that a node takes and gives."""
        return {
            node: [axes for near in (node, *node.all_input_nodes) for axes in self._values[near]]
            for node in self._values
        }


def _resolved(axes: Axes) -> tuple[Axis, ...]:
    return tuple(map(resolve, axes))


def _holds(axis: Axis, dim: Dim) -> bool:
    return any(dim in term for term in axis)


def _is_bare(axis: Axis, inner: Dim, outers: Sequence[Dim]) -> bool:
    """Whether a term of an axis has groups without what is inside them."""
    return any(inner not in term and any(dim in outers for dim in term) for term in axis)


def _count_bare(axes: Axes, inner: Dim, outers: Sequence[Dim]) -> int:
    return sum(_is_bare(axis, inner, outers) for axis in axes)


def _is_told(axes: Axes, inner: Dim, outers: Sequence[Dim]) -> bool:
    """Whether a tensor tells the group of every index of the space that it has."""
    for index, axis in enumerate(axes):
        for term in axis:
            groups = sum(dim in outers for dim in term)
            if inner in term and (groups > 1 or (groups == 0 and axis_beside(axes, index, outers) is None)):
                return False
    return True
