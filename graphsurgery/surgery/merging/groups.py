"""Norms across channels of several networks as one: each network has groups of its own."""

from __future__ import annotations

from dataclasses import replace

import torch

from graphsurgery.axes.algebra import dims_of, size_of
from graphsurgery.axes.maps import Edit
from graphsurgery.graph import ModelGraph
from graphsurgery.network.copying import meta_of
from graphsurgery.surgery.equivalents.grouping import PLAIN, group
from graphsurgery.surgery.merging.direct_sum import separable
from graphsurgery.surgery.remapping.remap import rebuild


def in_groups(graph: ModelGraph) -> ModelGraph:
    """The same network, in which every norm across channels that stand side by side in a direct sum has members.

    The tensors share their memory with those of the network.
    """
    outer = {space.dim for space in graph.spaces if space.outer}
    types = graph.types
    found = [
        mixing
        for mixing in types.mixings
        if mixing.kind in PLAIN and separable(graph, mixing) and not outer.isdisjoint(dims_of(mixing.axis))
    ]
    if not found:
        return graph
    new = rebuild(graph, Edit({}), lambda _, tensor: tensor)
    nodes = {node.name: node for node in new.module.graph.nodes}
    for mixing in found:
        assert mixing.dim is not None
        channels = size_of(types.types[mixing.node][mixing.dim])
        group(new, nodes[mixing.node.name], mixing.kind, torch.ones(channels))
    new.module.recompile()
    return replace(new, open_outputs=graph.open_outputs)


def count_groups(graph: ModelGraph) -> None:
    """Let the nodes that give tensors say how large these are, in place: members have the groups of all networks."""
    tensors = graph.tensors()
    for node in graph.module.graph.nodes:
        if node.op == "get_attr" and str(node.target) in tensors:
            node.meta["value"] = meta_of(tensors[str(node.target)])
