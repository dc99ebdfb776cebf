"""New operators in a model of a file, and what has no readers any more out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from graphsurgery.onnx.editing.writers import Array, Writer
from graphsurgery.onnx.files.model_file import read_outside, rename_outside
from graphsurgery.onnx.files.storage import LARGE, header

_FREE_WEIGHTS = 4
"""From this version of the format on weights need not be inputs."""


@dataclass(frozen=True)
class OperatorChanges:
    """What an edit makes of the operators of a file.

    Attributes:
        writer: the new operators and weights, written.
        rewired: the value that an input of an operator reads by now, by the numbers of both.
        instead: the new value that takes the place of an operator, by the operator's number.
        outputs: the value that an output of the file is by now, by its name.
    """

    writer: Writer
    rewired: Mapping[tuple[int, int], str]
    instead: Mapping[int, str]
    outputs: Mapping[str, str]

    def apply(self, model: onnx.ModelProto) -> dict[str, Callable[[], Array]]:
        """Put them into a model; what nobody reads any more goes. Returns what gives the weights, by name."""
        if not (self.writer.nodes or self.rewired or self.instead or self.outputs):
            return {}
        graph = model.graph
        before = _read(graph.node, graph.output)
        self._rewire(graph)
        nodes = _without_unread(self._given(self._placed(graph)), before, graph.output)
        known = {name for node in nodes for name in node.output}
        for at in reversed(range(len(graph.value_info))):
            if graph.value_info[at].name not in known:
                del graph.value_info[at]
        ordered = _ordered(nodes)
        del graph.node[:]
        graph.node.extend(ordered)
        return self._weights(graph)

    def _rewire(self, graph: onnx.GraphProto) -> None:
        outside = {index: read_outside(graph.node[index]) for index, _ in self.rewired}
        for (index, at), name in self.rewired.items():
            node = graph.node[index]
            if at < len(node.input):
                node.input[at] = name
            else:
                rename_outside(node, {outside[index][at - len(node.input)]: name})

    def _placed(self, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        """The nodes with new ones in place of old ones, and the others behind them."""
        makers = {name: node for node in self.writer.nodes for name in node.output}
        kept = [makers[self.instead[i]] if i in self.instead else node for i, node in enumerate(graph.node)]
        placed = {id(node) for node in kept}
        return [*kept, *(node for node in self.writer.nodes if id(node) not in placed)]

    def _given(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """With the outputs of the file under their names."""
        for output in self.outputs:
            _rename(nodes, output, self.writer.fresh(f"{output}_before"))
        new = {name for node in self.writer.nodes for name in node.output}
        for output, value in self.outputs.items():
            if value in new:
                _rename(nodes, value, output)
                new.remove(value)
            else:
                nodes.append(onnx.helper.make_node("Identity", [value], [output], self.writer.fresh(f"{output}/given")))
        return nodes

    def _weights(self, graph: onnx.GraphProto) -> dict[str, Callable[[], Array]]:
        """Add the new weights; those that are large are given when the model is saved."""
        arrays: dict[str, Callable[[], Array]] = {}
        for name, array in self.writer.tensors.items():
            if array.nbytes < LARGE:
                graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            else:
                graph.initializer.append(header(name, array))
                arrays[name] = partial(np.asarray, array)
        return arrays


def drop_unread(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Without initializers that the original reads, and the model does not any more."""
    graph = model.graph
    before, read = (_read(m.graph.node, m.graph.output) for m in (original, model))
    gone = {tensor.name for tensor in graph.initializer if tensor.name in before and tensor.name not in read}
    for field in (graph.initializer, graph.input):
        for at in reversed(range(len(field))):
            if field[at].name in gone:
                del field[at]


def declare_weights(model: onnx.ModelProto) -> None:
    """Say the shapes of weights that are inputs too by now; before version 4 of the format all of them had to be."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    declared = {value.name: value for value in graph.input if value.name in weights}
    for name, tensor in weights.items():
        if name in declared or model.ir_version < _FREE_WEIGHTS:
            value = declared[name] if name in declared else graph.input.add()
            value.CopyFrom(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def drop_behind(model: onnx.ModelProto, values: Iterable[str]) -> None:
    """Without the nodes that only served to compute these values, which nobody reads."""
    makers = {name: node for node in model.graph.node for name in node.output}
    behind, waiting = set[str](), list(values)
    while waiting:
        name = waiting.pop()
        if name not in behind:
            behind.add(name)
            waiting += (*makers[name].input, *read_outside(makers[name])) if name in makers else ()
    while True:
        read = _read(model.graph.node, model.graph.output)
        gone = [i for i, n in enumerate(model.graph.node) if behind & {*n.output} and not read & {*n.output}]
        if not gone:
            return
        for at in reversed(gone):
            del model.graph.node[at]


def _read(nodes: Iterable[onnx.NodeProto], outputs: Iterable[onnx.ValueInfoProto]) -> set[str]:
    return {name for node in nodes for name in (*node.input, *read_outside(node))} | {value.name for value in outputs}


def _rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        rename_outside(node, {old: new})
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                if name == old:
                    names[at] = new


def _without_unread(
    nodes: Sequence[onnx.NodeProto], before: set[str], outputs: Iterable[onnx.ValueInfoProto]
) -> list[onnx.NodeProto]:
    """Without nodes whose values were read, and are not any more."""
    outputs, kept = list(outputs), list(nodes)
    while True:
        read = _read(kept, outputs)
        left = [node for node in kept if any(name in read for name in node.output) or not before & set(node.output)]
        if len(left) == len(kept):
            return kept
        kept = left


def _ordered(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes in an order in which they can run, as close as may be to the one that they have."""
    makers = {name: node for node in nodes for name in node.output}
    done: set[int] = set()
    found: list[onnx.NodeProto] = []
    for first in nodes:
        waiting = [first]
        while waiting:
            node = waiting[-1]
            read = (*node.input, *read_outside(node))
            needed = [makers[name] for name in read if name in makers and id(makers[name]) not in done]
            if id(node) in done or not needed:
                waiting.pop()
                if id(node) not in done:
                    done.add(id(node))
                    found.append(node)
            else:
                waiting.extend(needed)
    return found
