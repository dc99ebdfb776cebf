"""Tensors of several networks as one: slices of a family, blocks side by side, and means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from graphsurgery.axes.algebra import Axis, Dim, Term, dims_of, resolve, term_size
from graphsurgery.axes.types import ParameterType
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.values.dtypes import holds_numbers
from graphsurgery.surgery.kept_numbers import numbers_of
from graphsurgery.surgery.merging.matching import match_dims, match_nodes, match_parameters


class Family:
    """Teachers matched to the first; knows the size and the place of everything in their direct sum."""

    def __init__(self, graphs: Sequence[ModelGraph]) -> None:
        self.graphs = graphs
        self.stored = [g.tensors() for g in graphs]
        first = graphs[0]
        inputs = [tuple(s.sizes(1) for s in g.inputs) for g in graphs]
        if any(shapes != inputs[0] for shapes in inputs):
            raise SurgeryError(f"concatenate: the networks take inputs of different shapes: {inputs}")
        self.nodes = [{n: n for n in first.module.graph.nodes}]
        self.names = [{name: name for name in first.types.parameters}]
        self.dims: list[dict[Dim, Dim]] = [{}]
        for position, other in enumerate(graphs[1:], 2):
            nodes = match_nodes(first, other, position)
            names = match_parameters(first, other, nodes)
            self.nodes.append(nodes)
            self.names.append(names)
            self.dims.append(match_dims(first, other, names))
            _check_numbers(first, nodes)
        self.summed = {space.dim for space in first.spaces if space.outer}
        for space in first.spaces:
            sizes = [self.dim_size(t, space.dim) for t in range(len(graphs))]
            if not space.outer and len(set(sizes)) > 1:
                raise SurgeryError(
                    f"concatenate: space {space.name} lies inside groups or heads, so it must have one size in all"
                    f" networks, not {sizes}"
                )

    def dim_size(self, teacher: int, dim: Dim) -> int:
        """Size of a dim in one teacher."""
        return self.dims[teacher].get(dim, dim).size

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
        found, offset = [], 0
        for term in resolve(axis):
            place = torch.zeros(1, dtype=torch.int64)
            for dim in term:
                start = sum(self.dim_size(t, dim) for t in range(teacher)) if dim in self.summed else 0
                inner = torch.arange(start, start + self.dim_size(teacher, dim))
                place = (place[:, None] * self._total(dim) + inner).reshape(-1)
            found.append(place + offset)
            offset += self._term_size(term)
        return torch.cat(found)

    def is_summed(self, axis: Axis) -> bool:
        """Whether the teachers stand side by side on this axis."""
        return any(dim in self.summed for term in resolve(axis) for dim in term)

    def tensors(self, name: str) -> list[Tensor]:
        """A parameter or buffer in every teacher."""
        return [stored[names[name]].detach() for stored, names in zip(self.stored, self.names, strict=True)]

    def same_everywhere(self, name: str) -> bool:
        """Whether all teachers have the same values there."""
        first, *others = self.tensors(name)
        return all(first.shape == other.shape and torch.equal(first, other) for other in others)

    def direct_sum(self, typed: ParameterType, first: Tensor) -> Tensor:
        """One parameter of the concatenated network."""
        tensors = [t.to(first.device) for t in self.tensors(typed.name)]
        sides = [index for index, axis in enumerate(typed.axes) if self.is_summed(axis)]
        if not sides:
            return _mean(tensors) if holds_numbers(first) else first.clone()
        if typed.counts and sides == [0]:
            return self._groups(typed, tensors)
        new = first.new_zeros([self.size(axis) for axis in typed.axes])
        averaged = all(self._is_read_whole(typed, index) for index in sides)
        if not averaged:
            self._check_common(typed, tensors)
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

    def _groups(self, typed: ParameterType, tensors: list[Tensor]) -> Tensor:
        """The members of every network's groups, which are normalised by themselves."""
        new = tensors[0].new_zeros(self.size(typed.axes[0]), sum(tensor.shape[1] for tensor in tensors))
        start = 0
        for teacher, tensor in enumerate(tensors):
            places = self.places(teacher, typed.axes[0])
            if bool(new[places].any()):
                raise SurgeryError(f"concatenate: {typed.name} is of a norm over channels that the networks share")
            new[places, start : start + tensor.shape[1]] = tensor
            start += tensor.shape[1]
        return new

    def _is_read_whole(self, typed: ParameterType, index: int) -> bool:
        """Whether a weight sums over all that is summed on an axis, and hands on nothing of it as groups."""
        read = set(dims_of(typed.reads.get(index, ())))
        return all(dim in read for dim in dims_of(typed.axes[index]) if dim in self.summed)

    def _check_common(self, typed: ParameterType, tensors: list[Tensor]) -> None:
        """What stands in one place for all teachers must be the same in all."""
        common = [self._common(axis) for axis in typed.axes]
        if not all(len(places) for places in common):
            return
        where = torch.meshgrid(*common, indexing="ij")
        first, *others = (t.cpu()[where] for t in tensors)
        if not all(torch.equal(first, other) for other in others):
            raise SurgeryError(
                f"concatenate: {typed.name} differs on frozen channels, which the networks would have to share"
            )

    def _common(self, axis: Axis) -> Tensor:
        """The indices of an axis, in any teacher, along which the teachers do not stand side by side."""
        found, offset = [torch.zeros(0, dtype=torch.int64)], 0
        for term in resolve(axis):
            size = term_size(term)
            if not any(dim in self.summed for dim in term):
                found.append(torch.arange(offset, offset + size))
            offset += size
        return torch.cat(found)


def _check_numbers(first: ModelGraph, nodes: Mapping[fx.Node, fx.Node]) -> None:
    """A number that is computed from a width, and is no size, has one value in the direct sum."""
    types = first.types
    for node in first.module.graph.nodes:
        sizes = types.sized.get(node, frozenset())
        if node in types.rewrites and not sizes:
            continue
        for number in numbers_of(node, sizes):
            mine, theirs = number.meta["value"], nodes[number].meta["value"]
            if mine != theirs:
                raise SurgeryError(f"concatenate: {node.name} uses {mine} in one network and {theirs} in another")


def _as_slice(places: Tensor) -> slice | None:
    """Consecutive places as a slice, which is far faster to write to."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == len(places) and bool((places.diff() == 1).all()) else None


def _mean(tensors: list[Tensor]) -> Tensor:
    if all(torch.equal(tensors[0], t) for t in tensors[1:]):
        return tensors[0].clone()
    return torch.stack(tensors).mean(0)
