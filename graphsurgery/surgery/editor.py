"""Edits of a graph: buffers, factors and calls put in, layers that keep only their weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from graphsurgery.graph import ModelGraph
from graphsurgery.network.copying import meta_of
from graphsurgery.network.layers import weigh
from graphsurgery.network.paths import put


def weighed(wide: ModelGraph, reader: fx.Node, value: fx.Node, dim: int, factors: Tensor) -> fx.Node:
    """A value times a factor for each index of an axis, in front of who reads it."""
    with reader.graph.inserting_before(reader):
        vector = new_buffer(wide, f"{value.name}_shares", factors)
        product = reader.graph.call_function(weigh, (value, dim, vector))
    product.meta["value"] = value.meta["value"]
    return product


def new_buffer(wide: ModelGraph, name: str, values: Tensor) -> fx.Node:
    """A new buffer and the node that gives it; the graph says where it inserts."""
    path, count = name, 1
    while hasattr(wide.module, path):
        count += 1
        path = f"{name}_{count}"
    # The network may have been cast or moved since it was traced.
    like = next((p for p in wide.module.parameters() if p.is_floating_point()), values)
    tensor = values.to(like)
    wide.module.register_buffer(path, tensor)
    node = wide.module.graph.get_attr(path)
    node.meta["value"] = meta_of(tensor)
    return node


def setting(wide: ModelGraph, node: fx.Node, name: str, position: int, default: Any = None) -> Any:
    """A setting of a norm, of the module or of the call."""
    if node.op == "call_module":
        return getattr(wide.module.get_submodule(str(node.target)), name, default)
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def vector(wide: ModelGraph, node: fx.Node, name: str, position: int) -> fx.Node | None:
    """The node of a norm's weight or bias; the graph says where it inserts."""
    if node.op != "call_module":
        found = setting(wide, node, name, position)
        return found if isinstance(found, fx.Node) else None
    path = f"{node.target}.{name}"
    tensor = getattr(wide.module.get_submodule(str(node.target)), name, None)
    if tensor is None:
        return None
    read = wide.module.graph.get_attr(path)
    read.meta["value"] = meta_of(tensor)
    return read


def call_instead(node: fx.Node, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
    """Let a node call a function instead."""
    wide_module = node.graph.owning_module
    path = str(node.target)
    module_call = node.op == "call_module"
    node.op, node.target, node.args, node.kwargs = "call_function", function, args, kwargs or {}
    if module_call and not any(n.op == "call_module" and n.target == path for n in node.graph.nodes):
        _hollow(wide_module, path)


def _hollow(module: Any, path: str) -> None:
    """Leave nothing of a module but its parameters, under their names, which are read one by one now."""
    parent, _, name = path.rpartition(".")
    old = module.get_submodule(path)
    new = nn.Module()
    new.training = old.training
    for key, parameter in old.named_parameters(recurse=False):
        new.register_parameter(key, parameter)
    setattr(module.get_submodule(parent), name, new)


def put_at(module: nn.Module, path: str, part: Any) -> None:
    """Put a module, parameter or buffer at a path, whose owners are made."""
    *owners, name = path.split(".")
    for owner in owners:
        if owner not in module._modules:
            module.add_module(owner, nn.Module())
        module = module.get_submodule(owner)
    put(module, name, part)
