"""Operators for which the order of the indices along an axis means something; they fix that axis and no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from graphsurgery import axes as ax
from graphsurgery.facts import TensorType
from graphsurgery.inference import Inference, rule
from graphsurgery.rules.contraction import outputs_like


def _named(input: TensorType, dims: Any) -> Sequence[int]:
    """The numbers of the named axes, or of all."""
    if dims is None or dims == ():
        return range(len(input))
    return [dims] if isinstance(dims, int) else list(dims)


@rule(torch.roll, "roll")
def roll(infer: Inference, input: TensorType, shifts: Any, dims: Any = ()) -> TensorType:  # noqa: ARG001
    """Indices change places along the named axes; without names, along all."""
    infer.freeze_axis("an axis that is rolled", *(input[d] for d in _named(input, dims)))
    return TensorType(input.axes)


@rule(torch.flip, "flip")
def flip(infer: Inference, input: TensorType, *order: Any, dims: Any = None) -> TensorType:
    """Indices are reversed along the named axes."""
    given = order[0] if len(order) == 1 and not isinstance(order[0], int) else order
    infer.freeze_axis("an axis that is flipped", *(input[d] for d in (given if dims is None else dims)))
    return TensorType(input.axes)


@rule(torch.fliplr, "fliplr")
def fliplr(infer: Inference, input: TensorType) -> TensorType:
    """Axis 1 is reversed."""
    return flip(infer, input, 1)


@rule(torch.flipud, "flipud")
def flipud(infer: Inference, input: TensorType) -> TensorType:
    """Axis 0 is reversed."""
    return flip(infer, input, 0)


@rule(torch.rot90, "rot90")
def rot90(infer: Inference, input: TensorType, k: int = 1, dims: Sequence[int] = (0, 1)) -> TensorType:
    """Two axes are turned."""
    infer.freeze_axis("an axis that is turned", *(input[d] for d in dims))
    axes = list(input.axes)
    if k % 2:
        axes[dims[0]], axes[dims[1]] = axes[dims[1]], axes[dims[0]]
    return TensorType(axes)


@rule(torch.cumsum, "cumsum", "cumsum_", torch.cumprod, "cumprod", torch.logcumsumexp, "logcumsumexp")
def cumulate(infer: Inference, input: TensorType, dim: int, **options: Any) -> TensorType:  # noqa: ARG001
    """Every index sees those before it."""
    infer.freeze_axis("an axis that is summed up in order", input[dim])
    return TensorType(input.axes)


@rule(torch.diff, "diff")
def diff(infer: Inference, input: TensorType, n: int = 1, dim: int = -1) -> TensorType:  # noqa: ARG001
    """Neighbours are subtracted."""
    infer.freeze_axis("an axis whose neighbours are subtracted", input[dim])
    return outputs_like(infer, *((i, a) for i, a in enumerate(input.axes) if i != dim % len(input)))


@rule(torch.sort, "sort", torch.topk, "topk")
def sort(infer: Inference, input: TensorType, *others: Any, dim: int | None = None, **options: Any) -> Any:  # noqa: ARG001
    """Values and indices along one axis, in the order of the values."""
    position = 1 if infer.operator() == "topk" else 0
    given = others[position] if len(others) > position else None
    chosen = dim if dim is not None else given if isinstance(given, int) and not isinstance(given, bool) else -1
    infer.freeze_axis("an axis that is sorted", input[chosen])
    axes = list(input.axes)
    axes[chosen] = ax.fixed(infer.value[0].shape[chosen])
    return TensorType(axes), TensorType(axes)


@rule(torch.argsort, "argsort")
def argsort(infer: Inference, input: TensorType, dim: int = -1, **options: Any) -> TensorType:  # noqa: ARG001
    """Indices along one axis, in the order of the values."""
    infer.freeze_axis("an axis that is sorted", input[dim])
    return TensorType(input.axes)


@rule(torch.tril, "tril", torch.triu, "triu")
def triangle(infer: Inference, input: TensorType, diagonal: int = 0) -> TensorType:  # noqa: ARG001
    """What stays depends on the indices along the last two axes."""
    infer.freeze_axis("an axis of a triangle", *input.axes[-2:])
    return TensorType(input.axes)


@rule(F.one_hot)
def one_hot(infer: Inference, input: TensorType, num_classes: int = -1) -> TensorType:  # noqa: ARG001
    """A new last axis has a 1 at an index."""
    return TensorType([*input.axes, ax.fixed(infer.value.shape[-1])])


@rule(nn.LocalResponseNorm, F.local_response_norm)
def local_response_norm(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Every channel is divided by its neighbours."""
    infer.freeze_axis("channels that are divided by their neighbours", input[1])
    return TensorType(input.axes)


_LAST = (torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft, torch.fft.hfft, torch.fft.ihfft)
_LAST_TWO = (torch.fft.fft2, torch.fft.ifft2, torch.fft.rfft2, torch.fft.irfft2)
_ALL = (torch.fft.fftn, torch.fft.ifftn, torch.fft.rfftn, torch.fft.irfftn)


@rule(*_LAST, *_LAST_TWO, *_ALL, torch.fft.fftshift, torch.fft.ifftshift)
def fourier(infer: Inference, input: TensorType, *others: Any, dim: Any = None, **options: Any) -> TensorType:
    """A Fourier transform along the named axes, or the last, the last two, or all."""
    shift = infer.node.target in (torch.fft.fftshift, torch.fft.ifftshift)
    position = 0 if shift else 1
    if dim is None and len(others) > position:
        dim = others[position]
    sizes = options.get("s", others[0] if others and not shift else None)
    if dim is None and infer.node.target in _LAST:
        dim = -1
    elif dim is None and infer.node.target in _LAST_TWO:
        dim = (-2, -1)
    elif dim is None and isinstance(sizes, (list, tuple)):
        dim = tuple(range(-len(sizes), 0))
    named = {d % len(input) for d in _named(input, dim)}
    infer.freeze_axis("an axis that is Fourier-transformed", *(input[d] for d in named))
    return outputs_like(infer, *((i, a) for i, a in enumerate(input.axes) if i not in named))
