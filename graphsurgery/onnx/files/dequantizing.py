"""Quantised files of the kind that states what is quantised (QDQ), as what they were before.

Weights in 8 or 32 bits with a `DequantizeLinear` behind them become floating ones; where a value is quantised and then
dequantised it stays as it is. What is left is the floating network, which is edited and may be quantised again.

Who quantises leaves out a ReLU where the range of what follows begins at 0, and does its work: there it is put back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphsurgery.errors import UnsupportedError
from graphsurgery.onnx.files.storage import Weights

_POSITIVE = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Softplus"})
"""Operators that give nothing below 0, so that no ReLU has gone."""
_SIX, _NEAR_SIX = 6.0, 0.05
"""Where a ReLU6 ends."""
_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"

Array = np.ndarray[Any, Any]


def dequantise(model: onnx.ModelProto, weights: Weights, where: str) -> int:
    """Take the quantisation out of a model, in place; gives how many weights and values were quantised.

    Args:
        model: large weights may be missing from it.
        weights: these; what is no longer read goes from them.
        where: what errors name first.

    Raises:
        UnsupportedError: something is quantised otherwise: by a number that is computed, in an output, in an input.
    """
    graph = model.graph
    found = [node for node in graph.node if node.op_type in (_QUANTISE, _DEQUANTISE)]
    if not found:
        return 0
    numbers = _Numbers(model, weights)
    quantised = {node.output[0]: node for node in found if node.op_type == _QUANTISE}
    read = {name for node in found for name in node.input}
    count = 0
    for node in found:
        if node.op_type == _QUANTISE:
            continue
        count += 1
        if node.input[0] in quantised:
            node.CopyFrom(_straight(model, node, quantised[node.input[0]], numbers))
            continue
        given = [numbers.of(name) for name in node.input]
        if given[0] is None or given[1] is None:
            name = node.name or node.output[0]
            raise UnsupportedError(f"{where}: {name} dequantises what is no weight; give the file before quantisation")
        tensor = numpy_helper.from_array(_floating(node, given), node.output[0])
        node.CopyFrom(helper.make_node("Constant", [], node.output, node.name, value=tensor))
    still = {name for node in graph.node if node.op_type != _QUANTISE for name in node.input}
    still |= {value.name for value in graph.output}
    for name, node in quantised.items():
        if name in still:
            raise UnsupportedError(
                f"{where}: {node.name or name} quantises what is not dequantised; give the file before quantisation"
            )
    _drop(model, weights, read - still)
    return count


class _Numbers:
    """The constants of a model."""

    def __init__(self, model: onnx.ModelProto, weights: Weights) -> None:
        self.weights = weights
        self.held = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.held[node.output[0]] = node.attribute[0].t

    def of(self, name: str) -> Array | None:
        """A constant; None for what is none."""
        if name in self.weights.arrays:
            return self.weights.arrays[name]
        return numpy_helper.to_array(self.held[name]) if name in self.held else None


def _straight(
    model: onnx.ModelProto, node: onnx.NodeProto, before: onnx.NodeProto, numbers: _Numbers
) -> onnx.NodeProto:
    """What a value that is quantised and dequantised is: itself, or its ReLU where nothing below 0 can be stated.

    Args:
        model: that they are in.
        node: that dequantises.
        before: that quantises.
        numbers: the constants.
    """
    scale, zero = (numbers.of(name) if name else None for name in (*before.input[1:3], "")[:2])
    least, most = (0, 255) if zero is None else (int(np.iinfo(zero.dtype).min), int(np.iinfo(zero.dtype).max))
    maker = next((other.op_type for other in model.graph.node if before.input[0] in other.output), "")
    starts_at_zero = zero is None or (zero.size == 1 and int(zero.reshape(-1)[0]) == least)
    if scale is None or scale.size != 1 or not starts_at_zero or maker in _POSITIVE:
        return helper.make_node("Identity", before.input[:1], node.output, node.name)
    if abs(float(scale.reshape(-1)[0]) * (most - least) - _SIX) > _NEAR_SIX:
        return helper.make_node("Relu", before.input[:1], node.output, node.name)
    limits = [numpy_helper.from_array(np.asarray(n, scale.dtype), f"{node.output[0]}/{n}") for n in (0, int(_SIX))]
    model.graph.initializer.extend(limits)
    return helper.make_node("Clip", [before.input[0], *(limit.name for limit in limits)], node.output, node.name)


def _drop(model: onnx.ModelProto, weights: Weights, names: set[str]) -> None:
    """Without the operators that quantise, and without weights that nobody reads any more."""
    graph = model.graph
    kept = [node for node in graph.node if node.op_type != _QUANTISE]
    left = [tensor for tensor in graph.initializer if tensor.name not in names]
    inputs = [value for value in graph.input if value.name not in names]
    for field, values in ((graph.node, kept), (graph.initializer, left), (graph.input, inputs)):
        del field[:]
        field.extend(values)
    for name in names:
        weights.arrays.pop(name, None)


def _floating(node: onnx.NodeProto, given: list[Array | None]) -> Array:
    """What a weight is in floating numbers: `(weight - zero) · scale`, along an axis where there are several."""
    weight, scale, zero = [*given, None][:3]
    assert weight is not None
    assert scale is not None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    number = weight.astype(scale.dtype) - (0 if zero is None else _along(zero, weight, attributes).astype(scale.dtype))
    return np.asarray(number * _along(scale, weight, attributes))


def _along(array: Array, weight: Array, attributes: dict[str, Any]) -> Array:
    """Scales or zeros in a shape that meets the weight: one, one for each index of an axis, or for each block of it."""
    axis = attributes.get("axis", 1)
    if array.size == 1:
        return array.reshape(())
    if attributes.get("block_size"):
        return np.take(array, np.arange(weight.shape[axis]) // attributes["block_size"], axis)
    return array.reshape([-1 if at == axis % weight.ndim else 1 for at in range(weight.ndim)])
