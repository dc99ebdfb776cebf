"""Attention as torch has it, in a form that a trace can follow: projections, masks as numbers, and scaled products.

`nn.MultiheadAttention` and the transformers of torch choose between kernels by asking about tensors, masks and
gradients. What is followed is the one that training takes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import transformer

from graphsurgery.errors import TraceError
from graphsurgery.network.layers import TrainingFlag, either
from graphsurgery.network.paths import put
from graphsurgery.tracing.modes import FLAG

_WEIGHTS = frozenset(
    (
        "in_proj_weight",
        "in_proj_bias",
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "bias_k",
        "bias_v",
        "out_proj",
    )
)
"""What torch's layer has of its own; `LoweredAttention` has them in its linear layers."""
_LOWERED = "_lowered"
"""Under which name a layer with a forward of its own has what torch's does for it."""


class LoweredAttention(nn.Module):
    """`nn.MultiheadAttention` written with plain layers, over the same parameters; it is traced through."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        # A model may ask for the numbers that its layer was made with.
        for name in ("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first", "add_zero_attn"):
            setattr(self, name, getattr(attention, name))
        self.heads: int = attention.num_heads
        self.width: int = attention.embed_dim
        self.batch_first: bool = attention.batch_first
        # torch's transformer layers look at these two before they choose a fused kernel; so they choose none.
        self.in_proj_bias = None
        self._qkv_same_embed_dim = False
        self.drop = nn.Dropout(attention.dropout) if attention.dropout else None
        if attention.dropout:
            self.add_module(FLAG, TrainingFlag())
        self.in_proj: Any
        self.packed = attention.in_proj_weight is not None
        self.q_proj: nn.Linear
        self.k_proj: nn.Linear
        self.v_proj: nn.Linear
        if self.packed:
            self.in_proj = _linear(attention.in_proj_weight, attention.in_proj_bias)
        else:
            self.in_proj = nn.Module()
            self.in_proj.bias = attention.in_proj_bias
            self.q_proj = _linear(attention.q_proj_weight, None)
            self.k_proj = _linear(attention.k_proj_weight, None)
            self.v_proj = _linear(attention.v_proj_weight, None)
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        self.zeros = int(attention.add_zero_attn)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`: `[batch, tokens, channels]` in and out."""
        if is_causal and attn_mask is None:
            raise TraceError("nn.MultiheadAttention needs an attn_mask where is_causal says that it is causal")
        if query.dim() == 2:
            raise TraceError("nn.MultiheadAttention without a batch axis is not supported")
        # What is said to be causal has its mask, which is what training reads.
        mask = self._mask(attn_mask, key_padding_mask, query)
        q, k, v = (self._heads(x) for x in self._project(query, key, value))
        mixed, weights = self._mix(q, k, v, mask, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output if self.batch_first else output.transpose(0, 1), weights

    def _mix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The values as the scores mix them, in the form that torch has for each case.

        They differ where a mask hides all tokens: one gives zeros, the other what is no number.
        """
        if not need_weights:
            p = 0.0 if self.drop is None else either(self.get_submodule(FLAG)(), self.drop.p, 0.0)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p), None
        scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(self.width // self.heads))
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = weights if self.drop is None else self.drop(weights)
        return torch.matmul(weights, v), weights

    def _mask(self, attention: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
        """What is added to the scores `[batch, heads, queries, keys]`, of which axes may be missing or 1."""
        masks = []
        if attention is not None:
            added = _added(attention, like)
            masks.append(added.unflatten(0, (-1, self.heads)) if added.dim() == 3 else added)
        if padding is not None:
            masks.append(_added(padding, like).unsqueeze(1).unsqueeze(1))
        if not masks:
            return None
        mask = masks[0] if len(masks) == 1 else masks[0] + masks[1]
        more = (self.bias_k is not None) + self.zeros
        return F.pad(mask, (0, more)) if more else mask

    def _project(self, query: Any, key: Any, value: Any) -> tuple[Tensor, ...]:
        """Queries, keys and values `[batch, tokens, heads · d]`, with the keys and values that always stand behind."""
        same = query is key and key is value
        if not self.batch_first:
            query = query.transpose(0, 1)
            key = query if same else key.transpose(0, 1)
            value = query if same else value.transpose(0, 1)
        if self.packed and same:
            q, k, v = torch.split(self.in_proj(query), [self.width] * 3, -1)
        else:
            q, k, v = (self._linear(index, x) for index, x in enumerate((query, key, value)))
        return q, self._extended(k, self.bias_k), self._extended(v, self.bias_v)

    def _linear(self, index: int, x: Tensor) -> Tensor:
        """One of the three projections."""
        rows = slice(index * self.width, (index + 1) * self.width)
        whole: Any = self.in_proj.bias
        bias = None if whole is None else whole[rows]
        if self.packed:
            return F.linear(x, self.in_proj.weight[rows], bias)
        layer = (self.q_proj, self.k_proj, self.v_proj)[index]
        return layer(x) if bias is None else F.linear(x, layer.weight, bias)

    def _extended(self, x: Tensor, learned: Tensor | None) -> Tensor:
        """Keys or values, a learned token behind them and one of zeros, where there are such."""
        if learned is not None:
            x = torch.cat([x, learned.expand(x.shape[0], -1, -1)], 1)
        return F.pad(x, (0, 0, 0, self.zeros)) if self.zeros else x

    def _heads(self, x: Tensor) -> Tensor:
        """`[batch, tokens, heads · d]` to `[batch, heads, tokens, d]`."""
        return x.unflatten(-1, (self.heads, self.width // self.heads)).transpose(1, 2)


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """What a mask adds to the scores; where a mask of booleans is True, a key is out of sight."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)
    return mask


def _linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias
    return layer


def canonical_mask(
    mask: Any,
    mask_name: str,  # noqa: ARG001
    other_type: Any,  # noqa: ARG001
    other_name: str,  # noqa: ARG001
    target_type: Any,
    check_other: bool = True,  # noqa: ARG001
) -> Any:
    """As torch's: a mask as what is added to scores. Which types of masks are there is seen when they are added."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=target_type).masked_fill(mask, -math.inf)


def causal_as_said(mask: Any, is_causal: bool | None = None, size: Any = None) -> bool:  # noqa: ARG001
    """Whether a mask is said to be causal; torch compares it with one, to choose a kernel that needs none."""
    return is_causal is True


def lowered_attention(attention: nn.MultiheadAttention) -> LoweredAttention | None:
    """What is followed in the place of a layer; None of one with a forward of its own, which may call torch's."""
    lowered = LoweredAttention(attention)
    if type(attention).forward is not _FORWARD or "forward" in vars(attention):
        attention.add_module(_LOWERED, lowered.eval())
        attention.add_module("out_proj", lowered.out_proj)  # torch's is of a class that only its quantisation knows
        return None
    for name, value in vars(attention).items():
        if not (name.startswith("_") or hasattr(lowered, name)):
            vars(lowered)[name] = value
    for name, part in (*attention._parameters.items(), *attention._buffers.items(), *attention._modules.items()):
        if name not in _WEIGHTS and part is not None:
            put(lowered, name, part)
    return lowered


_FORWARD = nn.MultiheadAttention.forward


def forward(attention: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> Any:
    """Torch's forward, as a trace follows it, of a layer that calls it from its own."""
    lowered = attention._modules.get(_LOWERED)
    return _FORWARD(attention, *args, **kwargs) if lowered is None else lowered(*args, **kwargs)


REPLACEMENTS = (
    (nn.MultiheadAttention, "forward", forward),
    (torch.backends.mha, "get_fastpath_enabled", lambda: False),
    (F, "_none_or_dtype", lambda _: None),
    (F, "_canonical_mask", canonical_mask),
    (transformer, "_detect_is_causal_mask", causal_as_said),
)
"""In which module of torch, under which name, stands what a trace follows instead."""
