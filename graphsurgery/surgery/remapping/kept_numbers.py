"""Numbers that a model computes from its widths and that are no sizes (`x * width ** -0.5`) keep their old values.

What an operator is given keeps its old value unless the operator's rule says that it is a size
(`Inference.on_rebuild`). Not the number itself is kept but the widths in it: what follows the batch or the resolution
stays computed.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from graphsurgery.axes.algebra import dims_of
from graphsurgery.axes.types import TensorType
from graphsurgery.network.paths import has_tensors

Argument = int | str
"""An argument of a call: its position, or its name."""


def numbers_of(node: fx.Node, sizes: Collection[Argument] = ()) -> list[fx.Node]:
    """The numbers that a node calculates with: what it is given besides tensors and sizes."""
    if all(isinstance(source.meta["value"], Tensor) for source in node.all_input_nodes):
        return []
    if not has_tensors(node.meta["value"]) and not _is_of_tensors(node):
        return []
    found: dict[fx.Node, None] = {}
    for _, given in _arguments(node, sizes):
        fx.map_arg(given, lambda source: found.setdefault(source))
    return [source for source in found if not has_tensors(source.meta["value"])]


def _arguments(node: fx.Node, sizes: Collection[Argument]) -> Iterator[tuple[Argument, Any]]:
    given: list[tuple[Argument, Any]] = [*enumerate(node.args), *node.kwargs.items()]
    return ((argument, value) for argument, value in given if argument not in sizes)


def _is_of_tensors(node: fx.Node) -> bool:
    """Whether a node is given tensors, to ask for their sizes or to write into them."""
    return any(has_tensors(source.meta["value"]) for source in node.all_input_nodes)


class KeptNumbers:
    """The numbers of one rebuild as they were before it.

    Args:
        types: of every node of the network before.
        copies: what has become of its nodes so far, with their new values.
    """

    def __init__(self, types: Mapping[fx.Node, Any], copies: Mapping[fx.Node, fx.Node]) -> None:
        self.types, self.copies = types, copies
        self._changed: dict[fx.Node, bool] = {}
        self._kept: dict[fx.Node, Any] = {}

    def keep(self, node: fx.Node, sizes: Collection[Argument]) -> None:
        """Give the copy of a node the numbers that the node had, but for its sizes, in place."""
        changed = [number for number in numbers_of(node, sizes) if self._has_changed(number)]
        if not changed:
            return
        copy = self.copies[node]
        with copy.graph.inserting_before(copy):
            kept = {self.copies[number]: self._as_before(number) for number in changed}
        given = {name: fx.map_arg(value, lambda n: kept.get(n, n)) for name, value in _arguments(copy, sizes)}
        copy.args = tuple(given.get(position, value) for position, value in enumerate(copy.args))
        copy.kwargs = {name: given.get(name, value) for name, value in copy.kwargs.items()}

    def _has_changed(self, number: fx.Node) -> bool:
        """Whether a number is another one than before, or is computed from one that is."""
        if number not in self._changed:
            sources = [n for n in number.all_input_nodes if not has_tensors(n.meta["value"])]
            if self._is_size(number):
                self._changed[number] = not same(self.copies[number].meta["value"], number.meta["value"])
            else:
                self._changed[number] = any(self._has_changed(source) for source in sources)
        return self._changed[number]

    def _is_size(self, number: fx.Node) -> bool:
        """Whether a number is what a tensor is asked for, or an element of that."""
        source = number.args[0] if number.target is operator.getitem else None
        return _is_of_tensors(number) or (isinstance(source, fx.Node) and self._is_size(source))

    def _as_before(self, number: fx.Node) -> Any:
        """A number, or a node, that gives what `number` gave before; the graph says where it inserts."""
        if not self._has_changed(number):
            return self.copies[number]
        if number not in self._kept:
            self._kept[number] = self._sizes(number) if self._is_size(number) else self._computed(number)
        return self._kept[number]

    def _computed(self, number: fx.Node) -> Any:
        """The same calculation with the numbers before; where nothing is left to compute, its result."""
        nodes: list[fx.Node] = []

        def before(source: fx.Node) -> Any:
            found = self._as_before(source)
            fx.map_arg(found, nodes.append)
            return found

        args, kwargs = fx.map_arg(number.args, before), fx.map_arg(number.kwargs, before)
        if not nodes:
            return number.meta["value"]
        return self._node(number.target, args, number.meta["value"], number.op, kwargs)

    def _sizes(self, number: fx.Node) -> Any:
        """Sizes of a tensor, as they were."""
        old, new = number.meta["value"], self.copies[number].meta["value"]
        if not isinstance(old, tuple):
            return self._size(self.copies[number], new, old, self._axis(number))
        if not isinstance(new, tuple) or len(new) != len(old):
            return tuple(old)
        elements = []
        for index, (now, was) in enumerate(zip(new, old, strict=True)):
            element = self._node(operator.getitem, (self.copies[number], index), now)
            elements.append(self._size(element, now, was, self._axis(number, index)))
        return tuple(elements)

    def _size(self, size: fx.Node, new: Any, old: Any, axis: Any) -> Any:
        """One size as it was; what is not of channels alone, and may follow the batch, stays in proportion."""
        if same(new, old):
            return size
        channels = axis is not None and all(not dim.fixed for dim in dims_of(axis))
        if channels or type(new) is not int or type(old) is not int or new <= 0:
            return old
        return self._node(operator.floordiv, (self._node(operator.mul, (size, old), new * old), new), old)

    def _axis(self, number: fx.Node, index: int | None = None) -> Any:
        """The axis of which a number is the size; None where it is that of no single one."""
        source = number.args[0] if number.args else None
        given = number.args[1] if len(number.args) > 1 else number.kwargs.get("dim")
        if not isinstance(source, fx.Node):
            return None
        if number.target is operator.getitem and isinstance(given, (int, slice)):
            numbers = range(len(source.meta["value"]))[given]
            place = numbers if isinstance(numbers, int) else numbers[index] if index is not None else None
            return None if place is None else self._axis(source, place)
        typed = self.types.get(source)
        chosen: Any = index if index is not None else given
        asks = number.target == "size" or (number.target is getattr and index is not None)
        return typed[chosen] if asks and isinstance(typed, TensorType) and isinstance(chosen, int) else None

    def _node(self, target: Any, args: Any, value: Any, kind: str = "call_function", kwargs: Any = None) -> fx.Node:
        graph = next(iter(self.copies.values())).graph
        node = graph.create_node(kind, target, args, kwargs)
        node.meta["value"] = value
        return node


def same(new: Any, old: Any) -> bool:
    """Whether two numbers are one, of one kind."""
    return type(new) is type(old) and bool(new == old)
