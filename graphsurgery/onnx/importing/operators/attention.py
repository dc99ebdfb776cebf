"""Attention as ONNX Runtime has it, with queries, keys and values whose heads stand side by side."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from graphsurgery.onnx.importing.operators.registry import UnlikeTorchError, Value, rank, rule, shape_of, size_of
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.sizes import Sizes, number

_USUAL = {"softcap": 0.0, "local_window_size": -1, "smooth_softmax": 0, "rotary_interleaved": 0}
"""Options of grouped queries without which they are an attention."""


_REFUSED = ("do_rotary", "past_present_share_buffer", "rotary_embedding_dim")
"""Options of an attention that do more than attend."""


@rule("com.microsoft.Attention")
def _packed(
    operator: Operator,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    mask: Value | None = None,
    past: Value | None = None,
    more: Value | None = None,
) -> Value:
    """Of tokens `[batch, tokens, features]`, whose queries, keys and values are one product.

    Args:
        weight: `[features, queries + keys + values]`.
        mask: which tokens are looked at; see `_masked`.
        past: the keys and values of the tokens before.
        more: what is added to the scores, `[batch, heads, tokens, tokens]`.
    """
    if past is not None or any(map(operator.attributes.get, _REFUSED)):
        raise UnlikeTorchError("an attention with a cache, or with pairs that are turned")
    sizes = operator.attributes.get("qkv_hidden_sizes") or [shape_of(weight)[1] // 3] * 3
    parts = (x @ weight if bias is None else x @ weight + bias).split(list(sizes), 2)
    return _attended(operator, parts[0], parts[1], parts[2], mask, more)


@rule("com.microsoft.MultiHeadAttention")
def _multi_head(
    operator: Operator,
    q: Value,
    k: Value,
    v: Value,
    bias: Value | None = None,
    mask: Value | None = None,
    more: Value | None = None,
    *past: Value | None,
) -> Value:
    """Of queries, keys and values `[batch, tokens, heads · size]`; masks are those of `_packed`."""
    if rank(q) != 3 or rank(k) != 3:
        raise UnlikeTorchError("an attention whose heads are packed")
    if any(each is not None for each in past):
        raise UnlikeTorchError("an attention with a cache")
    if bias is not None:
        width, inner = shape_of(q)[2], shape_of(v)[2]
        q, k, v = q + bias[:width], k + bias[width : 2 * width], v + bias[2 * width : 2 * width + inner]
    return _attended(operator, q, k, v, mask, more)


def _attended(operator: Operator, q: Value, k: Value, v: Value, mask: Value | None, more: Value | None) -> Value:
    """What tokens see of each other, `[batch, tokens, heads · size]`."""
    if any(operator.outputs[1:]):
        raise UnlikeTorchError("an attention with a cache")
    causal, scale = bool(operator.attributes.get("unidirectional", 0)), operator.attributes.get("scale") or None
    heads = [_in_heads(x, operator.attributes["num_heads"]) for x in (q, k, v)]
    bias = more if mask is None else _masked(operator, mask, size_of(k, 1), q)
    if mask is not None and more is not None:
        bias = bias + more
    if causal and bias is not None:
        steps = torch.ones(size_of(q, 1), size_of(k, 1), dtype=torch.bool, device=q.device)
        bias, causal = bias.masked_fill(~steps.tril(size_of(k, 1) - size_of(q, 1)), float("-inf")), False
    y = F.scaled_dot_product_attention(
        heads[0], heads[1], heads[2], attn_mask=bias, is_causal=causal, scale=scale
    ).transpose(1, 2)
    return y.reshape(y.shape[0], y.shape[1], shape_of(v)[2])


def _masked(operator: Operator, mask: Value, tokens: Any, like: Value) -> Value:
    """What is added to the scores `[batch, heads, tokens, tokens]` of what is not looked at.

    Args:
        operator: that attends.
        mask: 1 for each token that is looked at, `[batch, tokens]` or `[batch, tokens, tokens]`; or how many of the
            tokens of an example are, `[batch]`.
        tokens: that are looked at at most.
        like: a tensor of the scores' type.
    """
    if rank(mask) == 1:
        mask = torch.arange(tokens, device=mask.device) < mask.reshape(-1, 1)
    if rank(mask) > 3:
        raise UnlikeTorchError("an attention with a mask of four axes")
    mask = (mask <= 0).to(like.dtype) * operator.attributes.get("mask_filter_value", -10000.0)
    return mask.unsqueeze(1) if rank(mask) == 3 else mask.unsqueeze(1).unsqueeze(1)


@rule("com.microsoft.GroupQueryAttention")
def _grouped(
    operator: Operator,
    q: Value,
    k: Value | None = None,
    v: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    last: Value | None = None,
    total: Sizes | None = None,
    cosines: Value | None = None,
    sines: Value | None = None,
) -> tuple[Value, ...]:
    """Of queries, keys and values `[batch, tokens, heads · size]`; several heads of queries share one of keys.

    Args:
        past_key: the keys of the tokens before, `[batch, heads, tokens, size]`.
        past_value: their values.
        last: the last token of each example, those before included; what comes behind it nothing looks at.
        total: the number of tokens, those before included.
        cosines, sines: of the angles by which the halves of a head are turned, `[tokens, size / 2]`.
    """
    given = operator.attributes
    heads, groups = given["num_heads"], given["kv_num_heads"]
    if k is None or v is None or last is None or (past_key is None) != (past_value is None):
        raise UnlikeTorchError("an attention with packed heads")
    _require_usual(operator)
    q, k, v = (_in_heads(x, n) for x, n in ((q, heads), (k, groups), (v, groups)))
    tokens = size_of(k, 2)
    steps, last = torch.arange(tokens, device=q.device), last.reshape(-1, 1)
    before = None if past_key is None else _of_past(past_key, last + 1 - tokens)
    if given.get("do_rotary", 0):
        q, k = (_turned(x, cosines, sines, steps if before is None else before + steps) for x in (q, k))
    mask = _triangle(q, tokens, last) if before is None else None
    if before is not None:
        _require_growing(size_of(past_key, 2), tokens, total)
        k, v = _behind(past_key, k, before), _behind(past_value, v, before)
        mask = (torch.arange(size_of(k, 2), device=q.device) <= (before + steps).unsqueeze(2)).unsqueeze(1)
    scale = given.get("scale") or None
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=heads != groups).transpose(1, 2)
    return (y.reshape(y.shape[0], y.shape[1], shape_of(y)[2] * shape_of(y)[3]), k, v)[: len(operator.outputs)]


def _require_usual(operator: Operator) -> None:
    if any(operator.attributes.get(name, usual) != usual for name, usual in _USUAL.items()):
        raise UnlikeTorchError("an attention with pairs that are turned, or with a cap, a window or a smooth softmax")


def _in_heads(x: Value, heads: int) -> Value:
    """Heads side by side as `[batch, heads, tokens, size]`."""
    return x.reshape(x.shape[0], x.shape[1], heads, shape_of(x)[2] // heads).transpose(1, 2)


def _triangle(q: Value, tokens: Any, last: Value) -> Value:
    """Row by row what a token may look at, and for its last token what an example has at all: beyond is refused."""
    triangle = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
    return triangle & triangle.index_select(0, last.reshape(-1)).unsqueeze(1).unsqueeze(1)


def _require_growing(kept: Any, tokens: Any, total: Sizes | None) -> None:
    """A past is not empty, and new tokens make it longer; the trace holds both."""
    if kept == 0:
        raise UnlikeTorchError("an attention whose past is empty")
    if total is None or number(total) != kept + tokens:
        raise UnlikeTorchError("an attention whose past has room for what comes")


def _of_past(past: Value, counts: Value) -> Value:
    """How many tokens of the past each example has, `[batch, 1]`; more than there are, or fewer than 0, is refused."""
    return torch.arange(size_of(past, 2) + 1, device=past.device).index_select(0, counts.reshape(-1)).unsqueeze(1)


def _behind(past: Value, new: Value, before: Value) -> Value:
    """What an example has of a past `[batch, heads, tokens, size]`, and behind it what is new.

    Args:
        before: how many tokens of the past each example has, `[batch, 1]`.
    """
    kept = size_of(past, 2)
    both = torch.cat((past, new), 2)
    places = torch.arange(size_of(both, 2), device=new.device)
    beyond = (places - before + kept).clamp(max=size_of(both, 2) - 1)
    chosen = torch.where(places < before, places, beyond).unsqueeze(1).unsqueeze(3)
    return torch.gather(both, 2, chosen.expand(-1, new.shape[1], -1, new.shape[3]))


def _turned(x: Value, cosines: Value | None, sines: Value | None, places: Value) -> Value:
    """Heads `[batch, heads, tokens, size]` whose halves are turned by angles of their places."""
    size = shape_of(x)[3]
    if cosines is None or sines is None or 2 * shape_of(cosines)[1] != size:
        raise UnlikeTorchError("an attention that turns a part of each head")
    cosine, sine = (table[places] for table in (cosines, sines))
    if rank(places) > 1:
        cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    left, right = x[..., : size // 2], x[..., size // 2 :]
    return torch.cat((left * cosine - right * sine, left * sine + right * cosine), 3)
