"""What convolutions and pools give on meta tensors, found out without running them; see `shapes`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import (
    Tensor,
    empty,  # a name of our own, as tracing replaces `torch.empty`
)

_META = torch.device("meta")
_SMOOTH, _STEPPED = ("bilinear", "bicubic"), ("nearest", "nearest-exact")
"""Ways to resize an image."""


def new(dtype: torch.dtype, shape: Sequence[int]) -> Tensor | None:
    """A contiguous meta tensor; None of one without elements."""
    return None if 0 in shape else empty(shape, dtype=dtype, device=_META)


def is_plain(x: Any, rank: int | None = None) -> bool:
    """Whether x is a contiguous meta tensor of floats, with this many axes."""
    right = isinstance(x, Tensor) and x.is_meta and x.is_floating_point() and x.is_contiguous()
    return right and (rank is None or x.dim() == rank)


def _sizes(value: Any, count: int, least: int = 1) -> Sequence[int]:
    """An option that is one number for all spatial axes, or a number for each."""
    sizes: Sequence[int] = (value,) * count if isinstance(value, int) else value
    if len(sizes) != count or not all(type(size) is int and size >= least for size in sizes):
        raise ValueError(f"{value} is not a number of at least {least} for each of {count} axes")
    return sizes


def _whole(groups: Any) -> int:
    if type(groups) is not int or groups < 1:
        raise ValueError(f"{groups} groups")
    return groups


def convolution_module(module: Any, x: Tensor) -> Tensor | None:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    parameters = module._parameters
    options = (module.stride, module.padding, module.dilation, module.groups)
    return convolution(x, parameters["weight"], parameters["bias"], *options)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    rank = weight.dim()
    fits = is_plain(x, rank) and weight.dtype == x.dtype and x.shape[1] == weight.shape[1] * _whole(groups)
    if not fits or weight.shape[0] % groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    options = (_sizes(stride, rank - 2), _sizes(padding, rank - 2, 0), _sizes(dilation, rank - 2))
    spatial = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], *options, strict=True)
    ]
    return new(x.dtype, (x.shape[0], weight.shape[0], *spatial)) if min(spatial, default=1) > 0 else None


def transposed_module(module: Any, x: Tensor, output_size: Any = None) -> Tensor | None:
    if module.padding_mode != "zeros" or output_size is not None:
        return None
    parameters = module._parameters
    options = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
    return transposed(x, parameters["weight"], parameters["bias"], *options)


def transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor | None:
    """A transposed convolution, whose weight is `[input, output / groups, ...]`."""
    rank, outputs = weight.dim(), weight.shape[1] * _whole(groups)
    fits = is_plain(x, rank) and weight.dtype == x.dtype and x.shape[1] == weight.shape[0] and not x.shape[1] % groups
    if not fits or (bias is not None and bias.shape != (outputs,)):
        return None
    given = ((stride, 1), (padding, 0), (output_padding, 0), (dilation, 1))
    options = [_sizes(option, rank - 2, least) for option, least in given]
    places = list(zip(x.shape[2:], weight.shape[2:], *options, strict=True))
    spatial = [(n - 1) * s - 2 * p + d * (k - 1) + more + 1 for n, k, s, p, more, d in places]
    certain = all(more < max(s, d) for _, _, s, _, more, d in places) and min(spatial, default=1) > 0
    return new(x.dtype, (x.shape[0], outputs, *spatial)) if certain else None


def resized(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor | None:
    """An image that is made larger or smaller."""
    known = mode in _SMOOTH or (mode in _STEPPED and align_corners is None)
    if (
        not is_plain(x, 4)
        or not known
        or recompute_scale_factor
        or antialias
        or (size is None) == (scale_factor is None)
    ):
        return None
    if size is not None:
        spatial = [operator.index(n) for n in _sizes(size, 2)]
    else:
        factors = (scale_factor,) * 2 if isinstance(scale_factor, (int, float)) else scale_factor
        spatial = [int(n * factor) for n, factor in zip(x.shape[2:], factors, strict=True)]
    return new(x.dtype, (*x.shape[:2], *spatial)) if min(spatial) > 0 else None


def pool_module(module: Any, x: Tensor) -> Tensor | None:
    average = type(getattr(module, "count_include_pad", False)) is bool
    average &= getattr(module, "divisor_override", None) is None
    if getattr(module, "return_indices", False) or not average:
        return None
    dilation = getattr(module, "dilation", 1)
    return _pool(x, module.kernel_size, module.stride, module.padding, dilation, module.ceil_mode)


def max_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    return None if return_indices else _pool(x, kernel_size, stride, padding, dilation, ceil_mode)


def average_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,  # noqa: ARG001
) -> Tensor | None:
    return _pool(x, kernel_size, stride, padding, 1, ceil_mode)


def _pool(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor | None:
    """Pooling of `[batch, channel, height, width]`."""
    if not is_plain(x, 4) or type(ceil_mode) is not bool:
        return None
    stride = kernel if stride is None or stride == [] else stride
    options = (_sizes(kernel, 2), _sizes(stride, 2), _sizes(padding, 2, 0), _sizes(dilation, 2))
    spatial = []
    for n, *option in zip(x.shape[2:], *options, strict=True):
        k, s, p, d = option
        reach = n + 2 * p - d * (k - 1) - 1
        size = -(-reach // s) + 1 if ceil_mode else reach // s + 1
        if ceil_mode and (size - 1) * s >= n + p:
            size -= 1  # the last window would begin in the padding
        if 2 * p > k or size < 1:
            return None
        spatial.append(size)
    return new(x.dtype, (*x.shape[:2], *spatial))


def adaptive_pool_module(module: Any, x: Tensor) -> Tensor | None:
    return adaptive_pool(x, module.output_size)


def adaptive_pool(x: Tensor, output_size: Any) -> Tensor | None:
    if not is_plain(x, 4) or output_size is None:
        return None
    asked = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    spatial = _sizes([n if size is None else size for size, n in zip(asked, x.shape[2:], strict=True)], 2)
    return new(x.dtype, (*x.shape[:2], *spatial))
