"""Activations with attributes of their own, and those that ONNX Runtime has fused with what stands before them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from graphsurgery.onnx.importing.operators.registry import UnlikeTorchError, Value, rank, rule, shape_of, size_of
from graphsurgery.onnx.importing.program import Operator


@rule("ThresholdedRelu")
def _thresholded(operator: Operator, x: Value) -> Value:
    return F.threshold(x, operator.attributes.get("alpha", 1.0), 0.0)


@rule("Shrink")
def _shrink(operator: Operator, x: Value) -> Value:
    lambd, bias = operator.attributes.get("lambd", 0.5), operator.attributes.get("bias", 0.0)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, x * 0.0))


@rule("Hardmax")
def _hardmax(operator: Operator, x: Value) -> Value:
    axis = operator.attributes.get("axis", -1 if operator.opset >= 13 else 1) % rank(x)
    if operator.opset < 13 and axis != rank(x) - 1:
        raise UnlikeTorchError("a hardmax over several axes")
    return torch.scatter(torch.zeros_like(x), axis, torch.argmax(x, axis, keepdim=True), 1.0)


@rule("com.microsoft.QuickGelu")
def _quick_gelu(operator: Operator, x: Value) -> Value:
    return x * torch.sigmoid(operator.attributes.get("alpha", 1.702) * x)


@rule("com.microsoft.Gelu")
def _gelu(_: Operator, x: Value) -> Value:
    return F.gelu(x)


@rule("com.microsoft.BiasGelu")
def _bias_gelu(_: Operator, x: Value, bias: Value) -> Value:
    return F.gelu(x + bias)


@rule("com.microsoft.FastGelu")
def _fast_gelu(_: Operator, x: Value, bias: Value | None = None) -> Value:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@rule("com.microsoft.SkipLayerNormalization")
def _skip_layer_norm(
    operator: Operator, x: Value, skip: Value, scale: Value, shift: Value | None = None, bias: Value | None = None
) -> Value:
    return _normed(F.layer_norm, operator, x, skip, bias, scale, shift)


@rule("com.microsoft.EmbedLayerNormalization")
def _embedding_norm(
    operator: Operator,
    tokens: Value,
    segments: Value | None,
    words: Value,
    places: Value,
    table: Value | None,
    scale: Value,
    shift: Value,
    mask: Value | None = None,
    indices: Value | None = None,
) -> tuple[Value, ...]:
    """The sum of the embeddings of tokens `[batch, tokens]`, their places and segments, normed.

    Gives the norm, how many tokens of each example a mask lets through, and the sum.
    """
    total = words[tokens] + (places[: size_of(tokens, 1)] if indices is None else places[indices])
    if segments is not None and table is not None:
        total = total + table[segments]
    found = F.layer_norm(total, shape_of(total)[-1:], scale, shift, operator.attributes.get("epsilon", 1e-12))
    counts = torch.zeros_like(tokens[:, 0]) if mask is None else (mask == 1).sum(1)
    return (found, counts.to(torch.int32), total)[: len(operator.outputs)]


@rule("com.microsoft.SkipSimplifiedLayerNormalization")
def _skip_rms_norm(operator: Operator, x: Value, skip: Value, scale: Value, bias: Value | None = None) -> Value:
    return _normed(F.rms_norm, operator, x, skip, bias, scale)


def _normed(function: Value, operator: Operator, x: Value, skip: Value, bias: Value | None, *weights: Value) -> Value:
    """A sum and its norm; the sum is the last of four results, the statistics between them are none of torch's."""
    total = x + skip if bias is None else x + skip + bias
    epsilon = operator.attributes.get("epsilon", 1e-12)
    found = function(total, shape_of(total)[-1:], *weights, epsilon)
    if len(operator.outputs) < 4 or not operator.outputs[3]:
        return found
    if any(operator.outputs[1:3]):
        raise UnlikeTorchError("a norm that gives its statistics")
    return found, None, None, total


@rule("SimplifiedLayerNormalization", "com.microsoft.SimplifiedLayerNormalization")
def _rms_norm(operator: Operator, x: Value, scale: Value) -> Value:
    axis = operator.attributes.get("axis", -1) % rank(x)
    if axis != rank(x) - 1:
        raise UnlikeTorchError("a norm over several axes")
    return F.rms_norm(x, shape_of(x)[-1:], scale, operator.attributes.get("epsilon", 1e-5))


@rule("com.microsoft.FusedMatMul")
def _fused_matmul(operator: Operator, a: Value, b: Value) -> Value:
    given = operator.attributes
    if given.get("transBatchA") or given.get("transBatchB"):
        raise UnlikeTorchError("a product whose batches are transposed")
    a = a.transpose(-2, -1) if given.get("transA") else a
    b = b.transpose(-2, -1) if given.get("transB") else b
    alpha = given.get("alpha", 1.0)
    y = torch.matmul(a, b)
    return y if alpha == 1 else y * alpha
