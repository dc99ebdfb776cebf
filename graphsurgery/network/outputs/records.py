"""Named tuples, dataclasses and mappings of other classes that a network gives: calls of their class before the output.

Everywhere else they are what they hold: a tuple, or a dict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx


def is_record(target: Any) -> bool:
    """Whether what a node calls is the class of a named tuple, of a dataclass or of a mapping."""
    if not isinstance(target, type):
        return False
    return _is_named_tuple(target) or dataclasses.is_dataclass(target) or is_mapping(target)


def is_mapping(kind: type) -> bool:
    """Whether this is a class of mappings other than `dict`."""
    return kind is not dict and issubclass(kind, Mapping)


def call_of(mapping: Mapping[Any, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with which the class of a mapping gives it back: its fields, or a dict of its items.

    None where neither does, as of a `defaultdict`, where it has attributes that such a call would not give it, and for
    a class that code cannot import, as that of read-only views.
    """
    kind, items = type(mapping), dict(mapping)
    if kind.__module__ == "builtins":
        return None
    given: tuple[tuple[Any, ...], dict[str, Any]] = ((items,), {})
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind) if field.init]
        given = ((), {name: items[name] for name in names if name in items})
    try:
        again = kind(*given[0], **given[1])
    except Exception:  # whatever a constructor may object to
        return None
    return given if _same(again, mapping) else None


_PLAIN = (bool, int, float, str, type(None))


def needs_tracer(graph: fx.Graph) -> bool:
    """Whether a graph gives what only a `RecordTracer` records."""
    mappings = any(isinstance(node.target, type) and is_mapping(node.target) for node in graph.nodes)
    return mappings or any(_has_set(node.args) for node in ends(graph))


def _has_set(argument: Any) -> bool:
    if isinstance(argument, Mapping):
        return any(map(_has_set, argument.values()))
    return isinstance(argument, frozenset) or (isinstance(argument, tuple | list) and any(map(_has_set, argument)))


class RecordTracer(fx.Tracer):
    """Records mappings as calls of their class, of which fx makes dicts, and takes a frozenset for a constant."""

    def create_arg(self, a: Any) -> Any:
        kind = type(a)
        if kind is frozenset and all(type(item) in _PLAIN for item in a):
            return a
        if is_mapping(kind):
            given = call_of(a)
            if given is None:
                return self.create_arg(dict(a))
            return self.create_node("call_function", kind, *map(self.create_arg, given))
        return super().create_arg(a)


def _same(a: Any, b: Any) -> bool:
    """Whether two values hold the very same things; a tensor is not compared with another."""
    kind = type(a)
    if a is b:
        return True
    if kind is not type(b):
        return False
    if issubclass(kind, Mapping):
        alike = list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
        return alike and (kind is dict or _same(_attributes(a), _attributes(b)))
    if kind in (tuple, list):
        return len(a) == len(b) and all(_same(*pair) for pair in zip(a, b, strict=True))
    return kind in _PLAIN and a == b


def _attributes(value: Any) -> dict[str, Any]:
    return dict(getattr(value, "__dict__", {}))


def held_by(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What such a class holds that is called like that: a tuple, or a dict by the names of fields."""
    if _is_named_tuple(target):
        named = {**dict(zip(target._fields, args, strict=False)), **kwargs}
        return tuple(named[name] for name in target._fields if name in named)
    if not dataclasses.is_dataclass(target):
        return {**(dict(args[0]) if args else {}), **kwargs}
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
