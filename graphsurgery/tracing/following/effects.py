"""What fx leaves out of a graph, put in after the trace: regions without gradients, and tensors that are made anew."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from graphsurgery.network.aliasing import acts_in_place, makes_new
from graphsurgery.network.paths import has_tensors

NO_GRADIENT = "no gradient"
"""The mark, in `node.meta`, of what was computed where no gradients are wanted."""


def cut_gradients(graph: fx.Graph) -> None:
    """What was computed without gradients is detached where something with gradients, or the caller, reads it."""
    for node in list(graph.nodes):
        if NO_GRADIENT not in node.meta or node.op in ("get_attr", "placeholder", "output"):
            continue
        readers = [user for user in node.users if NO_GRADIENT not in user.meta or user.op == "output"]
        if not readers or not has_tensors(node.meta["value"]):
            continue
        cut = _detached(graph, node)
        for reader in readers:
            if reader not in cut:
                _read_instead(reader, {node: cut[node]})


def _read_instead(reader: fx.Node, others: Mapping[fx.Node, Any]) -> None:
    reader.args, reader.kwargs = fx.map_arg((reader.args, reader.kwargs), lambda node: others.get(node, node))


def _detached(graph: fx.Graph, node: fx.Node) -> dict[fx.Node, Any]:
    """What stands for a node, and for all that it takes to make that, where its gradient is cut."""
    value = node.meta["value"]
    if isinstance(value, Tensor):
        with graph.inserting_after(node):
            new = graph.call_method("detach", (node,))
        new.meta["value"] = value
        return {node: new, new: new}
    made: dict[fx.Node, Any] = {}
    parts = []
    keys = list(value) if isinstance(value, Mapping) else range(len(value))
    last = node
    for key in keys:
        with graph.inserting_after(last):
            part = graph.call_function(operator.getitem, (node, key))
        part.meta = {"value": value[key], NO_GRADIENT: True}
        below = _detached(graph, part) if has_tensors(value[key]) else {part: part}
        made |= below | {part: below[part]}
        parts.append(below[part])
        last = part
    made[node] = dict(zip(keys, parts, strict=True)) if isinstance(value, Mapping) else tuple(parts)
    return made


def own_constants(graph: fx.Graph, root: nn.Module) -> None:
    """A tensor that the forward makes and then writes into is a new one in every call."""
    if not any(str(node.target).startswith("_tensor_constant") for node in graph.find_nodes(op="get_attr")):
        return
    written = set()
    for node in graph.nodes:
        if node.all_input_nodes and acts_in_place(root, node):
            base = node.all_input_nodes[0]
            while base.all_input_nodes and not makes_new(root, base):
                base = base.all_input_nodes[0]
            if base.op == "get_attr" and str(base.target).startswith("_tensor_constant"):
                written.add(base.target)
    for name in written:
        first, *others = [node for node in graph.nodes if node.op == "get_attr" and node.target == name]
        with graph.inserting_after(first):
            clone = graph.call_method("clone", (first,))
        clone.meta["value"] = first.meta["value"]
        readers = dict.fromkeys(user for node in (first, *others) for user in node.users if user is not clone)
        for reader in readers:
            _read_instead(reader, dict.fromkeys((first, *others), clone))
