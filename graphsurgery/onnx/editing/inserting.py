"""What a pass has put between the operators of a file, or in place of one, as operators of that file.

An operator stays where the network still computes its value in the same way. What it reads is compared with what the
node of the network reads by now; where the two differ, the value that is read is written in front of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, cast

import numpy as np
from torch import Tensor, fx

from graphsurgery.errors import UnsupportedError
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.editing.operator_changes import OperatorChanges
from graphsurgery.onnx.editing.writers import Array, Writer, word
from graphsurgery.onnx.importing.importer import Imported
from graphsurgery.onnx.importing.operators import SIZES_AT
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.running import OnnxNetwork
from graphsurgery.tracing.shuffles.removal import ADDED

_SPELLINGS = ({"chunk", "split"},)
"""Words for one operator."""


class Insertion:
    """The operators that an edited network has and its file has not.

    Args:
        imported: what the file was.
        graph: what has become of it.
        constants: what a constant of the file holds after the edit, by its name.
    """

    def __init__(self, imported: Imported, graph: ModelGraph, constants: Callable[[str], Array]) -> None:
        self.imported, self.file = imported, imported.file
        self.plan = cast(OnnxNetwork, imported.module).plan
        self.module = graph.module
        self.constants = constants
        self.old = {node.name: node for node in imported.graph.module.graph.nodes}
        self.new = {node.name: node for node in graph.module.graph.nodes}
        self.rewired: dict[tuple[int, int], str] = {}
        """The value that an input of an operator reads by now, by the numbers of both."""
        self.outputs: dict[str, str] = {}
        """The value that an output of the file is by now, by its name."""
        opset = max((operator.opset for operator in self.file.operators), default=0)
        self.writer = Writer(self.module, opset, self._dtype, self._taken(), self._value, self._stored)
        self._written: dict[str, str] = {}

    @cached_property
    def replaced(self) -> dict[int, fx.Node]:
        """The node that computes the value of an operator otherwise than the operator does, by its number."""
        return {
            index: self.new[name]
            for index, name in self._nodes.items()
            if name in self.new and not _alike(self.old[name], self.new[name])
        }

    def stays(self, operator: Operator) -> bool:
        """Whether an operator is left as it is, but for numbers."""
        name = self._nodes.get(operator.index)
        return name is None or (name in self.new and operator.index not in self.replaced)

    def find(self) -> None:
        """Write all that is new.

        Raises:
            UnsupportedError: it has no operators, or it is not certain what an operator of the file reads by now.
        """
        try:
            for operator in self.plan.operators:
                if operator.index in self.replaced:
                    node = self.replaced[operator.index]
                    self.writer.write(node, self._value(node), operator.name)
                elif operator.index in self._nodes and self.stays(operator):
                    self._rewire(operator)
            self._give()
        except UnsupportedError as cause:
            raise UnsupportedError(f"{self.file.path}: {cause}; write a .pt, and export that") from cause

    def changes(self) -> OperatorChanges:
        """What has been found, as it is put into a model."""
        instead = {index: self._value(node) for index, node in self.replaced.items()}
        return OperatorChanges(self.writer, self.rewired, instead, self.outputs)

    @property
    def _dtype(self) -> np.dtype[Any]:
        """What floating weights are in the file."""
        kinds = Counter(array.dtype for array in self.file.constants.values() if array.dtype.kind == "f" and array.ndim)
        return kinds.most_common(1)[0][0] if kinds else np.dtype(np.float32)

    def _taken(self) -> set[str]:
        graph = self.file.model.graph
        found = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
        return found | {name for node in graph.node for name in (node.name, *node.output)}

    @cached_property
    def _nodes(self) -> dict[int, str]:
        """The node that computes the first value of an operator that has one, by the operator's number."""
        found: dict[int, str] = {}
        seen: set[str] = set()
        for operator in self.plan.operators:
            names = (self.imported.values.get(output, "") for output in operator.outputs)
            tensors = [name for name in names if _is_tensor(self.old.get(name)) and name not in seen]
            if tensors:
                found[operator.index] = tensors[0]
                seen.update(tensors)
        return found

    @cached_property
    def _names(self) -> dict[str, str]:
        """The first value of the file that a node of the imported network computes, by the node's name."""
        inputs = (node.name for node in self.old.values() if node.op == "placeholder")
        found = {node: value.name for node, value in zip(inputs, self.file.inputs, strict=True)}
        for value, node in self.imported.values.items():
            found.setdefault(node, value)
        return found

    def _value(self, node: fx.Node) -> str:
        """The value of the file that a node of the edited network gives; written first, if it is new."""
        if node.name in self._names and node.name in self.old:
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

    def _rewire(self, operator: Operator) -> None:
        """Let an operator that stays read what its node reads by now."""
        name = self._nodes[operator.index]
        edges = self._edges(operator)
        known = list(edges.values())
        before, after = (list(_operands(nodes[name])) for nodes in (self.old, self.new))
        if set(known) != set(before):
            outer = list(self._outer(self.old[name])), list(self._outer(self.new[name]))
            if set(known) == set(outer[0]):  # it has become several nodes
                before, after = outer
        if before == after and None not in known and not any(self._added(old) for old in before):
            return
        fits = len(known) == len(before) == len(after)
        if not fits or any(
            seen not in (None, old) and not self._added(old) for seen, old in zip(known, before, strict=False)
        ):
            raise UnsupportedError(f"{operator.name} reads other values now, and it is not certain where")
        for at, seen, new in zip(edges, known, after, strict=True):
            if seen != new:
                self.rewired[self._place(operator, at)] = self._value(self._sources[new])

    def _place(self, operator: Operator, at: int) -> tuple[int, int]:
        """Where an input stands in the file; that of a product with a bias, which is read as one, at the product."""
        node = self.file.model.graph.node[operator.index]
        if operator.kind != "MatMul" or node.op_type == "MatMul":
            return operator.index, at
        made = {o.outputs[0]: o.index for o in self.file.operators if o.kind == "MatMul"}
        return next((made[name], at) for given in node.input if (name := self.file.name(given)) in made)

    def _edges(self, operator: Operator) -> dict[int, str | None]:
        """The node of each input that is data, by its place; None where the network does not compute that value."""
        plan = self.plan
        found: dict[int, str | None] = {}
        for at, given in enumerate(operator.inputs):
            name = self.file.name(given) if given else ""
            if not name or at in SIZES_AT.get(operator.kind, ()):
                continue
            if name in self.file.constants or name in self.imported.fixed:
                path = plan.made.get((operator.index, at)) or plan.tensors.get(name)
                if path and operator.index not in plan.layers:
                    found[at] = f"={path}"
            elif name not in self.imported.lengths:
                found[at] = self._node_of(name)
        return found

    def _node_of(self, value: str) -> str | None:
        """The node of a value, if the imported network has it."""
        if value in self._inputs:
            return self._inputs[value]
        name = self.imported.values.get(value, "")
        return name if name in self.old else None

    @cached_property
    def _inputs(self) -> dict[str, str]:
        inputs = (node.name for node in self.old.values() if node.op == "placeholder")
        return {value.name: node for node, value in zip(inputs, self.file.inputs, strict=True)}

    @cached_property
    def _sources(self) -> dict[str, fx.Node]:
        """The nodes of the edited network by what `_operands` calls them."""
        return {_key(node): node for node in self.new.values()}

    def _added(self, key: str) -> bool:
        """Whether a node of the imported network is none of the file, which has the channels in another order there."""
        return key in self.old and ADDED in self.old[key].meta

    def _outer(self, node: fx.Node) -> Iterator[str]:
        """What a node reads, where it reads through nodes that the file has no values for, but are not new."""
        read: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), read.append)
        for source in read:
            name = source.name
            inside = source.op != "get_attr" and name in self.old and name not in self._names
            if inside and not self._added(name):
                yield from self._outer(source)
            elif _is_tensor(source):
                yield _key(source)

    def _give(self) -> None:
        """Let the outputs of the file be what the network gives by now."""
        given = list(_operands(next(node for node in self.new.values() if node.op == "output")))
        if len(given) != len(self.file.outputs):
            raise UnsupportedError(f"the network has {len(given)} outputs, the file has {len(self.file.outputs)}")
        for output, new in zip(self.file.outputs, given, strict=True):
            if self._node_of(self.file.name(output)) != new:
                self.outputs[output] = self._value(self._sources[new])


def _is_tensor(node: fx.Node | None) -> bool:
    return node is not None and isinstance(node.meta.get("value"), Tensor)


def _key(node: fx.Node) -> str:
    """What identifies the tensor that a node gives."""
    return f"={node.target}" if node.op == "get_attr" else node.name


def _operands(node: fx.Node) -> Iterator[str]:
    """The keys of the tensors that a node reads, in order; of those in a tuple, what the tuple is made from."""
    read: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), read.append)
    for source in read:
        value = source.meta.get("value")
        if isinstance(value, Tensor):
            yield _key(source)
        elif isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value):
            yield from _operands(source)


def _alike(old: fx.Node, new: fx.Node) -> bool:
    """Whether two nodes do the same, but for sizes."""
    words = word(old), word(new)
    same = words[0] == words[1] or set(words) in _SPELLINGS
    return same and (new.op != "call_module" or old.target == new.target)
