"""One of several outputs: the network without the others."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from graphsurgery.errors import SurgeryError, near_names
from graphsurgery.graph import ModelGraph
from graphsurgery.network.aliasing import is_harmless
from graphsurgery.network.assembly import Network
from graphsurgery.network.layers import hold
from graphsurgery.network.outputs.records import opened
from graphsurgery.network.paths import has_tensors, modules_of

Place = tuple[fx.Node, tuple[Any, ...]]
"""A node, and the keys that lead to a tensor in what it gives."""


def output_names(graph: ModelGraph) -> list[str]:
    """The tensors that a network gives in evaluation, by their place: `0`, `logits`, `1.aux`."""
    graph.types  # noqa: B018  (nodes have their values then)
    return list(_places(graph))


def with_output(graph: ModelGraph, name: str) -> ModelGraph:
    """The network that gives one of its outputs, a tensor, without the others and what only they need.

    What the other outputs decided by sizes is not checked any more. A network that gives a bare tensor stays as it is.

    Args:
        graph: it is not modified; the tensors are shared.
        name: as in `output_names`.

    Raises:
        SurgeryError: there is no such output; names those that there are.
    """
    names, end = output_names(graph), _end(graph.module.graph)
    if isinstance(end.args[0], fx.Node) and isinstance(end.args[0].meta["value"], Tensor):
        return graph
    if name not in names:
        raise SurgeryError(f"the network has no output {name}; it gives {', '.join(names)}; {near_names(name, names)}")
    module = _reduced(graph.module, *_places(graph)[name])
    record = {"pass": "open", "answer": name, "of": names}
    return replace(graph, module=module, lineage=(*graph.lineage, record), origin=None)


def _end(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(list(graph.nodes)) if node.op == "output")


def _places(graph: ModelGraph) -> dict[str, Place]:
    return dict(_named(opened(_end(graph.module.graph).args[0]), ""))


def _named(argument: Any, place: str) -> Iterator[tuple[str, Place]]:
    """The tensors of an argument of the output, which may be a structure, or a node that gives one."""
    if isinstance(argument, fx.Node):
        for name, keys in _within(argument.meta["value"], place, ()):
            yield name, (argument, keys)
        return
    for key, part in _items(argument):
        yield from _named(part, f"{place}.{key}" if place else str(key))


def _within(value: Any, place: str, keys: tuple[Any, ...]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    if isinstance(value, Tensor):
        yield place or "0", keys
        return
    for key, part in _items(value):
        yield from _within(part, f"{place}.{key}" if place else str(key), (*keys, key))


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (tuple, list)):
        yield from enumerate(value)


def _reduced(module: fx.GraphModule, node: fx.Node, keys: tuple[Any, ...]) -> fx.GraphModule:
    """A network of the same modules that gives what lies in a node's value."""
    kept = _before(node)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for old in module.graph.nodes:
        if old.op != "output" and not (old.target is hold and _asks_others(old, kept)):
            copies[old] = graph.node_copy(old, copies.__getitem__)
            copies[old].meta = dict(old.meta)
    answer, value = copies[node], node.meta["value"]
    for key in keys:
        value = value[key]
        answer = graph.call_function(operator.getitem, (answer, key))
        answer.meta["value"] = value
    graph.output(answer).meta["value"] = value
    for new in reversed(list(graph.nodes)):
        fixed = new.op in ("placeholder", "output") or new.target is hold
        if not new.users and not fixed and is_harmless(module, new):
            graph.erase_node(new)
    reduced = Network(module, graph, class_name=type(module).__name__)
    parts = modules_of(module)
    for path, part in modules_of(reduced).items():
        part.__dict__["training"] = parts[path].training
    return reduced


def _before(node: fx.Node) -> set[fx.Node]:
    """A node and all that it takes to compute it."""
    found, waiting = {node}, [node]
    while waiting:
        more = [source for source in waiting.pop().all_input_nodes if source not in found]
        found.update(more)
        waiting += more
    return found


def _asks_others(check: fx.Node, kept: set[fx.Node]) -> bool:
    """Whether a check looks at a tensor that is not needed."""
    return any(has_tensors(node.meta["value"]) and node not in kept for node in _before(check))
