"""Convolutions in double precision, part by part.

The kernels that torch has for them on a processor first lay out what each place of the output reads, of all examples
together: as many times the size of the input as a kernel has places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LAID_OUT = 3 * 2**24
"""Bytes that are laid out at once: more than what a process keeps for itself when it frees it."""
_CONVOLUTIONS = frozenset((torch.conv1d, torch.conv2d, torch.conv3d))


class ConvolutionsInStrips(TorchFunctionMode):
    """While this lasts, large convolutions of float64 on the CPU are computed example by example, in strips."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        return _convolved(func, *args, **options) if func in _CONVOLUTIONS else func(*args, **options)


def _convolved(
    conv: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """What the convolution gives `[batch, channels, ...]`."""
    axes = weight.dim() - 2
    steps, spread = each_axis(stride, axes), each_axis(dilation, axes)
    reach = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
    pads = _pads(padding, reach)
    counts = [
        (n + sum(pad) - r - 1) // s + 1 for n, pad, r, s in zip(input.shape[2:], pads, reach, steps, strict=False)
    ]
    each = weight.element_size() * math.prod((*weight.shape[1:], *counts))
    is_double = input.dtype == torch.float64 and input.device.type == "cpu"
    if not is_double or input.dim() != axes + 2 or min(counts) < 1 or len(input) * each <= _LAID_OUT:
        return conv(input, weight, bias, stride, padding, dilation, groups)
    padded = F.pad(input, [n for pad in reversed(pads) for n in pad]) if any(map(any, pads)) else input
    longest = max(range(axes), key=counts.__getitem__)
    at_once = max(1, counts[longest] * _LAID_OUT // each)
    begins = range(0, counts[longest], at_once)
    lengths = [(min(at_once, counts[longest] - begin) - 1) * steps[longest] + reach[longest] + 1 for begin in begins]
    parts = [
        torch.cat(
            [
                conv(x.narrow(longest + 2, begin * steps[longest], length), weight, bias, stride, 0, dilation, groups)
                for begin, length in zip(begins, lengths, strict=True)
            ],
            longest + 2,
        )
        for x in padded.split(max(1, _LAID_OUT // each))
    ]
    return torch.cat(parts)


def each_axis(value: int | Sequence[int], axes: int) -> list[int]:
    """An option for each axis."""
    given = [value] if isinstance(value, int) else list(value)
    return given * axes if len(given) == 1 else given


def _pads(padding: str | int | Sequence[int], reach: Sequence[int]) -> list[tuple[int, int]]:
    """How many places are put in front of each axis, and behind it."""
    if padding == "same":
        return [(r // 2, r - r // 2) for r in reach]
    if isinstance(padding, str):
        return [(0, 0)] * len(reach)
    return [(n, n) for n in each_axis(padding, len(reach))]
