"""What a pass has put between the operators of a file, or in place of one, as operators of that file.

The record of the import (`sources`) says what of the file every argument of the network is. So an argument that is
another by now is looked up: a number goes to its place (`places`), and an input reads another value, written in front
of its operator. An operator that does something else, or reads otherwise than its record says, is written anew.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import numpy as np
from torch import Tensor, fx

from graphsurgery.errors import UnsupportedError
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.editing.file_graph import FileGraph
from graphsurgery.onnx.editing.places import Edge, Places
from graphsurgery.onnx.editing.writers import Array, Writer, word
from graphsurgery.onnx.importing.importer import Imported
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.running import OnnxNetwork
from graphsurgery.onnx.importing.sources import FileOrigin, FilePlace, leaves
from graphsurgery.tracing.shuffles.removal import ADDED

_SPLITS = {"chunk", "split"}
"""Words for one operator, which takes the sizes of the parts in several ways."""


class Insertion:
    """The operators that an edited network has and its file has not.

    Args:
        imported: what the file was.
        graph: what has become of it.
        operators: of the file; get what is found.
        places: of the numbers; gets those that are others by now.
        constants: what a constant of the file holds after the edit, by its name.
    """

    def __init__(
        self,
        imported: Imported,
        graph: ModelGraph,
        operators: FileGraph,
        places: Places,
        constants: Callable[[str], Array],
    ) -> None:
        self.imported, self.file, self.operators, self.places = imported, imported.file, operators, places
        self.plan = cast(OnnxNetwork, imported.module).plan
        self.module = graph.module
        self.constants = constants
        self.old = {node.name: node for node in imported.graph.module.graph.nodes}
        self.new = {node.name: node for node in graph.module.graph.nodes}
        inputs = (node.name for node in self.old.values() if node.op == "placeholder")
        made = {value.name: node for value, node in zip(self.file.inputs, inputs, strict=True)} | dict(imported.values)
        self._nodes = {value: node for value, node in made.items() if node in self.old}
        self._names = {node: value for value, node in reversed(self._nodes.items())}
        """The first value of the file that a node of the imported network computes, by the node's name."""
        self._anew: set[int] = set()
        self._reads: dict[int, dict[Edge, fx.Node]] = {}
        opset = max((operator.opset for operator in self.file.operators), default=0)
        own = weakref.proxy(self)  # or each would keep the other, and the network with them
        value, stored = lambda node: own._value(node), lambda path, array: own._stored(path, array)
        self.writer = Writer(self.module, opset, self._dtype, operators, value, stored)
        self._written: dict[str, str] = {}

    @cached_property
    def replaced(self) -> dict[int, list[fx.Node]]:
        """The nodes that compute the values of an operator otherwise than the operator does, by its number."""
        found = {}
        for operator in self.plan.operators:
            nodes = {n.name: n for name in operator.outputs if (n := self._now(name)) is not None}
            if operator.index in self._anew and nodes:
                found[operator.index] = list(nodes.values())
        return found

    def stays(self, operator: Operator) -> bool:
        """Whether an operator is left as it is, but for numbers."""
        known = [name for name in operator.outputs if _is_tensor(self.old.get(self.imported.values.get(name, "")))]
        return operator.index not in self._anew and (not known or any(self._now(name) is not None for name in known))

    def compare(self) -> None:
        """Look up what of the file the arguments are that are others by now."""
        for name, origin in self.imported.origins.items():
            if name in self.new and name in self.old:
                self._compare(origin, self.old[name], self.new[name])

    def find(self) -> None:
        """Write all that is new.

        Raises:
            UnsupportedError: it has no operators, or it is not certain what an operator of the file reads by now.
        """
        try:
            for operator in self.plan.operators:
                for number, node in enumerate(self.replaced.get(operator.index, ())):
                    self.writer.write(node, self._value(node), "" if number else operator.name)
                if operator.index not in self._anew:
                    for edge, node in self._reads.get(operator.index, {}).items():
                        self.operators.read(*edge, self._value(node))
            self._give()
        except UnsupportedError as cause:
            raise UnsupportedError(f"{self.file.path}: {cause}; write a .pt, and export that") from cause

    def _compare(self, origin: FileOrigin, old: fx.Node, new: fx.Node) -> None:
        before, after = leaves(old), leaves(new)
        tensors = isinstance(old.meta["value"], (Tensor, tuple, list))
        if tensors and not _alike(old, new):
            self._anew.add(origin.operator)
            return
        places = origin.places
        if len(before) != len(after):
            if word(new) not in _SPLITS:
                self._anew.update([origin.operator] if tensors else [])
                return
            before, after = before[:1], after[:1]
        for was, now, where in zip(before, after, places, strict=False):
            if isinstance(now, int) and not isinstance(now, bool):
                for place in where:
                    self.places.want(place, was, now)
            elif isinstance(now, fx.Node) and isinstance(was, fx.Node) and not self._same(was, now, where):
                self._read(origin.operator, where, now)

    def _read(self, operator: int, places: tuple[FilePlace, ...], now: fx.Node) -> None:
        """Let an operator read another value; where the record does not say by which input, it is written anew."""
        if not isinstance(now.meta["value"], (Tensor, tuple, list)):
            return
        reads = self._reads.setdefault(operator, {})
        edges = [(place.operator, cast(int, place.at)) for place in places if place.entry is None]
        if not edges or any(reads.setdefault(edge, now) is not now for edge in edges):
            self._anew.add(operator)

    def _same(self, was: fx.Node, now: fx.Node, places: tuple[FilePlace, ...]) -> bool:
        """Whether an argument is what the file reads; the import may have put the channels in another order."""
        if was.op == "get_attr" == now.op:
            return was.target == now.target
        inputs = [self.operators.nodes[at.operator].inputs[cast(int, at.at)] for at in places if at.entry is None]
        read = [self._nodes.get(self.file.name(value.name)) for value in inputs]
        return all(name == now.name for name in read) if read else was.name == now.name and ADDED not in was.meta

    def _now(self, value: str) -> fx.Node | None:
        """The node of the edited network that computes a tensor of the file."""
        node = self.new.get(self.imported.values.get(value, ""))
        return node if _is_tensor(node) else None

    @property
    def _dtype(self) -> np.dtype[Any]:
        """What floating weights are in the file."""
        kinds = Counter(array.dtype for array in self.file.constants.values() if array.dtype.kind == "f" and array.ndim)
        return kinds.most_common(1)[0][0] if kinds else np.dtype(np.float32)

    def _value(self, node: fx.Node) -> str:
        """The value of the file that a node of the edited network gives; written first, if it is new."""
        if node.name in self._names:
            return self._names[node.name]
        if node.name not in self._written:
            self._written[node.name] = (
                self.writer.parameter(str(node.target)) if node.op == "get_attr" else self.writer.write(node)
            )
        return self._written[node.name]

    def _stored(self, path: str, array: Array) -> str | None:
        source = self.imported.sources.get(path)
        if source is None:
            return None
        known = self.constants(source.constant)
        return source.constant if known.shape == array.shape and np.array_equal(known, array) else None

    def _give(self) -> None:
        """Let the outputs of the file be what the network gives by now."""
        given = [leaf for leaf in leaves(next(n for n in self.new.values() if n.op == "output")) if _is_tensor(leaf)]
        if len(given) != len(self.file.outputs):
            raise UnsupportedError(f"the network has {len(given)} outputs, the file has {len(self.file.outputs)}")
        pairs = zip(self.file.outputs, given, strict=True)
        self.operators.give({o: self._value(new) for o, new in pairs if self._nodes.get(self.file.name(o)) != new.name})


def _is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("value"), Tensor)


def _alike(old: fx.Node, new: fx.Node) -> bool:
    """Whether two nodes do the same, but for sizes."""
    words = word(old), word(new)
    same = words[0] == words[1] or set(words) == _SPLITS
    return same and (new.op != "call_module" or old.target == new.target)
