"""Attention as ONNX Runtime has it, with queries, keys and values whose heads stand side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from graphsurgery.onnx.importing.operators.registry import UnlikeTorchError, Value, rank, rule, shape_of, size_of
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.sizes import Sizes

_USUAL = {"do_rotary": 0, "softcap": 0.0, "local_window_size": -1, "smooth_softmax": 0, "rotary_interleaved": 0}
"""Options of grouped queries without which they are an attention."""


@rule("com.microsoft.MultiHeadAttention")
def _multi_head(operator: Operator, q: Value, k: Value, v: Value, bias: Value | None = None) -> Value:
    """Of queries, keys and values `[batch, tokens, heads · size]`, without a mask or a cache."""
    heads = operator.attributes["num_heads"]
    if rank(q) != 3 or rank(k) != 3 or operator.attributes.get("mask_filter_value", -10000.0) != -10000.0:
        raise UnlikeTorchError("an attention whose heads are packed")
    if any(operator.outputs[1:]):
        raise UnlikeTorchError("an attention with a cache")
    if bias is not None:
        width, inner = shape_of(q)[2], shape_of(v)[2]
        q, k, v = q + bias[:width], k + bias[width : 2 * width], v + bias[2 * width : 2 * width + inner]
    parts = [x.reshape(x.shape[0], x.shape[1], heads, shape_of(x)[2] // heads).transpose(1, 2) for x in (q, k, v)]
    causal, scale = bool(operator.attributes.get("unidirectional", 0)), operator.attributes.get("scale") or None
    y = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=causal, scale=scale).transpose(1, 2)
    return y.reshape(y.shape[0], y.shape[1], shape_of(v)[2])


@rule("com.microsoft.GroupQueryAttention")
def _grouped(
    operator: Operator,
    q: Value,
    k: Value | None = None,
    v: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    last: Value | None = None,
    total: Sizes | None = None,  # noqa: ARG001
) -> tuple[Value, ...]:
    """Of queries, keys and values `[batch, tokens, heads · size]`; several heads of queries share one of keys.

    Args:
        last: the last token of each example; what comes behind it is filling, which nothing looks at.
        total: the number of tokens, without a past.
    """
    given = operator.attributes
    heads, groups = given["num_heads"], given["kv_num_heads"]
    if k is None or v is None or past_key is not None or past_value is not None or last is None:
        raise UnlikeTorchError("an attention with packed heads or a cache")
    if any(given.get(name, usual) != usual for name, usual in _USUAL.items()):
        raise UnlikeTorchError("an attention that rotates, or with a cap, a window or a smooth softmax")
    shapes = ((q, heads), (k, groups), (v, groups))
    q, k, v = (x.reshape(x.shape[0], x.shape[1], n, shape_of(x)[2] // n).transpose(1, 2) for x, n in shapes)
    tokens = size_of(k, 2)
    before = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
    # Row by row what a token may look at, and for its last token what an example has at all: beyond is refused.
    mask = before & before.index_select(0, last.reshape(-1)).unsqueeze(1).unsqueeze(1)
    scale = given.get("scale") or None
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=heads != groups)
    y = y.transpose(1, 2)
    return (y.reshape(y.shape[0], y.shape[1], shape_of(y)[2] * shape_of(y)[3]), k, v)[: len(operator.outputs)]
