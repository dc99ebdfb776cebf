"""Norms of several networks as one: each network's channels are a segment of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphsurgery.axes.rules.contraction import set_argument
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.layers import (
    SegmentedLayerNorm,
    segmented_group_norm,
    segmented_layer_norm,
    segmented_normalize,
)
from graphsurgery.surgery.editor import call_instead, setting, vector
from graphsurgery.surgery.merging.direct_sum import separable
from graphsurgery.surgery.merging.side_by_side import Family


def segment_norms(family: Family, new: ModelGraph) -> None:
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
