"""Operators on each element: arithmetic, comparisons, activations."""

from __future__ import annotations

import math
import operator as op
from functools import reduce

import torch
import torch.nn.functional as F

from graphsurgery.network.operators import Trait, operators
from graphsurgery.onnx.importing.operators.registry import (
    FLOATING,
    OPERATORS,
    UnlikeTorchError,
    Value,
    rank,
    rule,
    torch_dtype,
)
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.sizes import Sizes, number

for _known in operators():
    if _known.onnx is not None and Trait.ELEMENTWISE in _known.traits:
        OPERATORS[_known.onnx] = lambda _, x, _call=_known.call: _call(x)
    elif _known.onnx is not None:
        OPERATORS[_known.onnx] = lambda _, a, b, _call=_known.call: _call(a, b)


@rule("Div")
def _div(_: Operator, a: Value, b: Value) -> Value:
    whole = all(not x.is_floating_point() if rank(x) else type(x) is int for x in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


@rule("Mod")
def _mod(operator: Operator, a: Value, b: Value) -> Value:
    return torch.fmod(a, b) if operator.attributes.get("fmod") else a % b


@rule("Max", "Min")
def _extreme(operator: Operator, *values: Value) -> Value:
    least = operator.kind == "Max"

    def pair(a: Value, b: Value) -> Value:
        if not rank(a):
            a, b = b, a
        if not rank(b):
            return torch.clamp(a, min=b) if least else torch.clamp(a, max=b)
        return torch.maximum(a, b) if least else torch.minimum(a, b)

    return reduce(pair, values)


@rule("Sum")
def _sum(_: Operator, *values: Value) -> Value:
    return reduce(op.add, values)


@rule("Mean")
def _mean(_: Operator, *values: Value) -> Value:
    return reduce(op.add, values) / len(values)


@rule("Where")
def _where(_: Operator, condition: Value, a: Value, b: Value) -> Value:
    return torch.where(condition, a, b)


@rule("Cast")
def _cast(operator: Operator, x: Value) -> Value:
    """A change of precision is left out: the network has one, which it can be cast to."""
    code = operator.attributes["to"]
    return x if code in FLOATING and x.is_floating_point() else x.to(torch_dtype(code))


@rule("CastLike")
def _cast_like(_: Operator, x: Value, like: Value) -> Value:
    if not rank(like) and not hasattr(like, "dtype"):
        raise UnlikeTorchError("a change to what a number is")
    if type(x) in (bool, int, float):
        return float(x) if like.is_floating_point() else (bool if like.dtype == torch.bool else int)(x)
    return x if x.is_floating_point() and like.is_floating_point() else x.to(like.dtype)


@rule("LeakyRelu")
def _leaky_relu(operator: Operator, x: Value) -> Value:
    return F.leaky_relu(x, operator.attributes.get("alpha", 0.01))


@rule("Elu")
def _elu(operator: Operator, x: Value) -> Value:
    return F.elu(x, operator.attributes.get("alpha", 1.0))


@rule("Celu")
def _celu(operator: Operator, x: Value) -> Value:
    return F.celu(x, operator.attributes.get("alpha", 1.0))


@rule("Selu")
def _selu(operator: Operator, x: Value) -> Value:
    if not {"alpha", "gamma"}.isdisjoint(operator.attributes):
        raise UnlikeTorchError("a Selu with slopes of its own")
    return F.selu(x)


@rule("Gelu")
def _gelu(operator: Operator, x: Value) -> Value:
    return F.gelu(x, approximate=operator.attributes.get("approximate", b"none").decode())


@rule("Swish")
def _swish(operator: Operator, x: Value) -> Value:
    alpha = operator.attributes.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@rule("HardSigmoid")
def _hard_sigmoid(operator: Operator, x: Value) -> Value:
    alpha, beta = operator.attributes.get("alpha", 0.2), operator.attributes.get("beta", 0.5)
    if beta == 0.5 and math.isclose(alpha, 1 / 6, rel_tol=1e-6):
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@rule("Clip")
def _clip(operator: Operator, x: Value, low: Sizes | None = None, high: Sizes | None = None) -> Value:
    least = operator.attributes.get("min") if low is None else number(low)
    most = operator.attributes.get("max") if high is None else number(high)
    return x if least is None and most is None else torch.clamp(x, least, most)


@rule("PRelu")
def _prelu(_: Operator, x: Value, slope: Value) -> Value:
    return torch.where(x < 0, x * slope, x)


@rule("Softmax", "LogSoftmax")
def _softmax(operator: Operator, x: Value) -> Value:
    function = F.softmax if operator.kind == "Softmax" else F.log_softmax
    axis = operator.attributes.get("axis", -1 if operator.opset >= 13 else 1) % rank(x)
    if operator.opset < 13 and axis != rank(x) - 1:
        raise UnlikeTorchError("a softmax over several axes")
    return function(x, dim=axis)
