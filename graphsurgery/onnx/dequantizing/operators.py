"""Operators that compute in integers, each as the floating one that it is an approximation of.

Of those that read and write 8 bits (`QLinear…`) every operand stands before its scale and its zero. Of those that
take a floating value and quantise it themselves only the weights do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from graphsurgery.onnx.dequantizing.values import Array, Scheme, Values, in_floating

Form = Callable[[Values, onnx.NodeProto], None]
FORMS: dict[str, Form] = {}
"""How a node is written out in floating numbers, by its operator."""


def _form(*kinds: str) -> Callable[[Form], Form]:
    def note(form: Form) -> Form:
        FORMS.update(dict.fromkeys(kinds, form))
        return form

    return note


def _input(node: onnx.NodeProto, at: int) -> str:
    """An input; empty where it is left out."""
    return node.input[at] if at < len(node.input) else ""


def _attributes(node: onnx.NodeProto, *without: str) -> dict[str, Any]:
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value for name, value in found.items() if name not in without}


def _operand(values: Values, node: onnx.NodeProto, at: int, axis: int = 1) -> str:
    """The floating value of an operand with its scale and its zero behind it."""
    return values.read(node, node.input[at], Scheme(_input(node, at + 1), _input(node, at + 2), axis))


def _given(values: Values, node: onnx.NodeProto, kind: str, inputs: Sequence[str], at: int, **attributes: Any) -> None:
    """The floating operator, and behind it the ReLU that the range of its result may have done.

    Args:
        values: of the model.
        node: that it stands for.
        kind: of operator.
        inputs: floating ones.
        at: the input that is the scale of the result; its zero is the next.
        attributes: of the operator.
    """
    between = values.free(node.output[0])
    values.add(kind, inputs, [between], node.name, **attributes)
    values.straight(node, between, node.output[0], Scheme(node.input[at], _input(node, at + 1)), kind)


def _plain_layout(values: Values, node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of an operator whose channels are in their place."""
    found = _attributes(node)
    if found.pop("channels_last", 0):
        raise values.refused(node, f"is a {node.op_type} with its channels last")
    return found


def _bias(values: Values, node: onnx.NodeProto, name: str, x_scale: str, weight_scale: str) -> str:
    """A bias in 32 bits, which counts in the scale of the products."""
    scale = values.number(x_scale, node) * values.number(weight_scale, node).reshape(-1)
    return values.hold(values.number(name, node).astype(scale.dtype) * scale, f"{name}/floating")


@_form("QLinearConv")
def _conv(values: Values, node: onnx.NodeProto) -> None:
    attributes = _plain_layout(values, node)
    inputs = [_operand(values, node, 0), _operand(values, node, 3, axis=0)]
    if _input(node, 8):
        inputs.append(_bias(values, node, node.input[8], node.input[1], node.input[4]))
    _given(values, node, "Conv", inputs, 6, **attributes)


@_form("QLinearMatMul")
def _matmul(values: Values, node: onnx.NodeProto) -> None:
    _given(values, node, "MatMul", [_operand(values, node, 0), _operand(values, node, 3, axis=-1)], 6)


@_form("QGemm")
def _gemm(values: Values, node: onnx.NodeProto) -> None:
    attributes = _attributes(node)
    inputs = [_operand(values, node, 0), _operand(values, node, 3, axis=0 if attributes.get("transB") else 1)]
    if _input(node, 6):
        inputs.append(_bias(values, node, node.input[6], node.input[1], node.input[4]))
    if _input(node, 7):
        _given(values, node, "Gemm", inputs, 7, **attributes)
    else:
        values.add("Gemm", inputs, node.output, node.name, **attributes)


@_form("QLinearAdd", "QLinearMul")
def _pair(values: Values, node: onnx.NodeProto) -> None:
    _given(values, node, node.op_type.removeprefix("QLinear"), [_operand(values, node, at) for at in (0, 3)], 6)


@_form("QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool", "QLinearAveragePool")
def _single(values: Values, node: onnx.NodeProto) -> None:
    attributes = _plain_layout(values, node)
    _given(values, node, node.op_type.removeprefix("QLinear"), [_operand(values, node, 0)], 3, **attributes)


@_form("QLinearSoftmax")
def _softmax(values: Values, node: onnx.NodeProto) -> None:
    attributes = _attributes(node, "opset")
    if _attributes(node).get("opset", 0) < 13 and attributes.get("axis", -1) != -1:
        raise values.refused(node, "is a QLinearSoftmax over all axes from one on")
    _given(values, node, "Softmax", [_operand(values, node, 0)], 3, axis=attributes.get("axis", -1))


@_form("QLinearConcat")
def _concat(values: Values, node: onnx.NodeProto) -> None:
    inputs = [_operand(values, node, at) for at in range(2, len(node.input), 3)]
    between = values.free(node.output[0])
    values.add("Concat", inputs, [between], node.name, **_attributes(node))
    values.straight(node, between, node.output[0], Scheme(node.input[0], node.input[1]), "Concat")


@_form("DynamicQuantizeMatMul")
def _dynamic_matmul(values: Values, node: onnx.NodeProto) -> None:
    weight = values.read(node, node.input[1], Scheme(node.input[2], _input(node, 3), axis=-1))
    _with_bias(values, node, [node.input[0], weight], _input(node, 4))


@_form("MatMulIntegerToFloat")
def _matmul_to_float(values: Values, node: onnx.NodeProto) -> None:
    x = values.read(node, node.input[0], Scheme(node.input[2], _input(node, 4)))
    weight = values.read(node, node.input[1], Scheme(node.input[3], _input(node, 5), axis=-1))
    _with_bias(values, node, [x, weight], _input(node, 6))


def _with_bias(values: Values, node: onnx.NodeProto, inputs: Sequence[str], bias: str) -> None:
    between = values.free(f"{node.output[0]}/product") if bias else node.output[0]
    values.add("MatMul", inputs, [between], node.name)
    if bias:
        values.add("Add", [between, bias], node.output, f"{node.name or between}/bias")


@_form("QAttention")
def _attention(values: Values, node: onnx.NodeProto) -> None:
    """Its bias is in floating numbers, and what it gives, too."""
    x = values.read(node, node.input[0], Scheme(node.input[3], _input(node, 6)))
    weight = values.read(node, node.input[1], Scheme(node.input[4], _input(node, 7), axis=1))
    inputs = [x, weight, node.input[2], _input(node, 5), _input(node, 8)]
    values.add("Attention", inputs, node.output, node.name, domain=node.domain, **_attributes(node))


@_form("DynamicQuantizeLSTM")
def _lstm(values: Values, node: onnx.NodeProto) -> None:
    """Its weights are those of an LSTM the other way round, `[directions, size, 4·hidden]`."""
    weights = []
    for at, scale in ((1, 8), (2, 10)):
        stored = values.number(node.input[at], node)
        laid = [_by_direction(values, node, name) for name in (node.input[scale], _input(node, scale + 1))]
        weights.append(values.hold(in_floating(stored, *laid).swapaxes(1, 2), node.input[at]))
    values.add("LSTM", [node.input[0], *weights, *node.input[3:8]], node.output, node.name, **_attributes(node))


def _by_direction(values: Values, node: onnx.NodeProto, name: str) -> Array:
    """One number, one for each direction, or `[directions, 4·hidden]`, in a shape that meets the weights."""
    found = values.number(name, node) if name else np.zeros((), np.int8)
    return found.reshape(len(found), 1, -1) if found.size > 1 else found.reshape(1, 1, 1)
