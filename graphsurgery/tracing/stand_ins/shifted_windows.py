"""torchvision's attention in shifted windows, without decisions: what a trace follows in place of the original.

The original asks the sizes whether to shift, and for clips how long a window is, so a trace of it is right for one
answer only. Here both are numbers computed from the sizes: what is not to be shifted is rolled by 0, and its mask hides
nothing. So one graph is the network at every resolution, with the same operators on the same numbers.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphsurgery.network import layers


def shifted_window_attention(
    input: Tensor,
    qkv_weight: Tensor,
    proj_weight: Tensor,
    relative_position_bias: Tensor,
    window_size: Sequence[int],
    num_heads: int,
    shift_size: Sequence[int],
    attention_dropout: float = 0.0,
    dropout: float = 0.0,
    qkv_bias: Tensor | None = None,
    proj_bias: Tensor | None = None,
    logit_scale: Tensor | None = None,
    training: bool = True,
) -> Tensor:
    """As torchvision's, on images `[batch, height, width, channels]`: an axis that one window covers is not shifted."""
    _, shift = window_and_shift(shift_size, input.shape[1:-1], window_size)
    windows = _Windows(input, window_size, shift)
    if logit_scale is not None and qkv_bias is not None:
        qkv_bias = qkv_bias.clone()
        length = qkv_bias.numel() // 3
        qkv_bias[length : 2 * length].zero_()
    q, k, v = windows.heads(windows.cut(input), qkv_weight, qkv_bias, num_heads)
    if logit_scale is None:
        scores = windows.scores(q, k, num_heads)
    else:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(logit_scale, max=math.log(100.0)).exp()
    weights = F.softmax(windows.hide(scores + relative_position_bias, num_heads), dim=-1)
    mixed = windows.mix(F.dropout(weights, p=attention_dropout, training=training), v)
    return windows.join(F.dropout(F.linear(mixed, proj_weight, proj_bias), p=dropout, training=training))


def shifted_window_attention_3d(
    input: Tensor,
    qkv_weight: Tensor,
    proj_weight: Tensor,
    relative_position_bias: Tensor,
    window_size: Sequence[int],
    num_heads: int,
    shift_size: Sequence[int],
    attention_dropout: float = 0.0,
    dropout: float = 0.0,
    qkv_bias: Tensor | None = None,
    proj_bias: Tensor | None = None,
    training: bool = True,
) -> Tensor:
    """As torchvision's, on clips `[batch, time, height, width, channels]`; window and shift are as they are given."""
    windows = _Windows(input, window_size, shift_size)
    q, k, v = windows.heads(windows.cut(input), qkv_weight, qkv_bias, num_heads)
    scores = windows.scores(q, k, num_heads) + relative_position_bias
    weights = F.softmax(windows.hide(scores, num_heads), dim=-1)
    mixed = windows.mix(F.dropout(weights, p=attention_dropout, training=training), v)
    return windows.join(F.dropout(F.linear(mixed, proj_weight, proj_bias), p=dropout, training=training))


def window_and_shift(
    shift_size: Sequence[int], size_dhw: Sequence[int], window_size: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The window of each axis, no longer than the axis, and its shift: 0 where one window covers the axis."""
    longer = [size > window for size, window in zip(size_dhw, window_size, strict=True)]
    windows = [size + more * (window - size) for more, size, window in zip(longer, size_dhw, window_size, strict=True)]
    return windows, [more * shift if _may_move(shift) else 0 for more, shift in zip(longer, shift_size, strict=True)]


_FOLLOWED = (
    ("torchvision.models.swin_transformer", "shifted_window_attention", shifted_window_attention),
    ("torchvision.models.video.swin_transformer", "shifted_window_attention_3d", shifted_window_attention_3d),
    ("torchvision.models.video.swin_transformer", "_get_window_and_shift_size", window_and_shift),
)


def replacements() -> list[tuple[Any, str, Callable[..., Any]]]:
    """In which module of torchvision, under which name, stands what a trace follows instead; none if not imported."""
    return [(sys.modules[home], name, function) for home, name, function in _FOLLOWED if home in sys.modules]


def _may_move(shift: Any) -> bool:
    """Whether a shift is not 0 at every size; one that is computed from sizes may be anything."""
    return type(shift) is not int or shift != 0


class _Windows:
    """The windows of an image or a clip `[batch, sizes..., channels]`, and attention in them."""

    def __init__(self, input: Tensor, window: Sequence[int], shift: Sequence[int]) -> None:
        self.batch, *self.sizes, self.channels = input.shape
        self.window, self.shift = window, shift
        self.ends = [(w - n % w) % w for n, w in zip(self.sizes, window, strict=True)]
        self.padded = [n + end for n, end in zip(self.sizes, self.ends, strict=True)]
        self.counts = [n // w for n, w in zip(self.padded, window, strict=True)]
        self.count, self.tokens = reduce(operator.mul, self.counts), reduce(operator.mul, window)
        self.moved = [axis for axis, s in enumerate(shift) if _may_move(s)]

    def cut(self, x: Tensor) -> Tensor:
        """`[batch · windows, tokens, channels]`, padded at the ends and shifted to the front."""
        x = F.pad(x, (0, 0, *(n for end in reversed(self.ends) for n in (0, end))))
        x = self._rolled(x, [-self.shift[axis] for axis in self.moved])
        pairs = [n for pair in zip(self.counts, self.window, strict=True) for n in pair]
        rank = len(pairs)
        x = x.view(self.batch, *pairs, self.channels)
        x = x.permute(0, *range(1, rank, 2), *range(2, rank + 1, 2), rank + 1)
        return x.reshape(self.batch * self.count, self.tokens, self.channels)

    def heads(self, x: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[batch · windows, heads, tokens, channels of a head]`."""
        qkv = F.linear(x, weight, bias)
        qkv = qkv.reshape(self.batch * self.count, self.tokens, 3, heads, self.channels // heads)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def scores(self, q: Tensor, k: Tensor, heads: int) -> Tensor:
        """Scaled products `[batch · windows, heads, tokens, tokens]`."""
        return (q * (self.channels // heads) ** -0.5).matmul(k.transpose(-2, -1))

    def hide(self, scores: Tensor, heads: int) -> Tensor:
        """The scores, far lower between tokens that only the shift brought together."""
        if not self.moved:
            return scores
        mask = layers.shift_mask(scores, self.padded, self.window, self.shift)
        scores = scores.view(self.batch, self.count, heads, self.tokens, self.tokens) + mask.unsqueeze(1).unsqueeze(0)
        return scores.view(-1, heads, self.tokens, self.tokens)

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """`[batch · windows, tokens, channels]`."""
        return weights.matmul(v).transpose(1, 2).reshape(self.batch * self.count, self.tokens, self.channels)

    def join(self, x: Tensor) -> Tensor:
        """What `cut` was given the shape of, from its windows."""
        rank = len(self.window)
        x = x.view(self.batch, *self.counts, *self.window, self.channels)
        x = x.permute(0, *(axis for k in range(1, rank + 1) for axis in (k, k + rank)), 2 * rank + 1)
        x = self._rolled(x.reshape(self.batch, *self.padded, self.channels), [self.shift[axis] for axis in self.moved])
        return x[(slice(None), *(slice(n) for n in self.sizes))].contiguous()

    def _rolled(self, x: Tensor, shifts: Sequence[int]) -> Tensor:
        return torch.roll(x, shifts, [1 + axis for axis in self.moved]) if self.moved else x
