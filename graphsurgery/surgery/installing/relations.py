"""What the integers in attributes have to be: the graph of a class next to the edited one, node by node.

The graph of the class has integers that know from which attributes they come (`followed`). Where the edited graph has
another number in the same argument of the same node, the attributes have to give that one.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from graphsurgery.network.layers import hold
from graphsurgery.network.paths import has_tensors, map_values
from graphsurgery.network.values.evaluation import evaluate
from graphsurgery.surgery.installing.followed import Followed, IntegerPlace, Relation

_TENSOR, _END = "tensor", "end"
_MARKS = (_TENSOR, _END)


def relations(own: fx.Graph, edited: fx.Graph) -> list[Relation]:
    """What the followed integers of a graph have to be, to be those of the edited one.

    What was asked of a number, such as whether it divides another, stands last: several numbers may have that answer.

    Args:
        own: the graph of the class, whose nodes have their values; its integers are `Followed`.
        edited: the graph whose numbers are wanted, with values too.
    """
    others = {node.name: node for node in edited.nodes}
    own = _at_the_sizes_of(own, others)
    found: list[Relation] = []
    decided: list[Relation] = []
    unclear: list[tuple[fx.Node, fx.Node]] = []
    for node in own.nodes:
        other = others.get(node.name)
        if node.target is hold:
            decided += _decided(node)
        if other is None or node.target is hold or not has_tensors(node.meta["value"]):
            continue
        pairs = _paired(node, other)
        if pairs is None:
            if _cone(node):
                unclear.append((node, other))
            continue
        found += [Relation(n, w, node.name) for n, w in pairs if isinstance(n, Followed) and type(w) is int and w >= 0]
    known = {place for relation in (*found, *decided) for place in relation.number.sources}
    for node, other in unclear:
        found += _tried(node, other, others, known)
    return [*found, *decided]


def _at_the_sizes_of(own: fx.Graph, others: Mapping[str, fx.Node]) -> fx.Graph:
    """A copy of a graph in which tensors have the shapes of other nodes, and what is computed from shapes follows.

    So a formula such as `x.shape[1] * self.repeats` has the edited width in it.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in own.nodes:
        copies[node] = new = graph.node_copy(node, copies.__getitem__)
        new.name = node.name
        new.meta = {"value": node.meta["value"]}
        if has_tensors(node.meta["value"]):
            same = others.get(node.name)
            new.meta["value"] = node.meta["value"] if same is None else same.meta["value"]
        elif node.op in ("call_function", "call_method") and node.target is not hold:
            with contextlib.suppress(Exception):  # what cannot be computed with the edited sizes says nothing
                new.meta["value"] = evaluate(new, _none)
    return graph


def _decided(check: fx.Node) -> Iterator[Relation]:
    """What an attribute has to be that the class has compared with a size, and found equal: the size as it is now."""
    asked, answer = check.args[:2]
    if not isinstance(asked, fx.Node) or asked.target not in (operator.eq, operator.ne) or len(asked.args) != 2:
        return
    if bool(answer) != (asked.target is operator.eq):
        return
    a, b = (side.meta["value"] if isinstance(side, fx.Node) else side for side in asked.args)
    for number, size in ((a, b), (b, a)):
        if isinstance(number, Followed) and type(size) is int:
            yield Relation(number, size, asked.name)


def _paired(node: fx.Node, other: fx.Node) -> list[tuple[Any, Any]] | None:
    """The numbers that two nodes read, each with that of the other; None where it is not clear which are the same.

    Where a rewrite has spelled a call in another way, a list of sizes is still the list of so many.
    """
    mine, theirs = (list(_numbers((n.args, n.kwargs))) for n in (node, other))
    if not any(isinstance(number, Followed) for number in mine):
        return None
    if node.op == other.op and [n in _MARKS for n in mine] == [n in _MARKS for n in theirs]:
        return list(zip(mine, theirs, strict=True))
    lists = [found for found in _lists((node.args, node.kwargs)) if any(isinstance(n, Followed) for n in found)]
    alike = [found for found in _lists((other.args, other.kwargs)) if lists and len(found) == len(lists[0])]
    return list(zip(lists[0], alike[0], strict=True)) if len(lists) == len(alike) == 1 else None


def _lists(argument: Any) -> Iterator[list[Any]]:
    """The lists and tuples of nothing but integers in arguments."""
    if isinstance(argument, fx.Node):
        argument = argument.meta["value"]
    if isinstance(argument, Mapping):
        argument = list(argument.values())
    if isinstance(argument, tuple | list):
        values = [part.meta["value"] if isinstance(part, fx.Node) else part for part in argument]
        if values and all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            yield values
        for part in argument:
            yield from _lists(part)


def _numbers(argument: Any) -> Iterator[Any]:
    """The integers in arguments, and a mark for each tensor and each open end; what else there is, is left out."""
    if isinstance(argument, fx.Node):
        argument = argument.meta["value"]
        if has_tensors(argument):
            yield _TENSOR
            return
    if isinstance(argument, Mapping):
        argument = list(argument.values())
    if isinstance(argument, slice):
        yield from _numbers(0 if argument.start is None else argument.start)
        yield from [_END] if argument.stop is None else _numbers(argument.stop)
        yield from _numbers(1 if argument.step is None else argument.step)
    elif isinstance(argument, tuple | list):
        for part in argument:
            yield from _numbers(part)
    elif isinstance(argument, int) and not isinstance(argument, bool):
        yield argument


def _cone(node: fx.Node) -> set[IntegerPlace]:
    """The attributes that the numbers depend on which a node reads."""
    found: set[IntegerPlace] = set()
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop()
        for number in _literals((current.args, current.kwargs)):
            found |= number.sources
        more = [s for s in current.all_input_nodes if not has_tensors(s.meta["value"]) and s not in seen]
        seen.update(more)
        waiting += more
    return found


def _literals(argument: Any) -> Iterator[Followed]:
    if isinstance(argument, Followed):
        yield argument
    elif isinstance(argument, Mapping):
        yield from _literals(list(argument.values()))
    elif isinstance(argument, slice):
        yield from _literals((argument.start, argument.stop, argument.step))
    elif isinstance(argument, tuple | list):
        for part in argument:
            yield from _literals(part)


def _tried(
    node: fx.Node, other: fx.Node, others: Mapping[str, fx.Node], known: set[IntegerPlace]
) -> Iterator[Relation]:
    """The only value of the one unknown attribute with which a node gives the shapes of the edited one."""
    unknown = sorted(_cone(node) - known, key=str)
    if len(unknown) != 1:
        return
    wanted = _shapes(other.meta["value"])
    sizes = {n for shape in (*wanted, *_input_shapes(node, others)) for n in shape if n > 0}
    trials = {divisor for n in sizes for divisor in range(1, n + 1) if n % divisor == 0}
    fitting = [n for n in sorted(trials) if _shapes_with(node, others, unknown[0], n) == wanted]
    if len(fitting) == 1:
        yield Relation(Followed.at(unknown[0], 0), fitting[0], node.name)


def _input_shapes(node: fx.Node, others: Mapping[str, fx.Node]) -> Iterator[tuple[int, ...]]:
    for source in node.all_input_nodes:
        if has_tensors(source.meta["value"]) and source.name in others:
            yield from _shapes(others[source.name].meta["value"])


def _shapes(value: Any) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    map_values(value, lambda tensor: found.append(tuple(tensor.shape)))
    return found


def _shapes_with(
    node: fx.Node, others: Mapping[str, fx.Node], place: IntegerPlace, trial: int
) -> list[tuple[int, ...]] | None:
    """The shapes that a node gives in the edited network with another number at a place; None where it fails."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}

    def copied(current: fx.Node) -> fx.Node:
        if current in copies:
            return copies[current]
        if current is not node and has_tensors(current.meta["value"]):
            new = graph.placeholder(current.name)
            new.meta["value"] = others[current.name].meta["value"]
        else:
            new = graph.node_copy(current, copied)
            new.args, new.kwargs = _with(new.args, place, trial), _with(new.kwargs, place, trial)
            new.meta = {}
            new.meta["value"] = evaluate(new, _none)
        copies[current] = new
        return new

    try:
        return _shapes(copied(node).meta["value"])
    except Exception:  # whatever an operator says to sizes that do not fit
        return None


def _none(path: str) -> Any:
    raise KeyError(path)


def _with(argument: Any, place: IntegerPlace, trial: int) -> Any:
    """Arguments with the number at one place replaced."""
    if isinstance(argument, Followed):
        values = dict.fromkeys(argument.sources, trial)
        return argument.formula(values) if argument.sources == {place} else int(argument)
    if isinstance(argument, slice):
        return slice(*(_with(part, place, trial) for part in (argument.start, argument.stop, argument.step)))
    if isinstance(argument, Mapping):
        return {key: _with(part, place, trial) for key, part in argument.items()}
    if isinstance(argument, tuple | list) and not isinstance(argument, torch.Size):
        return type(argument)([_with(part, place, trial) for part in argument])
    return argument
