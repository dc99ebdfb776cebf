"""Attention: scaled dot products and softmax."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphsurgery import axes as ax
from graphsurgery.facts import Resize, TensorType
from graphsurgery.inference import Inference, rule
from graphsurgery.rules.contraction import set_argument
from graphsurgery.rules.pointwise import broadcast


@rule(F.scaled_dot_product_attention)
def attention(
    infer: Inference,
    query: TensorType,
    key: TensorType,
    value: TensorType,
    attn_mask: TensorType | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,  # noqa: ARG001
    scale: float | None = None,
    enable_gqa: bool = False,
) -> TensorType:
    """`q [..., L, d]`, `k [..., S, d]`, `v [..., S, e]`: d is summed over; the scale stays when d changes.

    With grouped queries every head of k and v serves as many heads of q, which come after each other.
    """
    if enable_gqa and ax.size_of(query[-3]) != ax.size_of(key[-3]):
        copies = ax.fixed(ax.size_of(query[-3]) // ax.size_of(key[-3]))
        infer.unify(key[-3], value[-3])
        key, value = (typed.replace(-3, ax.product([typed[-3], copies])) for typed in (key, value))
    infer.unify(query[-1], key[-1])
    infer.unify(key[-2], value[-2])
    infer.reads(0, len(query) - 1, query[-1], None, 0)
    _weigh(infer, key[-2])
    lead = broadcast(infer, TensorType(query.axes[:-2]), TensorType(key.axes[:-2]), TensorType(value.axes[:-2]))
    for channels in (query[-1], value[-1]):
        infer.multiplies(*lead.axes, query[-2], key[-2], channels)
    if attn_mask is not None:
        broadcast(infer, TensorType([*lead.axes, query[-2], key[-2]]), attn_mask)
    if scale is None:
        width = ax.size_of(query[-1])

        def keep_scale(node: fx.Node, new: Resize) -> None:
            if new.size(query[-1]) != width:
                set_argument(node, 6, "scale", 1 / math.sqrt(width))

        infer.on_rebuild(keep_scale)
    return TensorType([*lead.axes, query[-2], value[-1]])


def _weigh(infer: Inference, axis: ax.Axis) -> None:
    """A softmax mixes an axis; learned tokens that stand beside fixed positions are positions too."""
    if any(all(dim.fixed for dim in term) for term in ax.resolve(axis)):
        infer.fix(axis)
    infer.mixes(axis, "softmax")


@rule(nn.Softmax, nn.LogSoftmax, nn.Softmin)
def softmax_module(infer: Inference, input: TensorType) -> TensorType:
    """Mixes one axis."""
    dim = infer.submodule.dim
    if not isinstance(dim, int):
        infer.freeze("a softmax that names no axis", input)
        return TensorType(input.axes)
    _weigh(infer, input[dim])
    return TensorType(input.axes)


@rule(nn.Softmax2d)
def softmax_channels(infer: Inference, input: TensorType) -> TensorType:
    """Mixes the channels at every position."""
    _weigh(infer, input[-3])
    return TensorType(input.axes)


@rule(F.softmax, F.log_softmax, F.softmin, torch.softmax, torch.log_softmax, "softmax", "log_softmax")
def softmax(infer: Inference, input: TensorType, dim: int, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Mixes one axis."""
    _weigh(infer, input[dim])
    return TensorType(input.axes)
