"""Named tuples and dataclasses that a network gives: calls of their class, in front of the output.

Everywhere else they are what they hold: a tuple, or a dict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx


def is_record(target: Any) -> bool:
    """Whether what a node calls is the class of a named tuple or of a dataclass."""
    if not isinstance(target, type):
        return False
    return _is_named_tuple(target) or dataclasses.is_dataclass(target)


def held_by(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What such a class holds that is called like that: a tuple, or a dict by the names of fields."""
    if _is_named_tuple(target):
        named = {**dict(zip(target._fields, args, strict=False)), **kwargs}
        return tuple(named[name] for name in target._fields if name in named)
    names = [field.name for field in dataclasses.fields(target) if field.init]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def opened(output: Any) -> Any:
    """What a network gives, with what records hold in their place."""

    def inside(node: fx.Node) -> Any:
        return opened(held_by(node.target, node.args, node.kwargs)) if is_record(node.target) else node

    return fx.map_arg(output, inside)


def with_records(output: Any, graph: fx.Graph) -> Any:
    """What a network gives, with a call of its class for each named tuple in it; fx would make a tuple of it."""
    if isinstance(output, tuple) and _is_named_tuple(type(output)):
        made = graph.call_function(type(output), tuple(with_records(part, graph) for part in output))
        made.meta["value"] = fx.map_arg(made.args, lambda node: node.meta["value"])
        return made
    if isinstance(output, (tuple, list)):
        return type(output)([with_records(part, graph) for part in output])
    if isinstance(output, dict):
        return {key: with_records(part, graph) for key, part in output.items()}
    return output


def ends(graph: fx.Graph) -> list[fx.Node]:
    """The output of a graph, and the records in front of it: all that only hands on."""
    found = [next(iter(reversed(graph.nodes)))]
    for node in found:
        found += [source for source in node.all_input_nodes if is_record(source.target) and source not in found]
    return found


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")
