"""Concatenate: N trained networks of one topology become one whose outputs are the mean of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphsurgery.axes import Axis, Dim, Term, dims_of, resolve, term_size
from graphsurgery.direct_sum import separable, why_not_the_mean
from graphsurgery.errors import SurgeryError
from graphsurgery.facts import ParameterType, TensorType
from graphsurgery.graph import ModelGraph
from graphsurgery.kept_numbers import numbers_of
from graphsurgery.layers import SegmentedLayerNorm, segmented_group_norm, segmented_layer_norm, segmented_normalize
from graphsurgery.matching import match_dims, match_nodes, match_parameters
from graphsurgery.remap import rebuild
from graphsurgery.rules.contraction import set_argument
from graphsurgery.weighing import call_instead, setting, vector


def concatenate(graphs: Sequence[ModelGraph]) -> ModelGraph:
    """Put teachers side by side: weights become block diagonal, the read into the outputs is averaged.

    The zeros between the blocks are ordinary parameters: training connects the streams. All four vectors of every
    BatchNorm are carried; a LayerNorm, a GroupNorm of one group and a division by a norm over channels keep each
    teacher's own statistics, as a segmented norm. Grouped convolutions and attention get the teachers' groups and heads
    side by side, whose inner sizes must agree.

    Args:
        graphs: two or more typed networks of the same topology; widths may differ. They are not modified.

    Returns:
        A new network; in evaluation mode its outputs are the mean of the teachers' outputs (float64: relative 1e-12).

    Raises:
        SurgeryError: topologies, classes or inner sizes differ, or an operator mixes the streams so that the outputs
            would not be the mean; the message names the node.

    Source: Pašen & Boža, "Merging of neural networks", arXiv:2204.09973, section 3.1.
    """
    if len(graphs) < 2:
        raise SurgeryError(f"concatenate: needs at least two networks, got {len(graphs)}")
    family = _Family(graphs)
    refusal = why_not_the_mean(graphs[0], family.summed, family.same_everywhere)
    if refusal is not None:
        family = _Family([replace(g, open_outputs=True) for g in graphs])
        if why_not_the_mean(family.graphs[0], family.summed, family.same_everywhere) is not None:
            raise SurgeryError(f"concatenate: {refusal}")
    record = {"pass": "concatenate", "teachers": [[dict(r) for r in g.lineage] for g in graphs]}
    new = rebuild(family.graphs[0], family, family.direct_sum, None)
    _segment_norms(family, new)
    if refusal is not None:
        _average_outputs(family, new)
    new.module.recompile()
    return ModelGraph(new.module, new.inputs, (record,))


def _average_outputs(family: _Family, new: ModelGraph) -> None:
    """Where something that is not linear follows the last weights, the streams stay apart up to the outputs."""
    first = family.graphs[0]
    old_output, output = (next(iter(reversed(g.module.graph.nodes))) for g in (first, new))
    copies = {node.name: node for node in new.module.graph.nodes}
    for node in old_output.all_input_nodes:
        typed = first.types.types[node]
        if not isinstance(typed, TensorType):
            raise SurgeryError(f"concatenate: {node.name} gives several outputs that cannot be averaged")
        for index, axis in enumerate(typed.axes):
            if not family.is_summed(axis):
                continue
            sizes = {
                family.dim_size(t, dim) for t in range(len(family.graphs)) for term in resolve(axis) for dim in term
            }
            if len(resolve(axis)) > 1 or len(resolve(axis)[0]) > 1 or len(sizes) > 1:
                raise SurgeryError(f"concatenate: output axis {index} has sizes {sorted(sizes)} in the networks")
            source = copies[node.name]
            with new.module.graph.inserting_before(output):
                apart = new.module.graph.call_method("unflatten", (source, index, (len(family.graphs), *sizes)))
                mean = new.module.graph.call_method("mean", (apart, index))
            output.replace_input_with(source, mean)
            value = source.meta["value"]
            apart.meta["value"] = value.unflatten(index, (len(family.graphs), *sizes))
            mean.meta["value"] = apart.meta["value"].mean(index)


class _Family:
    """Teachers matched to the first; knows the size and the place of everything in their direct sum."""

    def __init__(self, graphs: Sequence[ModelGraph]) -> None:
        self.graphs = graphs
        self.stored = [g.tensors() for g in graphs]
        first = graphs[0]
        inputs = [tuple(s.shape[1:] for s in g.inputs) for g in graphs]
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

    def segments(self, axis: Axis, sizes: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ARG002
        """Set afterwards, from all teachers."""
        return sizes

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
            return _mean(tensors) if first.is_floating_point() else first.clone()
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


def _segment_norms(family: _Family, new: ModelGraph) -> None:
    """Let every norm across the channels of a summed axis normalise each teacher's channels by themselves."""
    graphs = family.graphs
    copies = {node.name: node for node in new.module.graph.nodes}
    for mixing in graphs[0].types.mixings:
        if not separable(graphs[0], mixing) or not family.is_summed(mixing.axis):
            continue
        owner = torch.full((family.size(mixing.axis),), -1)
        for teacher, graph in enumerate(graphs):
            own = _group_of_channel(graph, family.nodes[teacher][mixing.node])
            places = family.places(teacher, mixing.axis)
            if bool((owner[places] >= 0).any()):
                raise SurgeryError(f"{mixing.node.name}: {mixing.kind} over channels that the networks share")
            owner[places] = own + int(owner.max()) + 1
        sizes, groups = _runs(owner)
        if mixing.kind == "group_norm":
            _segment_group_norm(new, copies[mixing.node.name], sizes, groups)
        elif mixing.node.op == "call_module":
            _replace_norm(new.module, str(mixing.node.target), sizes, groups)
        else:
            _segment(copies[mixing.node.name], sizes, groups)


def _segment(node: fx.Node, segments: tuple[int, ...], groups: tuple[int, ...] | None) -> None:
    """The functional form of a norm across channels becomes that of a segmented one."""
    if node.target in (F.normalize, segmented_normalize):
        node.target = segmented_normalize
        options = {name: value for name, value in node.kwargs.items() if name != "out"}
        node.kwargs = options | {"segments": segments, "groups": groups}
        return
    if node.target is not segmented_group_norm:
        node.target = segmented_layer_norm
    set_argument(node, 1, "segments", segments)
    node.kwargs = {("segments" if k == "normalized_shape" else k): v for k, v in node.kwargs.items()}
    if groups is not None:
        set_argument(node, 5, "groups", groups)


def _segment_group_norm(
    new: ModelGraph, node: fx.Node, segments: tuple[int, ...], groups: tuple[int, ...] | None
) -> None:
    """A norm over all channels and positions becomes one for each network."""
    with node.graph.inserting_before(node):
        vectors = [vector(new, node, name, position) for name, position in (("weight", 2), ("bias", 3))]
    eps = setting(new, node, "eps", 4, 1e-5)
    call_instead(node, segmented_group_norm, (node.all_input_nodes[0], segments, *vectors, eps, groups))


def _group_of_channel(graph: ModelGraph, node: fx.Node) -> Tensor:
    """The number of the group that normalises each channel, in one teacher."""
    groups: Any = None
    if node.target is F.group_norm:
        return torch.zeros(node.meta["value"].shape[1], dtype=torch.int64)
    if node.op == "call_module":
        module = graph.module.get_submodule(str(node.target))
        if isinstance(module, nn.GroupNorm):
            return torch.zeros(module.num_channels, dtype=torch.int64)
        if isinstance(module, SegmentedLayerNorm):
            sizes, groups = module.segments, module.groups
        else:
            assert isinstance(module, nn.LayerNorm)
            sizes = tuple(module.normalized_shape)
    elif node.target is F.normalize:
        dim: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 1)
        sizes = (node.meta["value"].shape[dim],)
    elif node.target is segmented_normalize:
        given: Any = node.kwargs
        sizes, groups = given["segments"], given["groups"]
    else:
        written: Any = node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values()))
        sizes = tuple(written.meta["value"] if isinstance(written, fx.Node) else written)
        groups = node.args[5] if len(node.args) > 5 else node.kwargs.get("groups")
    numbers = torch.arange(len(sizes)) if groups is None else torch.tensor(groups)
    return numbers.repeat_interleave(torch.tensor(sizes))


def _runs(owner: Tensor) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Neighbours of one group as segments; the groups only where one has several segments."""
    groups, sizes = (tuple(values.tolist()) for values in torch.unique_consecutive(owner, return_counts=True))
    return sizes, None if len(set(groups)) == len(groups) else groups


def _replace_norm(module: fx.GraphModule, path: str, segments: tuple[int, ...], groups: tuple[int, ...] | None) -> None:
    old = module.get_submodule(path)
    if isinstance(old, SegmentedLayerNorm):
        old.segments, old.groups = segments, groups
        return
    assert isinstance(old, nn.LayerNorm)
    new = SegmentedLayerNorm(segments, old.eps, old.elementwise_affine, old.bias is not None, groups)
    new.weight, new.bias, new.training = old.weight, old.bias, old.training
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
