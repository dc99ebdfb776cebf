"""Operators that act on each element alone, with broadcasting."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from graphsurgery import axes as ax
from graphsurgery.facts import TensorType, tensor_types
from graphsurgery.inference import Inference, rule
from graphsurgery.layers import scale_axis

UNARY_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardshrink, nn.Softshrink,
    nn.Tanhshrink, nn.Threshold, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout, nn.RReLU, torchvision.ops.StochasticDepth,
)  # fmt: skip
UNARY_FUNCTIONS = (
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh,
    F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.softsign, F.logsigmoid, F.dropout, F.dropout2d,
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.exp, torch.log, torch.log1p, torch.sqrt, torch.rsqrt,
    torch.abs, torch.neg, torch.square, torch.sin, torch.cos, torch.erf, torch.reciprocal, torch.sign,
    torch.round, torch.floor, torch.clone, torch.detach, operator.neg, torchvision.ops.stochastic_depth,
)  # fmt: skip
UNARY_METHODS = (
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "exp", "log", "log1p", "sqrt", "rsqrt", "abs", "neg", "square",
    "sin", "cos", "erf", "reciprocal", "sign", "round", "floor", "clone", "detach", "contiguous", "to", "type",
    "float", "double", "half", "bfloat16", "cpu", "type_as", "cuda",
)  # fmt: skip
BINARY_FUNCTIONS = (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.floordiv, operator.mod,
    operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.add, torch.sub, torch.mul, torch.div,
    torch.pow, torch.maximum, torch.minimum, torch.where, torch.true_divide, torch.multiply, torch.subtract,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.and_, operator.or_,
    torch.lerp, torch.addcmul, torch.addcdiv, torch.clamp, torch.clamp_min, torch.clamp_max, torch.clip,
)  # fmt: skip
BINARY_METHODS = (
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "pow", "maximum", "minimum", "where", "masked_fill",
    "masked_fill_", "eq", "ne", "lt", "le", "gt", "ge", "lerp", "clamp",
    "clamp_", "clamp_min", "clamp_max", "clip",
)  # fmt: skip


@rule(*UNARY_MODULES, *UNARY_FUNCTIONS, *UNARY_METHODS)
def unary(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """The output has the type of the input."""
    return TensorType(input.axes)


@rule(nn.PReLU)
def prelu(infer: Inference, input: TensorType) -> TensorType:
    """One slope for all channels, or one for each channel of axis 1."""
    weight = infer.parameter("weight")
    assert weight is not None
    if ax.size_of(weight[0]) > 1:
        infer.unify(weight[0], input[1])
        infer.attribute("num_parameters", weight[0])
    else:
        infer.fix(weight[0])
    return TensorType(input.axes)


@rule(*BINARY_FUNCTIONS, *BINARY_METHODS)
def pointwise(infer: Inference, *operands: Any, **options: Any) -> TensorType:
    """Axes are aligned from the right; those of size 1 stretch, the others are unified."""
    return broadcast(infer, *tensor_types(operands), *tensor_types(options))


def broadcast(infer: Inference, *operands: TensorType) -> TensorType:
    """The type of operands broadcast together."""
    if len(operands) == 2 and len(operands[0]) == len(operands[1]):
        return TensorType([_meet(infer, a, b) for a, b in zip(operands[0].axes, operands[1].axes, strict=True)])
    rank = max((len(typed) for typed in operands), default=0)
    axes: list[ax.Axis | None] = [None] * rank
    for typed in operands:
        for index, axis in enumerate(typed.axes, rank - len(typed)):
            known = axes[index]
            axes[index] = axis if known is None else _meet(infer, known, axis)
    return TensorType([ax.UNIT if axis is None else axis for axis in axes])


def _meet(infer: Inference, a: ax.Axis, b: ax.Axis) -> ax.Axis:
    if a is b:
        return a
    if ax.size_of(a) == ax.size_of(b):
        infer.unify(a, b)
        return b
    single, other = (a, b) if ax.size_of(a) == 1 else (b, a)
    if ax.size_of(single) != 1:
        infer.freeze_axis(f"{infer.operator()} pairs {ax.size_of(a)} indices with {ax.size_of(b)}", a, b)
    infer.fix(single)
    return other


@rule(scale_axis)
def scale(infer: Inference, x: TensorType, dim: int, parts: Any, batch: int = 0, merged: bool = False) -> TensorType:  # noqa: ARG001
    """A mask is laid out as the axis is: one (mask, outer, inner) for each term."""
    terms = []
    for mask, outer, inner in parts:
        around = [ax.free(n) if n > 1 else ax.UNIT for n in (outer, inner)]
        terms.append(ax.free(outer * inner) if mask is None else ax.product([around[0], mask[1], around[1]]))
    infer.unify(x[dim], ax.concat(terms))

    def relayout(node: torch.fx.Node, new: Any) -> None:
        written = node.args[2]
        assert isinstance(written, (list, tuple))
        layout = []
        for (mask, outer, inner), typed in zip(written, parts, strict=True):
            if mask is None:
                layout.append((None, 1, outer * inner))
                continue
            size = new.size(ax.product([ax.fixed(outer), typed[0][1], ax.fixed(inner)]))
            layout.append((mask, outer, size // (outer * new.size(typed[0][1]))))
        node.update_arg(2, tuple(layout))

    infer.on_rebuild(relayout)
    return TensorType(x.axes)
