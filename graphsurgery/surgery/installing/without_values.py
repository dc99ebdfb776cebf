"""Whether a class computes what an edited network does where there are no values to run: two graphs, node by node."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.paths import has_tensors, modules_of, place_of


def has_values(module: nn.Module) -> bool:
    """Whether every tensor of a module has values, so that it can be run."""
    return not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def check_same_graph(graph: ModelGraph, own: ModelGraph, what: str) -> None:
    """Refuse the trace of a class with the edited sizes that is another computation than the edited network.

    What gives tensors is compared one after the other: operator or layer, the tensors and the numbers that it is given,
    and what shapes come out. Numbers that are computed from sizes count by their values at the sizes of the trace.
    Parameters have the same names and shapes; of a buffer that a class computes for itself the values are the same.

    Args:
        graph: the edited network.
        own: the trace.
        what: of whom an error speaks.

    Raises:
        SurgeryError: they differ; the message has the first place.
    """
    graph.types, own.types  # noqa: B018  (nodes have their values then)
    _check_tensors(graph, own, what)
    pairs = [list(_computing(found.module.graph)) for found in (graph, own)]
    numbers = [{node: number for number, node in enumerate(nodes)} for nodes in pairs]
    for edited, mine in zip(*pairs, strict=False):
        if not _alike(_told(graph, edited, numbers[0]), _told(own, mine, numbers[1])):
            raise SurgeryError(
                f"{what} computes something else at {place_of(mine)} than the network at {place_of(edited)}, whose "
                "sizes it has: a number that the edit keeps, or another order; leave the spaces whole that meet there"
            )
    if len(pairs[0]) != len(pairs[1]):
        raise SurgeryError(f"{what} has {len(pairs[1])} operators, the network {len(pairs[0])}: it takes another way")


def _check_tensors(graph: ModelGraph, own: ModelGraph, what: str) -> None:
    mine = own.tensors()
    for name, tensor in graph.tensors().items():
        other = mine.get(name)
        if other is None or other.shape != tensor.shape:
            found = "nothing" if other is None else list(other.shape)
            raise SurgeryError(f"{what} has {found} at {name}, the network {list(tensor.shape)}")
        if isinstance(tensor, nn.Parameter) or tensor is other:
            continue
        if not tensor.is_meta and not other.is_meta and not torch.equal(tensor.to(other), other):
            raise SurgeryError(f"{what} computes other values of {name}; leave the spaces whole that it is made for")


def _computing(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes that give tensors, write into them, or give the result."""
    for node in graph.nodes:
        if node.op in ("placeholder", "output") or node.target is operator.setitem or has_tensors(node.meta["value"]):
            yield node


def _told(graph: ModelGraph, node: fx.Node, numbers: Mapping[fx.Node, int]) -> dict[str, Any]:
    """What a node computes, of what, in words that can be compared between graphs."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}" if n in numbers else n.meta["value"])
    layer = _scalars(modules_of(graph.module)[str(node.target)]) if node.op == "call_module" else None
    return {
        "call": (node.op, node.target, _comparable(args), _comparable(kwargs), layer),
        "spelling": _spelling(getattr(node.target, "__name__", node.target), args, kwargs),
        "result": _comparable(node.meta["value"]),
    }


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two nodes compute the same; a rewrite may have spelled a function as a method, or sizes one by one."""
    if one["result"] != other["result"] or one["call"] == other["call"]:
        return bool(one["result"] == other["result"])
    ops, named = {one["call"][0], other["call"][0]}, [list(told["call"][3]) for told in (one, other)]
    calls = ops == {"call_function", "call_method"} or (len(ops) == 1 and named[0] == named[1])
    return calls and one["call"][4] == other["call"][4] and one["spelling"] == other["spelling"]


def _spelling(name: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """A call by its name, with what it is given one after the other; how a split divides, its results say."""
    if name == "split" and len(args) > 1:
        args, kwargs = (args[0], kwargs.get("dim", args[2] if len(args) > 2 else 0)), {}
    return name, list(_flat((*args, *kwargs.values())))


def _flat(value: Any) -> Iterator[Any]:
    """What nested arguments hold, one after the other."""
    found = _comparable(value)
    if isinstance(value, tuple | list):
        for part in value:
            yield from _flat(part)
    else:
        yield found


def _comparable(value: Any) -> Any:
    """Nested values with shapes and types in the place of tensors, and plain tuples in that of sizes and slices."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, slice):  # where it stops, the shape that comes out says too
        return "slice", value.start or 0, value.step or 1
    if isinstance(value, tuple | list):
        return tuple(map(_comparable, value))
    if isinstance(value, Mapping):
        return {key: _comparable(part) for key, part in value.items()}
    return value


def _scalars(layer: nn.Module) -> dict[str, Any]:
    """The kind of a layer and its settings, with those of what it is made of."""
    found: dict[str, Any] = {}
    for path, part in modules_of(layer).items():
        plain = (bool, int, float, str, tuple, type(None))
        found[path] = type(part).__name__
        found |= {f"{path}.{name}": value for name, value in vars(part).items() if isinstance(value, plain)}
    return found
