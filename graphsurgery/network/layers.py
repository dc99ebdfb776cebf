"""The modules and functions of our own that may stand in a traced network.

They are ordinary torch code with same-named constructor attributes, so that checkpoints rebuild them by name and
ONNX export needs nothing special.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = [
    "Boundary",
    "ChannelGate",
    "SegmentedLayerNorm",
    "TrainingFlag",
    "either",
    "hold",
    "scale_axis",
    "segmented_group_norm",
    "segmented_layer_norm",
    "segmented_normalize",
    "shift_mask",
    "weigh",
    "weighted_group_norm",
    "weighted_instance_norm",
    "weighted_rms_norm",
]


_Function = TypeVar("_Function", bound=Callable[..., Any])


def one_node(function: _Function) -> _Function:
    """Let a function be one node of whatever graph torch.fx traces, as it is in ours: also when pickle traces anew."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = next((given for given in (*args, *kwargs.values()) if isinstance(given, fx.Proxy)), None)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", call, args, kwargs)

    return cast("_Function", call)


class TrainingFlag(nn.Module):
    """Gives its mode, so that a graph can ask for it: True in training."""

    def forward(self) -> bool:
        return self.training


@one_node
def either(training: bool, in_training: Any, in_evaluation: Any) -> Any:
    """What the mode asks for; both are computed."""
    return in_training if training else in_evaluation


@one_node
def hold(found: Any, traced: Any, line: str) -> None:
    """Refuse an input for which the model would have gone another way than it did when it was traced.

    Args:
        found: a size, or a comparison of sizes, that the model asked for in order to decide.
        traced: its value in the trace.
        line: the line of the model that asked.

    Raises:
        ValueError: the two differ.
    """
    if found != traced:
        raise ValueError(f"{line} finds {found} where the trace found {traced}; trace the model at this input size")


class Boundary(nn.Module):
    """Gives what it is given, and marks where one part of a network ends and the next begins.

    Passes change the widths of what crosses it as they do elsewhere, but leave the mark where it is.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Any) -> Any:
        """`x`, a tensor or a dict of tensors, as it is."""
        return x

    def extra_repr(self) -> str:
        return repr(self.name)


class ChannelGate(nn.Module):
    """One hard-concrete gate per channel of a space; returns the mask `[batch, channels]`.

    In training every example draws its own mask, or the batch one where it is shared; in evaluation the mask is the
    deterministic gate, the same for all.
    `u ~ U(0, 1)`, `s = sigmoid((ln u - ln(1 - u) + loc) / beta)`, `g = clip(s (zeta - gamma) + gamma, 0, 1)`.

    Source: Louizos, Welling, Kingma, "Learning sparse neural networks through L0 regularization", ICLR 2018, section
    2.2; per example and channel as in Pašen & Boža, "Merging of neural networks", arXiv:2204.09973.
    """

    def __init__(
        self,
        channels: int,
        space: str = "",
        beta: float = 2 / 3,
        gamma: float = -0.1,
        zeta: float = 1.1,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.space = space
        self.channels = channels
        self.beta = beta
        self.gamma = gamma
        self.zeta = zeta
        self.shared = shared
        self.loc = nn.Parameter(torch.ones(channels))

    def forward(self, reference: Tensor) -> Tensor:
        """The mask `[batch, channels]` for the batch of `reference [batch, ...]`."""
        if self.training:
            rows = 1 if self.shared else reference.shape[0]
            u = torch.rand(rows, self.channels, dtype=self.loc.dtype, device=self.loc.device)
            noise = torch.log(u.clamp_min(torch.finfo(u.dtype).tiny)) - torch.log1p(-u)
            s = torch.sigmoid((noise + self.loc) / self.beta)
        else:
            s = torch.sigmoid(self.loc)
        s = s.expand(reference.shape[0], self.channels)
        return torch.clamp(s * (self.zeta - self.gamma) + self.gamma, 0.0, 1.0)

    def value(self) -> Tensor:
        """The deterministic gate `[channels]`, each in [0, 1]."""
        return torch.clamp(torch.sigmoid(self.loc) * (self.zeta - self.gamma) + self.gamma, 0.0, 1.0)

    def open_probability(self) -> Tensor:
        """`P[g > 0]` of each channel `[channels]`: `sigmoid(loc - beta ln(-gamma / zeta))`."""
        return torch.sigmoid(self.loc - self.beta * math.log(-self.gamma / self.zeta))

    def extra_repr(self) -> str:
        return f"{self.channels}, space={self.space!r}{', shared=True' if self.shared else ''}"


@one_node
def scale_axis(
    x: Tensor,
    dim: int,
    parts: Sequence[tuple[Tensor | None, int, int]],
    batch: int | None = 0,
    merged: bool = False,
) -> Tensor:
    """Multiply axis `dim` of `x` by per-example factors, laid out as the axis is typed.

    Args:
        x: the tensor; its axis `batch` holds the examples.
        dim: the axis that is scaled.
        parts: one `(mask, outer, inner)` for each term of the axis, in order. `mask [batch, n]` stands for the term
            `outer · n · inner`; a mask of None leaves `outer · inner` indices as they are.
        batch: the axis of the examples; None where there is none, and the mask of the first example serves for all.
        merged: whether that axis has several entries (windows, heads) for each example, next to each other.
    """
    factors = []
    rows = 1 if batch is None else x.shape[batch]
    for mask, outer, inner in parts:
        if mask is None:
            ones = torch.ones((1, outer * inner), dtype=x.dtype, device=x.device)
            factors.append(ones.expand(rows, -1))
            continue
        factor = mask[:1] if batch is None else mask
        if merged:
            factor = factor.unsqueeze(1).expand(-1, rows // mask.shape[0], -1).flatten(0, 1)
        if inner > 1:
            factor = factor.unsqueeze(2).expand(-1, -1, inner).flatten(1)
        if outer > 1:
            factor = factor.repeat(1, outer)
        factors.append(factor)
    factor = factors[0] if len(factors) == 1 else torch.cat(factors, 1)
    shape = [1] * x.dim()
    shape[dim] = factor.shape[1]
    if batch is not None:
        shape[batch] = -1
    return x * (factor if batch is None or batch < dim else factor.t()).reshape(shape)


@one_node
def segmented_layer_norm(
    x: Tensor,
    segments: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    groups: Sequence[int] | None = None,
    shares: Tensor | None = None,
) -> Tensor:
    """LayerNorm of each group of segments of the last axis by its own mean and variance.

    Args:
        x: `[..., sum(segments)]`.
        segments: channels of each segment, in order; one segment is plain LayerNorm.
        weight: scale `[sum(segments)]`, applied after all segments are normalised.
        bias: shift `[sum(segments)]`.
        eps: added to each variance.
        groups: the group of each segment; by default every segment is one of its own.
        shares: how much each channel counts in mean and variance, in proportion `[sum(segments)]`; by default all the
            same. Copies of one channel share what it counted.
    """

    def norm(part: Tensor, share: Tensor | None) -> Tensor:
        if share is None:
            return F.layer_norm(part, part.shape[-1:], None, None, eps)
        share = share / share.sum()
        centred = part - (part * share).sum(-1, keepdim=True)
        return centred * torch.rsqrt((centred.square() * share).sum(-1, keepdim=True) + eps)

    y = _each_group(x, -1, segments, groups, norm, shares)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


@one_node
def segmented_normalize(
    x: Tensor,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    *,
    segments: Sequence[int],
    groups: Sequence[int] | None = None,
    shares: Tensor | None = None,
) -> Tensor:
    """`F.normalize` of each group of segments of axis `dim` by its own norm.

    What dividing by a norm over channels becomes in a direct sum of networks; segments and groups are those of
    `segmented_layer_norm`. The shares `[sum(segments)]` are factors on what each channel adds to `sum |x|^p`.
    """

    def norm(part: Tensor, share: Tensor | None) -> Tensor:
        if share is None:
            return F.normalize(part, p, dim, eps)
        return part / weigh(part, dim, share ** (1 / p)).norm(p, dim, keepdim=True).clamp_min(eps)

    return _each_group(x, dim, segments, groups, norm, shares)


@one_node
def segmented_group_norm(
    x: Tensor,
    segments: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """`F.group_norm` of each group of segments of axis 1, and of all positions, by its own mean and variance.

    What a norm over all channels and positions becomes in a direct sum of networks; the arguments are those of
    `segmented_layer_norm`.
    """
    y = _each_group(x, 1, segments, groups, lambda part, _: F.group_norm(part, 1, None, None, eps))
    if weight is not None:
        y = weigh(y, 1, weight)
    return y if bias is None else y + bias.reshape([-1 if axis == 1 else 1 for axis in range(x.dim())])


def _each_group(
    x: Tensor,
    dim: int,
    segments: Sequence[int],
    groups: Sequence[int] | None,
    norm: Callable[[Tensor, Tensor | None], Tensor],
    shares: Tensor | None = None,
) -> Tensor:
    """Apply `norm` to the segments of each group together, with what is theirs of the shares."""
    pieces = x.split(list(segments), dim)
    own = [None] * len(pieces) if shares is None else shares.split(list(segments))
    members: dict[int, list[int]] = {}
    for index, group in enumerate(range(len(pieces)) if groups is None else groups):
        members.setdefault(group, []).append(index)
    normed = list(pieces)
    for places in members.values():
        whole = pieces[places[0]] if len(places) == 1 else torch.cat([pieces[i] for i in places], dim)
        found = [share for i in places if (share := own[i]) is not None]
        parts = norm(whole, torch.cat(found) if found else None).split([segments[i] for i in places], dim)
        for index, piece in zip(places, parts, strict=True):
            normed[index] = piece
    return normed[0] if len(normed) == 1 else torch.cat(normed, dim)


@one_node
def weighted_rms_norm(x: Tensor, shares: Tensor, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """`F.rms_norm` over the last axis, whose channels count in proportion to their shares.

    Args:
        x: `[..., channels]`.
        shares: `[channels]`; copies of one channel share what it counted.
        weight: scale `[channels]`.
        eps: added to the mean square; by default the precision of the dtype of `x`.
    """
    share = shares / shares.sum()
    square = (x.square() * share).sum(-1, keepdim=True)
    y = x * torch.rsqrt(square + (torch.finfo(x.dtype).eps if eps is None else eps))
    return y if weight is None else y * weight


@one_node
def weighted_group_norm(
    x: Tensor,
    num_groups: int,
    shares: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.group_norm`, in which the channels of a group count in proportion to their shares.

    Args:
        x: `[batch, channels, ...]`.
        num_groups: how many groups of neighbouring channels there are.
        shares: `[channels]`; copies of one channel share what it counted.
        weight: scale `[channels]`.
        bias: shift `[channels]`.
        eps: added to each variance.
    """
    share = shares.reshape(num_groups, -1, 1)
    share = share / share.sum(1, keepdim=True)
    y = x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, -1)
    y = y - (y * share).sum(2, keepdim=True).mean(3, keepdim=True)
    y = y * torch.rsqrt((y.square() * share).sum(2, keepdim=True).mean(3, keepdim=True) + eps)
    y = y.reshape(x.shape)
    if weight is not None:
        y = weigh(y, 1, weight)
    return y if bias is None else y + bias.reshape([-1 if axis == 1 else 1 for axis in range(x.dim())])


@one_node
def weighted_instance_norm(
    x: Tensor, shares: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`F.instance_norm` over the last axis, whose indices count in proportion to their shares.

    What a group norm is where its groups stand as channels.

    Args:
        x: `[batch, channels, positions]`.
        shares: `[positions]`; copies of one share what it counted.
        weight: scale `[channels]`.
        bias: shift `[channels]`.
        eps: added to each variance.
    """
    share = shares / shares.sum()
    y = x - (x * share).sum(-1, keepdim=True)
    y = y * torch.rsqrt((y.square() * share).sum(-1, keepdim=True) + eps)
    y = y if weight is None else weigh(y, 1, weight)
    return y if bias is None else y + bias.reshape(-1, 1)


@one_node
def weigh(x: Tensor, dim: int, factors: Tensor) -> Tensor:
    """Multiply axis `dim` of `x` by one factor for each index, `factors [n]`, in each group of n of them."""
    groups = x.shape[dim] // len(factors)
    factors = factors if groups == 1 else factors.repeat(groups)
    return x * factors.reshape([-1 if axis == dim % x.dim() else 1 for axis in range(x.dim())])


@one_node
def shift_mask(like: Tensor, sizes: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """What is added to the scores in windows after a cyclic shift to the front: `[windows, tokens, tokens]`.

    -100 between tokens of which one came round from the front and the other did not, 0 elsewhere. The first case is
    found in the last window of a shifted axis only.

    Args:
        like: a tensor of the wanted dtype and device.
        sizes: tokens along each axis, in whole windows.
        window: tokens of a window along each axis.
        shift: by how many tokens each axis was rolled; 0 for an axis that stays.

    Source: Liu et al., "Swin Transformer", ICCV 2021 (arXiv:2103.14030), section 3.2.
    """
    rank = len(sizes)
    side = torch.zeros([1] * rank, dtype=torch.int64, device=like.device)
    for axis, (size, moved) in enumerate(zip(sizes, shift, strict=True)):
        came_round = torch.arange(size, device=like.device) >= size - moved
        side = side + 2**axis * came_round.view([-1 if k == axis else 1 for k in range(rank)])
    side = side.view([n for size, w in zip(sizes, window, strict=True) for n in (size // w, w)])
    side = side.permute([*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]).flatten(rank).flatten(0, rank - 1)
    apart = side.unsqueeze(1) != side.unsqueeze(2)
    return like.new_zeros(apart.shape).masked_fill(apart, -100.0)


class SegmentedLayerNorm(nn.Module):
    """The module form of `segmented_layer_norm`: what LayerNorm becomes in a direct sum of networks."""

    def __init__(
        self,
        segments: Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        groups: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.segments = tuple(segments)
        self.groups = None if groups is None else tuple(groups)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        size = sum(self.segments)
        self.weight = nn.Parameter(torch.ones(size)) if elementwise_affine else None
        self.bias = nn.Parameter(torch.zeros(size)) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return segmented_layer_norm(x, self.segments, self.weight, self.bias, self.eps, self.groups)

    def extra_repr(self) -> str:
        return f"{self.segments}, eps={self.eps}" + ("" if self.groups is None else f", groups={self.groups}")
