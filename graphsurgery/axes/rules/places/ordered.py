"""Operators to which the order of indices means something: they compute at the size that an axis had (`axes.kept`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.kept import computes_at_size, rounds_of, source_of
from graphsurgery.axes.maps import Edit
from graphsurgery.axes.rules.contraction import outputs_like
from graphsurgery.axes.rules.reductions import takes_values
from graphsurgery.axes.types import Resize, TensorType
from graphsurgery.network.layers import pick, spread


@rule(spread)
def spread_to_old_places(infer: Inference, x: TensorType, dim: int, rounds: tuple[tuple[int, ...], ...]) -> TensorType:
    """The old places are fixed; what is spread to them goes on following surgery."""
    infer.reads(0, dim, x[dim], None, 0)

    def follow(node: fx.Node, new: Resize) -> None:
        lifted = new.lift(x[dim]) if isinstance(new, Edit) else None
        if lifted is not None:
            node.update_arg(2, rounds_of(source_of(rounds)[lifted.source], len(rounds[0])))

    infer.on_rebuild(follow)
    return x.replace(dim, ax.fixed(len(rounds[0])))


@rule(pick)
def picked_from_old_places(
    infer: Inference, x: TensorType, dim: int, places: tuple[int, ...], like: TensorType | None = None
) -> TensorType:
    """What is picked follows surgery; the old places are fixed."""
    infer.fix(x[dim])
    picked = ax.free(len(places)) if like is None else like[dim]

    def follow(node: fx.Node, new: Resize) -> None:
        lifted = new.lift(picked) if isinstance(new, Edit) else None
        if lifted is not None:
            node.update_arg(2, tuple(places[old] for old in lifted.source.tolist()))

    infer.on_rebuild(follow)
    return x.replace(dim, picked)


def _in_order(infer: Inference, reason: str, input: TensorType, dims: Sequence[int]) -> TensorType:
    """What reads some axes in order and gives as many indices along each."""
    named = [dim % len(input) for dim in dims]
    computes_at_size(infer, reason, input, named, {dim: input[dim] for dim in named})
    return TensorType(input.axes)


def named_axes(input: TensorType, dims: Any) -> Sequence[int]:
    """The numbers of the named axes, or of all."""
    if dims is None or dims == ():
        return range(len(input))
    return [dims] if isinstance(dims, int) else list(dims)


@rule(torch.roll, "roll")
def roll(infer: Inference, input: TensorType, shifts: Any, dims: Any = ()) -> TensorType:  # noqa: ARG001
    """Indices change places along the named axes; without names all numbers do, in the order of memory."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        infer.freeze_axis("an axis that is rolled with others", *input.axes)
        return TensorType(input.axes)
    return _in_order(infer, "an axis that is rolled", input, named_axes(input, dims))


@rule(torch.flip, "flip")
def flip(infer: Inference, input: TensorType, *order: Any, dims: Any = None) -> TensorType:
    """Indices are reversed along the named axes."""
    given = order[0] if len(order) == 1 and not isinstance(order[0], int) else order
    return _in_order(infer, "an axis that is flipped", input, named_axes(input, given if dims is None else dims))


@rule(torch.fliplr, "fliplr")
def fliplr(infer: Inference, input: TensorType) -> TensorType:
    """Axis 1 is reversed."""
    return flip(infer, input, 1)


@rule(torch.flipud, "flipud")
def flipud(infer: Inference, input: TensorType) -> TensorType:
    """Axis 0 is reversed."""
    return flip(infer, input, 0)


@rule(torch.cumsum, "cumsum", "cumsum_", torch.cumprod, "cumprod", "cumprod_", torch.logcumsumexp, "logcumsumexp")
def cumulate(infer: Inference, input: TensorType, dim: int, **options: Any) -> TensorType:  # noqa: ARG001
    """Every index sees those before it."""
    return _in_order(infer, "an axis that is summed up in order", input, [dim])


@rule(torch.cummax, "cummax", torch.cummin, "cummin")
def extreme_so_far(infer: Inference, input: TensorType, dim: int) -> tuple[TensorType, TensorType]:
    """Every index sees those before it, and says which of them it takes."""
    return _in_places(infer, "an axis that is gone through in order", input, dim)


def _in_places(infer: Inference, reason: str, input: TensorType, dim: int) -> tuple[TensorType, TensorType]:
    """Values along an axis in an order, and where they are, which means the axis."""
    if all(takes_values(user) for user in infer.node.users):
        computes_at_size(infer, reason, input, [dim])
    else:
        infer.freeze_axis(reason, input[dim])
    given = input.replace(dim, ax.fixed(infer.value[0].shape[dim]))
    return given, TensorType(given.axes)


@rule(torch.diff, "diff")
def diff(infer: Inference, input: TensorType, n: int = 1, dim: int = -1) -> TensorType:  # noqa: ARG001
    """Neighbours are subtracted."""
    computes_at_size(infer, "an axis whose neighbours are subtracted", input, [dim])
    return outputs_like(infer, *((i, a) for i, a in enumerate(input.axes) if i != dim % len(input)))


@rule(torch.trapezoid, torch.trapz, torch.cumulative_trapezoid)
def integral(
    infer: Inference,
    y: TensorType,
    x: TensorType | None = None,
    *,
    dim: int = -1,
    **options: Any,  # noqa: ARG001
) -> TensorType:
    """Neighbours are summed up, by the steps between them: over the whole axis, or up to every place."""
    infer.freeze("the steps of an integral", x)
    computes_at_size(infer, "an axis that is summed up in order", y, [dim])
    place = dim % len(y)
    left = [ax.fixed(infer.value.shape[place])] if infer.node.target is torch.cumulative_trapezoid else []
    return TensorType([*y.axes[:place], *left, *y.axes[place + 1 :]])


@rule(torch.gradient)
def differences(
    infer: Inference,
    input: TensorType,
    *others: Any,  # noqa: ARG001
    dim: Any = None,
    **options: Any,  # noqa: ARG001
) -> tuple[TensorType, ...]:
    """A tensor of differences for each of the named axes, or for all."""
    named = {d % len(input) for d in named_axes(input, dim)}
    computes_at_size(infer, "an axis whose neighbours are subtracted", input, named)
    axes = [ax.fixed(ax.size_of(a)) if i in named else a for i, a in enumerate(input.axes)]
    return tuple(TensorType(axes) for _ in infer.value)


@rule(torch.renorm, "renorm")
def renorm(infer: Inference, input: TensorType, p: Any, dim: int, maxnorm: Any) -> TensorType:  # noqa: ARG001
    """Every slice along an axis is divided by its norm, which is over all others."""
    others = [index for index in range(len(input)) if index != dim % len(input)]
    return _in_order(infer, "axes of a norm over several", input, others)


@rule(torch.stft, "stft")
def spectrum(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Windows of the last axis are Fourier-transformed."""
    computes_at_size(infer, "an axis that is Fourier-transformed", input, [-1])
    return outputs_like(infer, *enumerate(input.axes[:-1]))


@rule(torch.istft, "istft")
def signal(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """The axes of frequencies and of windows become one of time."""
    infer.freeze_axis("an axis that is Fourier-transformed", *input.axes[-2:])
    return outputs_like(infer, *enumerate(input.axes[:-2]))


@rule(torch.sort, "sort", torch.topk, "topk")
def sort(infer: Inference, input: TensorType, *others: Any, dim: int | None = None, **options: Any) -> Any:  # noqa: ARG001
    """Values and indices along one axis, in the order of the values."""
    position = 1 if infer.operator() == "topk" else 0
    given = others[position] if len(others) > position else None
    chosen = dim if dim is not None else given if isinstance(given, int) and not isinstance(given, bool) else -1
    return _in_places(infer, "an axis that is sorted", input, chosen)


@rule(torch.msort, "msort")
def sorted_first(infer: Inference, input: TensorType) -> TensorType:
    """Values along the first axis, in their order."""
    computes_at_size(infer, "an axis that is sorted", input, [0])
    return input.replace(0, ax.fixed(infer.value.shape[0]))


@rule(torch.argsort, "argsort")
def argsort(infer: Inference, input: TensorType, dim: int = -1, **options: Any) -> TensorType:  # noqa: ARG001
    """Indices along one axis, in the order of the values."""
    infer.freeze_axis("an axis that is sorted", input[dim])
    return TensorType(input.axes)


@rule(nn.ChannelShuffle, F.channel_shuffle, torch.native_channel_shuffle)
def channel_shuffle(infer: Inference, input: TensorType, groups: int = 0) -> TensorType:  # noqa: ARG001
    """Channels of groups take turns; where a trace could not put weights in order instead."""
    return _in_order(infer, "channels that are shuffled", input, [1])


@rule(nn.LocalResponseNorm, F.local_response_norm)
def local_response_norm(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Every channel is divided by its neighbours."""
    return _in_order(infer, "channels that are divided by their neighbours", input, [1])


_LAST = (torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft, torch.fft.hfft, torch.fft.ihfft)
_LAST_TWO = (
    torch.fft.fft2, torch.fft.ifft2, torch.fft.rfft2, torch.fft.irfft2, torch.fft.hfft2, torch.fft.ihfft2,
)  # fmt: skip
_ALL = (
    torch.fft.fftn, torch.fft.ifftn, torch.fft.rfftn, torch.fft.irfftn, torch.fft.hfftn, torch.fft.ihfftn,
)  # fmt: skip


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
    named = {d % len(input) for d in named_axes(input, dim)}
    same = {d: input[d] for d in named if infer.value.shape[d] == ax.size_of(input[d])}
    computes_at_size(infer, "an axis that is Fourier-transformed", input, named, same)
    return outputs_like(infer, *((i, a) for i, a in enumerate(input.axes) if i not in named or i in same))
