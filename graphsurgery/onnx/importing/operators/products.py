"""Matrix products, convolutions and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from graphsurgery.onnx.importing.operators.padding import padded, per_axis, transposed_options
from graphsurgery.onnx.importing.operators.registry import UnlikeTorchError, Value, rank, rule, shape_of
from graphsurgery.onnx.importing.program import Operator

_PRESENT = 3
"""Outputs of an attention: the result, and its keys and values with those before."""


@rule("MatMul")
def _matmul(_: Operator, a: Value, b: Value, bias: Value | None = None) -> Value:
    """The product; the sum behind it, where the two are read as one and a layer cannot be made of them."""
    return torch.matmul(a, b) if bias is None else torch.matmul(a, b) + bias


@rule("Gemm")
def _gemm(operator: Operator, a: Value, b: Value, c: Value | None = None) -> Value:
    alpha, beta = operator.attributes.get("alpha", 1.0), operator.attributes.get("beta", 1.0)
    a = a.transpose(0, 1) if operator.attributes.get("transA") else a
    b = b.transpose(0, 1) if operator.attributes.get("transB") else b
    y = torch.matmul(a, b)
    y = y if alpha == 1 else y * alpha
    if c is None:
        return y
    return y + (c if beta == 1 else c * beta)


@rule("Einsum")
def _einsum(operator: Operator, *values: Value) -> Value:
    return torch.einsum(operator.attributes["equation"].decode(), *values)


@rule("Conv")
def _conv(operator: Operator, x: Value, weight: Value, bias: Value | None = None) -> Value:
    x, padding = padded(operator, x, shape_of(weight)[2:])
    function = (F.conv1d, F.conv2d, F.conv3d)[rank(x) - 3]
    dims = rank(x) - 2
    stride, dilation = per_axis(operator, "strides", dims), per_axis(operator, "dilations", dims)
    return function(x, weight, bias, stride, padding, dilation, operator.attributes.get("group", 1))


@rule("ConvTranspose")
def _conv_transpose(operator: Operator, x: Value, weight: Value, bias: Value | None = None) -> Value:
    options = transposed_options(operator, rank(x) - 2)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank(x) - 3]
    return function(x, weight, bias, **options)


@rule("Attention")
def _attention(
    operator: Operator,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
) -> tuple[Value, ...]:
    """Of heads `[batch, heads, tokens, size]`; what came before stands in front of keys and values."""
    given = operator.attributes
    if rank(q) != 4 or len(operator.outputs) > _PRESENT or given.get("softcap"):
        raise UnlikeTorchError("an attention with packed heads, its own weights or a cap")
    if (past_key is None) != (past_value is None):
        raise UnlikeTorchError("an attention with half a past")
    scale, causal = given.get("scale"), bool(given.get("is_causal", 0))
    if causal and (mask is not None or past_key is not None):
        raise UnlikeTorchError("an attention with a mask or a past that is causal besides")
    if past_key is not None and past_value is not None:
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
    grouped = shape_of(q)[1] != shape_of(k)[1]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return (y, k, v)[: len(operator.outputs)]
