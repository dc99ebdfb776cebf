"""The operators of a file as a graph of onnx-graphsurgeon, in which an edit is made.

Nodes and values alone stand in it: who makes what, and who reads it. What onnx-graphsurgeon would read whole or lose
(weights, notes, shapes, the order of all) stays in the model, and is carried over (`put_into`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as surgeon
from onnx import helper, numpy_helper

from graphsurgery.onnx.files.model_file import read_outside, rename_outside
from graphsurgery.onnx.files.storage import LARGE, Array, header

_FREE_WEIGHTS = 4
"""From this version of the format on weights need not be inputs."""


class FileGraph:
    """The operators of one file, to be edited.

    Args:
        model: the file; it is not touched.

    Attributes:
        nodes: of the file, by their numbers, whether they are still in the graph or not. Behind its inputs a node has
            what the graphs inside of it read.
        attributes: new ones of nodes, by the number of the node and the name; None for one that goes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.attributes: dict[tuple[int, str], Any] = {}
        self._instead: dict[int, int] = {}
        self._edited, self._rewired = False, False
        """Whether there is an edit, and one of more than numbers, with which nodes that lose their readers go."""
        self._values: dict[str, Any] = {}
        self.nodes = [
            surgeon.Node(n.op_type, n.name, {}, self._all((*n.input, *read_outside(n))), self._all(n.output), n.domain)
            for n in graph.node
        ]
        self._ends = self._all(value.name for value in graph.output)
        ends = set(map(id, self._ends))
        # What nobody reads in the file stays.
        unread = [t for node in self.nodes for t in node.outputs if t.name and not t.outputs and id(t) not in ends]
        weights = {tensor.name for tensor in graph.initializer}
        inputs = self._all(value.name for value in graph.input if value.name not in weights)
        self._graph = surgeon.Graph(list(self.nodes), inputs, [*self._ends, *unread])
        self._read = {name for name in weights & self._values.keys() if self._values[name].outputs}
        self._taken = {*self._values, *weights, *(node.name for node in self.nodes)}

    def fresh(self, wanted: str) -> str:
        """A name that nothing has yet."""
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def constant(self, array: Array, name: str) -> str:
        """Add a constant, under a name like this."""
        name = self.fresh(name)
        self._values[name] = surgeon.Constant(name, array)
        return name

    def operator(self, kind: str, inputs: Sequence[str], name: str, attributes: Mapping[str, Any]) -> str:
        """Add an operator; returns the name of its value."""
        self._edited = self._rewired = True
        output = self._value(self.fresh(f"{name}_output"))
        self._graph.nodes.append(surgeon.Node(kind, name, dict(attributes), self._all(inputs), [output]))
        return str(output.name)

    def named(self, node: int, at: int) -> str:
        """What a node is given at an input; what could be given there, if nothing is."""
        inputs, outputs = self.nodes[node].inputs, self.nodes[node].outputs
        return str(inputs[at].name if at < len(inputs) else f"{self.nodes[node].name or outputs[0].name}/sizes")

    def read(self, node: int, at: int, value: str) -> None:
        """Let an input of a node read another value; it may be the first that the node has left out."""
        inputs = self.nodes[node].inputs
        self._edited = True
        self._rewired |= not isinstance(self._value(value), surgeon.Constant)
        if at == len(inputs):
            inputs.append(self._value(value))
        else:
            inputs[at] = self._value(value)

    @property
    def last(self) -> str:
        """The value of the operator that has been added last."""
        return str(self._graph.nodes[-1].outputs[0].name) if len(self._graph.nodes) > len(self.nodes) else ""

    def become(self, name: str, operator: str = "") -> None:
        """Let a value of the file be what the operator gives that has been added last; it may get another name."""
        node = self._graph.nodes[-1]
        node.name = operator or node.name
        self._instead[id(node)] = id(self._value(name).inputs[0])
        self._unmade(name)
        node.outputs = [self._value(name)]

    def be_constant(self, name: str, array: Array) -> None:
        """Let a value that nodes have computed be a constant."""
        self._edited = self._rewired = True
        self._unmade(name)
        self._value(name).to_constant(array)

    def give(self, outputs: Mapping[str, str]) -> None:
        """Let outputs of the file be other values, under their names."""
        places = {t.name: at for at, t in enumerate(self._ends)}
        before = {name: self._values.pop(name) for name in outputs}
        for name, value in before.items():
            value.name = self.fresh(f"{name}_before")
            self._values[value.name] = value
        own = set(map(id, self.nodes))
        for name, value in outputs.items():
            new: Any = before[value] if value in before else self._values[value]
            if not new.inputs or id(new.inputs[0]) in own or new.name in outputs:
                self.operator("Identity", [new.name], self.fresh(f"{name}/given"), {})
                new = self._graph.nodes[-1].outputs[0]
            new.name = name
            self._graph.outputs[places[name]] = self._values[name] = new

    def put_into(self, model: onnx.ModelProto) -> dict[str, Callable[[], Array]]:
        """Give a copy of the file the operators of this graph; what nobody reads any more goes.

        Returns:
            What gives the new weights that are large, by name; they are not in the model.
        """
        graph = model.graph
        for (index, name), value in self.attributes.items():
            _set(graph.node[index], name, value)
        if not self._edited:
            return {}
        if self._rewired:
            self._graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
            self._sort()
        own = {id(node): old for node, old in zip(self.nodes, graph.node, strict=True)}
        nodes = [_proto(node, own.get(id(node))) for node in self._graph.nodes]
        if self._rewired:
            del graph.node[:]
            graph.node.extend(nodes)
        known = self._graph.tensors()
        for field in (graph.initializer, graph.input, graph.value_info):
            gone = self._read - known.keys() if field is not graph.value_info else self._values.keys() - known.keys()
            for at in reversed(range(len(field))):
                if field[at].name in gone:
                    del field[at]
        return _add([t for t in known.values() if isinstance(t, surgeon.Constant)], graph)

    def let_go(self) -> None:
        """Forget the numbers of constants: each holds itself, and would live on until Python looks for such."""
        for value in self._values.values():
            if isinstance(value, surgeon.Constant):
                value.to_variable()

    def _value(self, name: str) -> Any:
        if not name:
            return surgeon.Variable.empty()
        if name not in self._values:
            self._values[name] = surgeon.Variable(name)
        return self._values[name]

    def _all(self, names: Iterable[str]) -> list[Any]:
        return [self._value(name) for name in names]

    def _unmade(self, name: str) -> None:
        """Let the nodes that make a value give it to nobody."""
        value = self._value(name)
        for node in list(value.inputs):
            at = next(at for at, output in enumerate(node.outputs) if output is value)
            node.outputs[at] = self._value(self.fresh(f"{name}_before"))

    def _sort(self) -> None:
        """Put each new node in front of the first that reads it, or in place of one; the others keep their order."""
        own = {id(node): number for number, node in enumerate(self.nodes)}
        keys, end = dict(own), len(own)
        for node in reversed(self._graph.nodes):
            if id(node) in self._instead:
                keys[id(node)] = keys[self._instead[id(node)]]
            elif id(node) not in own:
                readers = [keys[id(reader)] for value in node.outputs for reader in value.outputs if id(reader) in keys]
                keys[id(node)] = min(readers, default=end)
        self._graph.nodes.sort(key=lambda node: (keys[id(node)], id(node) in own))
        places = {id(node): place for place, node in enumerate(self._graph.nodes)}
        if any(
            places.get(id(maker), -1) > places[id(node)]
            for node in self._graph.nodes
            for value in node.inputs
            for maker in value.inputs
        ):
            self._graph.toposort(recurse_subgraphs=False, recurse_functions=False, mode="nodes")


def _proto(node: Any, old: onnx.NodeProto | None) -> onnx.NodeProto:
    """A node of the graph: one of the file in place, with what is noted of it."""
    read, made = [t.name for t in node.inputs], [t.name for t in node.outputs]
    if old is None:
        return helper.make_node(node.op, read, made, name=node.name, **node.attrs)
    outside = read_outside(old) if len(read) > len(old.input) else []
    own = len(read) - len(outside)
    rename_outside(old, dict(zip(outside, read[own:], strict=True)))
    for field, names in ((old.input, read[:own]), (old.output, made)):
        if names != field:
            field[:] = names
    return old


def _set(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, *([] if value is None else [helper.make_attribute(name, value)])])


def _add(constants: Iterable[Any], graph: onnx.GraphProto) -> dict[str, Callable[[], Array]]:
    """Add constants to a graph; gives those that are large, without their numbers there."""
    arrays: dict[str, Callable[[], Array]] = {}
    for constant in constants:
        if constant.values.nbytes < LARGE:
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(constant.values), constant.name))
        else:
            graph.initializer.append(header(constant.name, constant.values))
            arrays[constant.name] = partial(np.asarray, constant.values)
    return arrays


def declare_weights(model: onnx.ModelProto) -> None:
    """Say the shapes of weights that are inputs too by now; before version 4 of the format all of them had to be."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    declared = {value.name: value for value in graph.input if value.name in weights}
    for name, tensor in weights.items():
        if name in declared or model.ir_version < _FREE_WEIGHTS:
            value = declared[name] if name in declared else graph.input.add()
            value.CopyFrom(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
