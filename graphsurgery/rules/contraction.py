"""Operators that sum over an axis of their input: linear, convolutions, matrix products, embeddings."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from graphsurgery import axes as ax
from graphsurgery.facts import TensorType
from graphsurgery.inference import Inference, rule
from graphsurgery.rules.pointwise import broadcast


def outputs_like(infer: Inference, *free: tuple[int, ax.Axis]) -> TensorType:
    """The type of the node's one output: fixed, but for the given axes."""
    axes = [ax.fixed(n) for n in infer.value.shape]
    for index, axis in free:
        axes[index] = axis
    return TensorType(axes)


@rule(nn.Linear)
def linear(infer: Inference, input: TensorType) -> TensorType:
    """`x [..., in]`, `weight [out, in]`, `bias [out]`."""
    weight = infer.parameter("weight")
    assert weight is not None
    infer.attribute("in_features", weight[1])
    infer.attribute("out_features", weight[0])
    return linear_function(infer, input, weight, infer.parameter("bias"))


@rule(F.linear)
def linear_function(
    infer: Inference, input: TensorType, weight: TensorType, bias: TensorType | None = None
) -> TensorType:
    """The functional form, whose weight may itself be computed."""
    infer.unify(input[-1], weight[1])
    if bias is not None:
        infer.unify(bias[0], weight[0])
    infer.reads(0, len(input) - 1, weight[1], weight, 1)
    infer.writes(weight[0])
    infer.multiplies(*input.axes[:-1], *weight.axes)
    return input.replace(-1, weight[0])


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(infer: Inference, input: TensorType) -> TensorType:
    """`x [batch, g·i, ...]`, `weight [g·o, i, ...]`: depthwise is `i = 1`, an ordinary convolution is `g = 1`."""
    weight, module = infer.parameter("weight"), infer.submodule
    assert weight is not None
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    groups = _groups(module.groups)
    result = _convolve(infer, input, weight, infer.parameter("bias"), groups)
    infer.attribute("in_channels", input[len(input) - len(weight) + 1])
    infer.attribute("out_channels", weight[0])
    infer.attribute("groups", groups)
    return result


@rule(F.conv1d, F.conv2d, F.conv3d)
def convolution_function(
    infer: Inference,
    input: TensorType,
    weight: TensorType,
    bias: TensorType | None = None,
    stride: Any = 1,  # noqa: ARG001
    padding: Any = 0,  # noqa: ARG001
    dilation: Any = 1,  # noqa: ARG001
    groups: int = 1,
) -> TensorType:
    """The functional form, whose weight may itself be computed and whose groups are a literal."""
    axis = _groups(groups)
    result = _convolve(infer, input, weight, bias, axis)
    if groups > 1:
        infer.on_rebuild(lambda node, new: set_argument(node, 6, "groups", new.size(axis)))
    return result


def _groups(count: int) -> ax.Axis:
    """The axis of a convolution's groups; one group is no axis at all."""
    return ax.free(count) if count > 1 else ax.UNIT


def set_argument(node: torch.fx.Node, position: int, name: str, value: Any) -> None:
    """Set an argument of a call, wherever it was given."""
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _convolve(
    infer: Inference, input: TensorType, weight: TensorType, bias: TensorType | None, groups: ax.Axis
) -> TensorType:
    channel = len(input) - len(weight) + 1
    infer.fix(*weight.axes[2:])
    per_group = ax.size_of(weight[0]) // ax.size_of(groups)
    infer.unify(input[channel], ax.product([groups, weight[1]]))
    if ax.size_of(groups) > 1:
        infer.unify(weight[0], ax.product([groups, ax.free(per_group)]))
    if bias is not None:
        infer.unify(bias[0], weight[0])
    infer.reads(0, channel, weight[1], weight, 1)
    infer.writes(weight[0])
    infer.multiplies(*input.axes[:channel], *weight.axes[:2])
    return outputs_like(infer, *enumerate(input.axes[:channel]), (channel, weight[0]))


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(infer: Inference, input: TensorType, output_size: Any = None) -> TensorType:  # noqa: ARG001
    """`x [batch, g·i, ...]`, `weight [g·i, o, ...]`, output channels `g·o`."""
    weight, module = infer.parameter("weight"), infer.submodule
    assert weight is not None
    assert isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    groups = _groups(module.groups)
    channel = len(input) - len(weight) + 1
    infer.fix(*weight.axes[2:])
    if module.groups > 1:
        infer.freeze_axis("a grouped transposed convolution", input[channel], *weight.axes[:2], groups)
    infer.unify(input[channel], weight[0])
    output = ax.product([groups, weight[1]])
    infer.tie("bias", output)
    infer.reads(0, channel, weight[0], weight, 0)
    infer.writes(weight[1])
    infer.multiplies(*input.axes[:channel], *weight.axes[:2])
    infer.attribute("in_channels", weight[0])
    infer.attribute("out_channels", output)
    return outputs_like(infer, *enumerate(input.axes[:channel]), (channel, output))


@rule(torch.matmul, operator.matmul, "matmul", "__matmul__", torch.bmm, "bmm")
def matmul(infer: Inference, input: TensorType, other: TensorType) -> TensorType:
    """`[..., n, k] @ [..., k, m]`: k is summed over, the leading axes broadcast."""
    left, right = input, other
    inner = right[-2] if len(right) > 1 else right[0]
    infer.unify(left[-1], inner)
    left_axis, right_axis = len(left) - 1, max(len(right) - 2, 0)
    if left.parameter and not right.parameter:
        infer.reads(1, right_axis, inner, left, left_axis)
    else:
        infer.reads(0, left_axis, inner, right if right.parameter else None, right_axis)
    for side in (left, right):
        if side.parameter is not None:
            infer.writes(side[-1] if side is right else side[0])
    if len(left) == 1 or len(right) == 1:
        result = TensorType([*left.axes[:-1], *(right.axes[:-2] + right.axes[-1:] if len(right) > 1 else ())])
    else:
        lead = broadcast(infer, TensorType(left.axes[:-2]), TensorType(right.axes[:-2]))
        result = TensorType([*lead.axes, left[-2], right[-1]])
    infer.multiplies(*result.axes, inner)
    return result


@rule(nn.Embedding)
def embedding(infer: Inference, input: TensorType) -> TensorType:
    """`weight [rows, channels]`: the rows are fixed, the channels are written."""
    weight = infer.parameter("weight")
    assert weight is not None
    infer.fix(weight[0])
    infer.writes(weight[1])
    infer.attribute("embedding_dim", weight[1])
    return TensorType([*input.axes, weight[1]])
