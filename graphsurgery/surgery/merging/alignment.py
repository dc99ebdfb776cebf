"""Which channel of one network does what a channel of another does: the permutation of every space.

What two networks have learnt is alike up to the order of their channels. The order is found space by space, as an
assignment problem on how much each channel of the one is like each of the other: by the correlation of activations
where the space is read, or without data by the inner products of weights. Heads and groups are matched first, each
pair by the best order of what is inside, then what is inside them; several rounds, until no order changes.

Source: Li et al., "Convergent learning", arXiv:1511.07543 (activations); Ainsworth et al., "Git Re-Basin",
arXiv:2209.04836, section 3.2 (weights, and the rounds).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx

from graphsurgery.axes.algebra import Axis, Dim, Term, resolve, term_size
from graphsurgery.axes.maps import ChannelMap, Edit, MapInGroups
from graphsurgery.axes.types import TensorType
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.surgery.channels.nesting import Nesting
from graphsurgery.surgery.merging.matching import match_nodes, match_parameters

ROUNDS = 50
"""The most rounds over all spaces; each makes the networks more alike, so that they end by themselves, soon."""

Maps = dict[Dim, ChannelMap | MapInGroups]


def alignment(graph: ModelGraph, like: ModelGraph, examples: Iterable[Tensor] | None = None) -> Maps:
    """The order of the channels of `graph`, by the dims of its spaces, in which they are most like those of `like`.

    Args:
        graph: typed network of one input.
        like: a network of the same topology and sizes.
        examples: batches of inputs; without any the weights decide.

    Raises:
        SurgeryError: topologies or sizes differ, or no example is given.
    """
    nodes = match_nodes(graph, like, 2)
    weights = _Weights(graph, like, match_parameters(graph, like, nodes))
    nesting = Nesting(graph)
    evidence: list[_Evidence] = [weights]
    if examples is not None:
        evidence.insert(0, _Activations(graph, like, nodes, nesting, examples))
    return _Alignment(graph, nesting, evidence).found()


class _Evidence(Protocol):
    """How much the channels of two networks are alike, in the places of one kind."""

    def of(self, dim: Dim, maps: Maps) -> Iterator[tuple[Term, Tensor]]:
        """The free dims of a product that `dim` has a part in, and `[n, n]` of the n indices of that product.

        Rows are the channels of `like`, columns those of the graph, in their old order.
        """


class _Alignment:
    """The orders that have been found so far."""

    def __init__(self, graph: ModelGraph, nesting: Nesting, evidence: Sequence[_Evidence]) -> None:
        self._evidence = evidence
        self._maps: Maps = {}
        spaces = [space for space in graph.spaces if not space.positions]
        self._dims = [space.dim for space in sorted(spaces, key=lambda space: not space.outer)]
        self._outers = {space.dim: nesting.outers(space) for space in spaces if not space.outer}
        self._apart = {space.dim for space in spaces if not space.outer and _in_each_group(graph, nesting, space)}

    def found(self) -> Maps:
        """The orders, when no round changes one any more."""
        for _ in range(ROUNDS):
            changes = [self._improve(dim) for dim in self._dims]
            if not any(changes):
                break
        return self._maps

    def _improve(self, dim: Dim) -> bool:
        """Give a dim its best order, as the others are; whether that is another one."""
        if dim in self._apart:
            return self._improve_in_groups(dim)
        total = self._alike(dim)
        if total is None:
            return False
        order, old = _assigned(total), self._maps.get(dim)
        if isinstance(old, ChannelMap) and _value(total, order) <= _value(total, old.source) + 1e-9 * total.abs().max():
            return False
        self._maps[dim] = ChannelMap(order)
        return True

    def _alike(self, dim: Dim) -> Tensor | None:
        """How much each channel is like each, over all places of the first kind of evidence that knows it."""
        for evidence in self._evidence:
            parts = [self._reduced(term, alike, dim) for term, alike in evidence.of(dim, self._maps)]
            if parts:
                return torch.stack(parts).sum(0)
        return None

    def _reduced(self, term: Term, alike: Tensor, dim: Dim) -> Tensor:
        """From the indices of a product to those of one of its dims: the others in their order, or in the best."""
        sizes = [d.size for d in term]
        alike = alike.reshape(*sizes, *sizes)
        others = [d for d in term if d is not dim]
        place = term.index(dim)
        alike = alike.movedim([place, len(term) + place], [0, 1])
        left = len(others)
        for other in others:  # the first axis of what is left on either side is this one
            alike = alike.movedim(2 + left, 3)
            alike = self._summed(alike, other)
            left -= 1
        return alike

    def _summed(self, alike: Tensor, other: Dim) -> Tensor:
        """`[n, n, m, m, ...]` to `[n, n, ...]`: the sum over the pairs of another dim that belong together."""
        known = self._maps.get(other)
        if isinstance(known, ChannelMap):
            pairs = torch.arange(other.size)
            return alike[:, :, pairs, known.source].sum(2)
        if alike.dim() > 4:  # several that have no order yet: as they come
            return alike.diagonal(dim1=2, dim2=3).sum(-1)
        return alike.amax(3).sum(2)  # at least as much as any order gives

    def _improve_in_groups(self, dim: Dim) -> bool:
        """Give a dim its best order in each group of what it stands inside of."""
        totals: dict[Dim, Tensor] = {}
        for outer, alike in self._in_groups(dim):
            totals[outer] = totals[outer] + alike if outer in totals else alike
        if not totals or set(totals) != set(self._outers[dim]):
            return False
        sources = {}
        for outer, alike in totals.items():
            known = self._maps.get(outer)
            theirs = known.source if isinstance(known, ChannelMap) else torch.arange(outer.size)
            source = torch.arange(dim.size).repeat(outer.size, 1)
            for ours, old in enumerate(theirs.tolist()):
                source[old] = _assigned(alike[ours, old])
            sources[outer] = source
        old_map = self._maps.get(dim)
        same = isinstance(old_map, MapInGroups) and all(
            torch.equal(old_map.sources[outer], source) for outer, source in sources.items()
        )
        self._maps[dim] = MapInGroups(sources)
        return not same

    def _in_groups(self, dim: Dim) -> Iterator[tuple[Dim, Tensor]]:
        """What each place says about the channels in pairs of groups: `[groups, groups, n, n]`."""
        for evidence in self._evidence:
            found = [(term, alike) for term, alike in evidence.of(dim, self._maps) if len(term) == 2]
            for term, alike in found:
                inner = term.index(dim)  # a value may have been transposed
                sides = alike.reshape(*(d.size for d in term), *(d.size for d in term))
                yield term[1 - inner], sides.permute(1 - inner, 3 - inner, inner, 2 + inner)
            if found:
                return


def _in_each_group(graph: ModelGraph, nesting: Nesting, space: Space) -> bool:
    """Whether a space may have an order of its own in each group, and stands beside one dim of groups everywhere."""
    if nesting.why_alike(space) is not None:
        return False
    outers = nesting.outers(space)
    terms = [term for _, _, axis in graph.uses[space.dim] for term in axis if space.dim in term]
    free = [tuple(d for d in term if not d.fixed) for term in terms]
    return all(len(term) == 2 and term[0] in outers and term[1] is space.dim for term in free)


def _assigned(alike: Tensor) -> Tensor:
    """For each row its column, such that the sum is largest."""
    from scipy.optimize import linear_sum_assignment  # half a second of every other command

    return torch.from_numpy(linear_sum_assignment(alike.numpy(), maximize=True)[1])


def _value(alike: Tensor, order: Tensor) -> Tensor:
    return alike[torch.arange(len(order)), order].sum()


def _terms(axis: Axis) -> Iterator[tuple[int, Term]]:
    """The terms of an axis that have free dims, each of them once, with where they begin."""
    offset = 0
    for term in axis:
        free = [dim for dim in term if not dim.fixed]
        if free and len(set(free)) == len(free):
            yield offset, term
        offset += term_size(term)


def _free(term: Term) -> Term:
    return tuple(dim for dim in term if not dim.fixed)


def _rows(tensor: Tensor, index: int, offset: int, term: Term) -> Tensor:
    """The free indices of a term on one axis of a tensor, and all the rest beside them: `[free, rest]`."""
    part = tensor.narrow(index, offset, term_size(term)).movedim(index, 0)
    part = part.reshape(*(dim.size for dim in term), -1)
    free = [place for place, dim in enumerate(term) if not dim.fixed]
    return part.movedim(free, list(range(len(free)))).reshape(term_size(_free(term)), -1)


class _Weights:
    """Inner products of weights, with the channels on their other axes in the order that has been found."""

    def __init__(self, graph: ModelGraph, like: ModelGraph, names: Mapping[str, str]) -> None:
        self._graph = graph
        theirs = like.tensors()
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, tensor in graph.tensors().items():
            if name not in names or not tensor.is_floating_point() or graph.types.parameters[name].counts:
                continue
            other = theirs[names[name]]
            if other.shape != tensor.shape:
                raise SurgeryError(
                    f"align: {name} is {list(tensor.shape)} in one network and {list(other.shape)} in the other"
                )
            self._pairs[name] = (other.detach().double().cpu(), tensor.detach().double().cpu())

    def of(self, dim: Dim, maps: Maps) -> Iterator[tuple[Term, Tensor]]:
        """The places whose other channels have an order; where there is none, the norms of all."""
        places = [(name, index) for name, index, _ in self._graph.uses.get(dim, []) if name in self._pairs]
        told = [place for place in places if self._is_told(*place, dim, maps)]
        for name, index in told or places:
            ours, theirs = self._pairs[name]
            axes = self._graph.types.parameters[name].axes
            if told:
                theirs = _reordered(theirs, axes, index, maps)
            for offset, term in _terms(resolve(axes[index])):
                if dim not in term:
                    continue
                a, b = (_rows(tensor, index, offset, term) for tensor in (ours, theirs))
                if not told:
                    a, b = (rows.norm(dim=1, keepdim=True) for rows in (a, b))
                yield _free(term), a @ b.t()

    def _is_told(self, name: str, index: int, dim: Dim, maps: Maps) -> bool:
        """Whether every channel on the other axes of a parameter has an order already."""
        axes = self._graph.types.parameters[name].axes
        others = {d for n, axis in enumerate(axes) if n != index for term in resolve(axis) for d in term if not d.fixed}
        return all(other in maps for other in others) or (dim in others and dim in maps)


def _reordered(tensor: Tensor, axes: Sequence[Axis], apart_from: int, maps: Maps) -> Tensor:
    """A tensor whose channels are in the order that has been found, on all axes but one."""
    edit = Edit(maps)
    for index in range(len(axes)):
        if index == apart_from:
            continue
        try:
            lifted = edit.lift(axes[index])
        except ValueError:  # an order in each group that another axis tells
            continue
        if lifted is not None:
            tensor = tensor.index_select(index, lifted.source)
    return tensor


class _Activations:
    """Correlations of what is read, over all examples and places in them."""

    def __init__(
        self,
        graph: ModelGraph,
        like: ModelGraph,
        nodes: Mapping[fx.Node, fx.Node],
        nesting: Nesting,
        examples: Iterable[Tensor],
    ) -> None:
        self._found: dict[Dim, list[tuple[Term, Tensor]]] = {}
        outers = {space.dim: nesting.outers(space) for space in graph.spaces}
        read = {access.value: graph.types.types[access.value] for access in graph.types.readers if access.value}
        places = [
            (node, place, _Correlation())
            for node, typed in read.items()
            if isinstance(typed, TensorType)
            for place in _places(typed, outers)
        ]
        watched = {node for node, _, _ in places}
        seen = 0
        for x in examples:
            seen += len(x)
            theirs, ours = _values(graph, watched, x), _values(like, {nodes[node] for node in watched}, x)
            for node, place, correlation in places:
                correlation.add(place.rows(ours[nodes[node]]), place.rows(theirs[node]))
        if not seen:
            raise SurgeryError("align: no example to compare activations on; give some, or none at all for the weights")
        for _, place, correlation in places:
            for dim in place.free:
                self._found.setdefault(dim, []).append((place.free, correlation.matrix()))

    def of(self, dim: Dim, maps: Maps) -> Iterator[tuple[Term, Tensor]]:  # noqa: ARG002
        """Every place at which the dim is read."""
        yield from self._found.get(dim, ())


@dataclass(frozen=True)
class _Place:
    """A term on one axis of a value; the axis of the heads or groups that it stands in, if that is another one."""

    index: int
    offset: int
    term: Term
    beside: int | None = None
    outer: Term = ()

    @property
    def free(self) -> Term:
        """The dims of its channels, outermost first."""
        return (*self.outer, *_free(self.term))

    def rows(self, value: Tensor) -> Tensor:
        """`[channels, rest]` of a value."""
        if self.beside is None:
            return _rows(value, self.index, self.offset, self.term)
        part = value.narrow(self.index, self.offset, term_size(self.term))
        return part.movedim([self.beside, self.index], [0, 1]).reshape(term_size(self.free), -1)


def _places(typed: TensorType, outers: Mapping[Dim, Sequence[Dim]]) -> Iterator[_Place]:
    """Where channels stand in a value."""
    alone = {axis[0][0]: index for index, axis in enumerate(map(resolve, typed.axes)) if len(axis) == len(axis[0]) == 1}
    for index, axis in enumerate(typed.axes):
        for offset, term in _terms(resolve(axis)):
            around = [dim for dim in outers.get(term[0], ()) if dim in alone] if len(term) == 1 else []
            if around:
                yield _Place(index, offset, term, alone[around[0]], (around[0],))
            else:
                yield _Place(index, offset, term)


class _Correlation:
    """Pearson's correlation of each row of one matrix with each row of another, over columns that come in batches."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[Tensor] = []

    def add(self, a: Tensor, b: Tensor) -> None:
        """Columns `[n, columns]` of both."""
        a, b = a.detach().double(), b.detach().double()  # a parameter that is read as it is has a gradient
        sums = [a.sum(1), b.sum(1), a.square().sum(1), b.square().sum(1), a @ b.t()]
        self._sums = [x + y for x, y in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._count += a.shape[1]

    def matrix(self) -> Tensor:
        """`[n, n]`; 0 where one of the two does not vary."""
        a, b, aa, bb, ab = (total / self._count for total in self._sums)
        spread = ((aa - a * a).clamp_min(0).sqrt()[:, None] * (bb - b * b).clamp_min(0).sqrt()).clamp_min(1e-12)
        return ((ab - a[:, None] * b) / spread).cpu()


class _Recorder(fx.Interpreter):
    """Runs a network and keeps the values of some nodes."""

    def __init__(self, module: fx.GraphModule, watched: set[fx.Node]) -> None:
        super().__init__(module)
        self._watched = watched
        self.seen: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n in self._watched:
            self.seen[n] = value.clone()  # it may be written over
        return value


def _values(graph: ModelGraph, watched: set[fx.Node], x: Tensor) -> dict[fx.Node, Tensor]:
    recorder = _Recorder(graph.module, watched)
    with evaluating(graph.module), torch.no_grad():
        recorder.run(x.to(next(graph.module.parameters()).device))
    return recorder.seen
