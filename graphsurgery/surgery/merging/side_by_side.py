"""Tensors of several networks as one: slices of a family, blocks side by side, and means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from graphsurgery.axes.algebra import Axis, Dim, Term, dims_of, resolve
from graphsurgery.axes.types import ParameterType, TensorType, tensor_types
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.records import is_record
from graphsurgery.network.paths import place_of
from graphsurgery.network.values.dtypes import holds_numbers
from graphsurgery.surgery.merging.matching import match_dims, match_nodes, match_parameters
from graphsurgery.surgery.remapping.kept_numbers import numbers_of


class MatchedTeachers:
    """Teachers matched to the first; knows the size and the place of everything in their direct sum.

    Attributes:
        graphs: the teachers.
        stored: the tensors of each, by name.
        nodes: the node of each teacher for every node of the first.
        names: the parameter of each for every parameter of the first.
        dims: the dim of each for every free dim of the first.
        unlike: the nodes of the first that calculate with other numbers than those of the others, with what they are.
        resized: those whose values have other sizes in some network than the types of the first say, with the sizes.
        summed: the dims along which the teachers stand side by side.
    """

    def __init__(self, graphs: Sequence[ModelGraph], *, agree: bool = True) -> None:
        """Match the networks; their outputs may have unlike sizes where they need not agree."""
        self.graphs = graphs
        self.stored = [g.tensors() for g in graphs]
        first = graphs[0]
        inputs = [tuple(s.sizes(1) for s in g.inputs) for g in graphs]
        if any(shapes != inputs[0] for shapes in inputs):
            raise SurgeryError(f"concatenate: the networks take inputs of different shapes: {inputs}")
        self.nodes = [{n: n for n in first.module.graph.nodes}]
        self.names = [{name: name for name in first.types.parameters}]
        self.dims: list[dict[Dim, Dim]] = [{}]
        self.unlike: dict[fx.Node, str] = {}
        unlike: dict[str, str] = {}
        for position, other in enumerate(graphs[1:], 2):
            nodes = match_nodes(first, other, position)
            names = match_parameters(first, other, nodes)
            self.nodes.append(nodes)
            self.names.append(names)
            self.dims.append(match_dims(first, other, names, unlike))
            self.unlike.update(_unlike_numbers(first, nodes))
        self._same: dict[str, bool] = {}
        self._obstacles: dict[str, str | None] = dict(unlike)
        self.summed = {space.dim for space in first.spaces if space.outer}
        self._ragged = {
            space.dim
            for space in first.spaces
            if not space.outer and len({self.dim_size(t, space.dim) for t in range(len(graphs))}) > 1
        }
        self.resized = {node: why for node in first.module.graph.nodes if (why := self._other_sizes(node))}
        for node, why in self.resized.items():
            if hands_on(node) and agree:
                raise SurgeryError(f"concatenate: {next(iter(unlike.values()), why)}")
        self.unlike.update(self.resized)

    def _other_sizes(self, node: fx.Node) -> str:
        """How the value of a node is laid out otherwise in another network than side by side; empty where it is not."""
        for typed in tensor_types(self.graphs[0].types.types[node]):
            ragged = [dim for axis in typed.axes for dim in dims_of(axis) if dim in self._ragged]
            if ragged:
                sizes = [self.dim_size(t, ragged[0]) for t in range(len(self.graphs))]
                return f"{place_of(node)} has groups or heads of {sizes} channels in the networks"
        types = self.graphs[0].types
        held = types.parameters.get(types.canonical.get(str(node.target), "")) if node.op == "get_attr" else None
        if held is not None and held.counts:
            return ""  # each network has groups of its own
        first, *others = (_shapes(_value(nodes[node])) for nodes in self.nodes)
        tensors = tensor_types(types.types[node])
        for teacher, shapes in enumerate(others, 1):
            batches = self.graphs[0].batch, self.graphs[teacher].batch
            expected = [tuple(self.own_size(teacher, axis) for axis in tensor.axes) for tensor in tensors]
            if batches[0] == batches[1] and expected != shapes:
                return f"{place_of(node)} gives {first} in one network and {shapes} in another; parents must agree"
        return ""

    def can_be_joined(self, node: fx.Node) -> bool:
        """Whether what every network gives can stand side by side in one tensor: on one axis, nothing in common."""
        typed = self.graphs[0].types.types[node]
        if node in self.resized or not isinstance(typed, TensorType):
            return False
        parts = [[sum(dim in self.summed for dim in term) for term in resolve(axis)] for axis in typed.axes]
        sides = [counts for counts in parts if any(counts)]
        return len(sides) == 1 and all(count == 1 for count in sides[0])

    def dim_size(self, teacher: int, dim: Dim) -> int:
        """Size of a dim in one teacher."""
        return self.dims[teacher].get(dim, dim).size

    def own_size(self, teacher: int, axis: Axis) -> int:
        """Number of indices of the axis in one teacher."""
        return sum(prod(self.dim_size(teacher, dim) for dim in term) for term in resolve(axis))

    def size(self, axis: Axis) -> int:
        """New number of indices of the axis."""
        return sum(self._term_size(term) for term in resolve(axis))

    def _term_size(self, term: Term) -> int:
        size = 1
        for dim in term:
            size *= self._total(dim)
        return size

    def _total(self, dim: Dim) -> int:
        if dim not in self.summed:
            return dim.size
        return sum(self.dim_size(t, dim) for t in range(len(self.graphs)))

    def places(self, teacher: int, axis: Axis) -> Tensor:
        """Where the indices of a teacher's axis stand in the direct sum; everywhere on what is not summed."""
        found, offset = [torch.zeros(0, dtype=torch.int64)], 0
        for term in resolve(axis):
            place = torch.zeros(1, dtype=torch.int64)
            for dim in term:
                start = sum(self.dim_size(t, dim) for t in range(teacher)) if dim in self.summed else 0
                inner = torch.arange(start, start + self.dim_size(teacher, dim))
                place = (place[:, None] * self._total(dim) + inner).reshape(-1)
            found.append(place + offset)
            offset += self._term_size(term)
        return torch.cat(found)

    def runs(self, teacher: int, axis: Axis) -> list[tuple[int, int, int]]:
        """A teacher's axis in pieces that are whole in the direct sum: its start here, its start there, its length."""
        return list(_runs(self.places(teacher, axis)))

    def is_summed(self, axis: Axis) -> bool:
        """Whether the teachers stand side by side on this axis."""
        return any(dim in self.summed for term in resolve(axis) for dim in term)

    def tensors(self, name: str) -> list[Tensor]:
        """A parameter or buffer in every teacher."""
        return [stored[names[name]].detach() for stored, names in zip(self.stored, self.names, strict=True)]

    def same_everywhere(self, name: str) -> bool:
        """Whether all teachers have the same values there."""
        if name not in self._same:
            first, *others = self.tensors(name)
            self._same[name] = all(first.shape == other.shape and torch.equal(first, other) for other in others)
        return self._same[name]

    def is_averaged(self, name: str) -> bool:
        """Whether a parameter reads the teachers' channels into one for all, so that it gives a mean."""
        typed = self.graphs[0].types.parameters[name]
        sides = [index for index, axis in enumerate(typed.axes) if self.is_summed(axis)]
        return bool(sides) and all(self._is_read_whole(typed, index) for index in sides)

    def obstacle(self, name: str) -> str | None:
        """Why a parameter or buffer has no direct sum; None where it has one."""
        if name not in self._obstacles:
            self._obstacles[name] = self._find_obstacle(name)
        return self._obstacles[name]

    def _find_obstacle(self, name: str) -> str | None:
        typed, tensors = self.graphs[0].types.parameters.get(name), self.tensors(name)
        if typed is None:
            return None
        if any(dim in self._ragged for axis in typed.axes for dim in dims_of(axis)):
            return f"{name} has groups or heads of other sizes in each network"
        sides = [index for index, axis in enumerate(typed.axes) if self.is_summed(axis)]
        if not sides:
            numbers = holds_numbers(tensors[0]) or self.same_everywhere(name)
            return None if numbers else f"{name} holds other indices in each network"
        if typed.counts and sides == [0]:
            places = torch.cat([self.places(teacher, typed.axes[0]) for teacher in range(len(tensors))])
            shared = len(places.unique()) < len(places)
            return f"{name} is of a norm over channels that the networks share" if shared else None
        if all(self._is_read_whole(typed, index) for index in sides):
            return None
        common = [[self._common(teacher, axis) for axis in typed.axes] for teacher in range(len(tensors))]
        if not all(len(places) for places in common[0]):
            return None
        where = [torch.meshgrid(*places, indexing="ij") for places in common]
        first, *others = (t.cpu()[places] for t, places in zip(tensors, where, strict=True))
        if all(torch.equal(first, other) for other in others):
            return None
        return f"{name} differs on frozen channels, which the networks would have to share"

    def direct_sum(self, typed: ParameterType, first: Tensor) -> Tensor:
        """One parameter of the concatenated network; one that has no direct sum stays that of the first teacher."""
        if self.obstacle(typed.name) is not None:
            return first.clone()
        tensors = [t.to(first.device) for t in self.tensors(typed.name)]
        sides = [index for index, axis in enumerate(typed.axes) if self.is_summed(axis)]
        if not sides:
            return _mean(tensors) if holds_numbers(first) else first.clone()
        if typed.counts and sides == [0]:
            return _groups(self, typed, tensors)
        new = first.new_zeros([self.size(axis) for axis in typed.axes])
        averaged = all(self._is_read_whole(typed, index) for index in sides)
        for teacher, tensor in enumerate(tensors):
            block = tensor / len(tensors) if averaged else tensor
            places = [self.places(teacher, axis) for axis in typed.axes]
            runs = [_as_slice(place) for place in places]
            if all(run is not None for run in runs):
                new[tuple(runs)] = new[tuple(runs)] + block if averaged else block
            else:
                where = torch.meshgrid(*(place.to(first.device) for place in places), indexing="ij")
                new[where] = new[where] + block if averaged else block
        return new

    def _is_read_whole(self, typed: ParameterType, index: int) -> bool:
        """Whether a weight sums over all that is summed on an axis, and hands on nothing of it as groups."""
        read = set(dims_of(typed.reads.get(index, ())))
        return all(dim in read for dim in dims_of(typed.axes[index]) if dim in self.summed)

    def _common(self, teacher: int, axis: Axis) -> Tensor:
        """The indices of an axis of one teacher along which the teachers do not stand side by side."""
        found, offset = [torch.zeros(0, dtype=torch.int64)], 0
        for term in resolve(axis):
            size = self.own_size(teacher, (term,))
            if not any(dim in self.summed for dim in term):
                found.append(torch.arange(offset, offset + size))
            offset += size
        return torch.cat(found)


def _groups(family: MatchedTeachers, typed: ParameterType, tensors: list[Tensor]) -> Tensor:
    """The members of every network's groups, which are normalised by themselves."""
    new = tensors[0].new_zeros(family.size(typed.axes[0]), sum(tensor.shape[1] for tensor in tensors))
    start = 0
    for teacher, tensor in enumerate(tensors):
        places = family.places(teacher, typed.axes[0])
        new[places, start : start + tensor.shape[1]] = tensor
        start += tensor.shape[1]
    return new


def _unlike_numbers(first: ModelGraph, nodes: Mapping[fx.Node, fx.Node]) -> Iterator[tuple[fx.Node, str]]:
    """The nodes that calculate with a number that is computed from a width, is no size, and is another one there."""
    types = first.types
    for node in first.module.graph.nodes:
        sizes = types.sized.get(node, frozenset())
        if node in types.rewrites and not sizes:
            continue
        for number in numbers_of(node, sizes):
            mine, theirs = number.meta["value"], nodes[number].meta["value"]
            if mine != theirs:
                yield node, f"{place_of(node)} uses {mine} in one network and {theirs} in another"


def hands_on(node: fx.Node) -> bool:
    """Whether a node is the output, or a named tuple or dataclass of what is given."""
    return node.op == "output" or is_record(node.target)


def _value(node: fx.Node) -> Any:
    """What a node gives; of the output, what it is given, as it keeps the value that it was traced with."""
    return fx.map_arg(node.args[0], lambda source: source.meta["value"]) if node.op == "output" else node.meta["value"]


def _shapes(value: Any) -> list[tuple[int, ...]]:
    """The shapes of all tensors in a value, in order."""
    if isinstance(value, Tensor):
        return [tuple(value.shape)]
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return [shape for part in value for shape in _shapes(part)]
    return [shape for part in value.values() for shape in _shapes(part)] if isinstance(value, Mapping) else []


def _runs(places: Tensor) -> Iterator[tuple[int, int, int]]:
    """Where consecutive places begin, the first of them, and how many they are."""
    borders = (places.diff() != 1).nonzero().flatten() + 1
    starts = [0, *borders.tolist()]
    for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
        yield start, int(places[start]), stop - start


def _as_slice(places: Tensor) -> slice | None:
    """Consecutive places as a slice, which is far faster to write to."""
    if not len(places):
        return slice(0)
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == len(places) and bool((places.diff() == 1).all()) else None


def _mean(tensors: list[Tensor]) -> Tensor:
    if all(torch.equal(tensors[0], t) for t in tensors[1:]):
        return tensors[0].clone()
    return torch.stack(tensors).mean(0)
