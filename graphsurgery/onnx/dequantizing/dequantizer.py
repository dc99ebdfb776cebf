"""A quantised model written out in floating numbers, node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

from graphsurgery.onnx.dequantizing.operators import FORMS
from graphsurgery.onnx.dequantizing.products import Product, products_of
from graphsurgery.onnx.dequantizing.values import Scheme, Values
from graphsurgery.onnx.files.model_file import read_outside, rename_outside, replace_all
from graphsurgery.onnx.files.storage import Weights

_QUANTISE, _DEQUANTISE, _DYNAMIC = "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"
_INTEGER = frozenset({_QUANTISE, _DEQUANTISE, _DYNAMIC, "MatMulInteger", "ConvInteger", *FORMS})
_MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that only move the values of their first input, or take the largest; a `Concat` those of all."""


def dequantise(model: onnx.ModelProto, weights: Weights, where: str) -> int:
    """Take the quantisation out of a model, in place; gives how many weights and values were quantised.

    Args:
        model: large weights may be missing from it.
        weights: these; what is no longer read goes from them.
        where: what errors name first.

    Raises:
        UnsupportedError: something is quantised otherwise: by a number that is computed, in an output, in an input.
    """
    found = [node for node in model.graph.node if node.op_type in _INTEGER]
    if not found:
        return 0
    walk = _Walk(model, weights, where)
    for at, node in enumerate(model.graph.node):
        walk.take(at, node)
    walk.finish()
    return sum(node.op_type != _QUANTISE for node in found)


def _scheme(node: onnx.NodeProto) -> Scheme:
    """How a node quantises or dequantises what it reads first."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    zero = node.input[2] if len(node.input) > 2 else ""
    return Scheme(node.input[1], zero, attributes.get("axis", 1), attributes.get("block_size", 0))


class _Walk:
    """The nodes of a model in their order, each written out in floating numbers.

    Attributes:
        values: what is known of the values.
        products: in 32 bits of what is quantised as it comes, by the place of their node.
        gone: the places of the nodes that a product takes the place of.
        hidden: names that are no floating value: 32 bits, and scales that are computed.
    """

    def __init__(self, model: onnx.ModelProto, weights: Weights, where: str) -> None:
        self.model, self.weights = model, weights
        self.values = Values(model, weights, where)
        self.products: Mapping[int, Product] = products_of(model, self.values)
        self.gone = {at for product in self.products.values() for at in product.absorbed}
        self.hidden = {name for at in self.gone for name in model.graph.node[at].output}
        self.hidden -= {product.output for product in self.products.values()}
        self._of_weights()

    def _of_weights(self) -> None:
        """Weights in 8 bits that are moved before they are dequantised, as a table that is looked up, stand, too."""
        makers = {name: node for node in self.model.graph.node for name in node.output}
        for node in self.model.graph.node:
            if node.op_type != _DEQUANTISE or self.values.constant(node.input[0]) is not None:
                continue
            name = node.input[0]
            while name in makers and makers[name].op_type in _MOVES - {"Concat"}:
                name = makers[name].input[0]
            array, scale = self.values.constant(name), self.values.constant(node.input[1])
            if array is not None and scale is not None and scale.size == 1 and name not in self.values.standing:
                self.values.stand(node, name, array, _scheme(node))

    def take(self, at: int, node: onnx.NodeProto) -> None:
        """Write a node out."""
        kind = node.op_type
        if at in self.products:
            self.products[at].write(self.values)
        elif at in self.gone:
            return
        elif kind == _QUANTISE:
            self.values.straight(node, node.input[0], node.output[0], _scheme(node))
        elif kind == _DYNAMIC:
            self.values.straight(node, node.input[0], node.output[0], Scheme(node.output[1], node.output[2]))
            self.hidden.update(node.output[1:])
        elif kind == _DEQUANTISE:
            self._dequantise(node)
        elif kind in FORMS:
            FORMS[kind](self.values, node)
        else:
            self._keep(node)

    def _dequantise(self, node: onnx.NodeProto) -> None:
        array = None if node.input[0] in self.values.standing else self.values.constant(node.input[0])
        if array is None:
            found = self.values.read(node, node.input[0], _scheme(node))
        else:
            found = self.values.hold(self.values.floating(node, array, _scheme(node)), node.output[0])
        self.values.renamed[node.output[0]] = found

    def _keep(self, node: onnx.NodeProto) -> None:
        """A node as it is; what moves values in integers moves the floating ones."""
        read = [name for name in (*node.input, *read_outside(node)) if name]
        if any(name in self.values.standing for name in read):
            moved = node.output[:1] if node.op_type == "MaxPool" else node.output  # the other one is of indices
            self.values.standing.update(dict.fromkeys(moved, self._moved(node, read)))
            self.values.renamed.update({name: self.values.free(name) for name in moved})
        if any(name in self.hidden for name in read):
            raise self.values.refused(node, "computes with the numbers by which values are quantised")
        self.values.nodes.append(self._renamed(node))

    def _moved(self, node: onnx.NodeProto, read: Sequence[str]) -> Scheme:
        """How what a node gives stands for floating numbers, where it only moves values that do.

        Raises:
            UnsupportedError: it does something else with them, or they stand in several ways.
        """
        values = read if node.op_type == "Concat" else read[:1]
        schemes = [self.values.standing[name] for name in values if name in self.values.standing]
        one = len(schemes) == len(values) and all(self.values.are_same(schemes[0], other) for other in schemes)
        elsewhere = any(name in self.values.standing for name in set(read).difference(values))
        if node.op_type not in _MOVES or not one or elsewhere:
            raise self.values.refused(node, f"computes in integers ({node.op_type})")
        return schemes[0]

    def _renamed(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A node that reads and gives values by their floating names."""
        found = onnx.NodeProto()
        found.CopyFrom(node)
        found.input[:] = map(self.values.now, node.input)
        found.output[:] = map(self.values.now, node.output)
        rename_outside(found, self.values.renamed)
        return found

    def finish(self) -> None:
        """Put the floating nodes into the model, without what nobody reads any more."""
        graph = self.model.graph
        for value in graph.output:
            if value.name in self.values.standing or value.name in self.hidden:
                maker = next(node for node in graph.node if value.name in node.output)
                raise self.values.refused(maker, "quantises what is not dequantised")
        before = {name for node in graph.node for name in node.input}
        for name in (value.name for value in graph.output):
            if self.values.now(name) != name:
                self.values.add("Identity", [name], [name], name)
        replace_all(graph.node, self.values.nodes)
        read = {name for node in graph.node for name in (*node.input, *read_outside(node))}
        unread = before - read - {value.name for value in graph.output}
        held = [node for node in graph.node if node.op_type != "Constant" or node.output[0] not in unread]
        replace_all(graph.node, held)
        for field in (graph.initializer, graph.input):
            replace_all(field, [entry for entry in field if entry.name not in unread])
        given = {name for node in graph.node for name in node.output}
        replace_all(graph.value_info, [value for value in graph.value_info if value.name in given])
        for name in unread:
            self.weights.arrays.pop(name, None)
