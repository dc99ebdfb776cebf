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
from torch import Tensor, fx, nn

__all__ = [
    "Boundary",
    "ChannelGate",
    "TrainingFlag",
    "either",
    "grouped_norm",
    "grouped_product",
    "hold",
    "pick",
    "scale_axis",
    "shift_mask",
    "spread",
    "weigh",
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
    return _times(x, (factor if batch is None or batch < dim else factor.t()).reshape(shape))


@one_node
def grouped_norm(
    x: Tensor,
    members: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    positions: bool = False,
    eps: float | None = 1e-5,
    centred: bool = True,
    power: float | None = None,
    affine: int | None = None,
    blocks: bool = False,  # noqa: ARG001
) -> Tensor:
    """Normalise each group of channels by its own mean and variance, in which every channel counts as its members say.

    One for LayerNorm, RMSNorm, GroupNorm and division by a norm: over the streams of several networks side by side, a
    group for each, and over copies of channels, which share what one counted.

    Args:
        x: its axis `dim` has the channels.
        members: how much each channel counts in the mean of each group, in proportion, `[channels, groups]`; of 0 and
            above. A channel is in the one group in which it counts. A group may be empty.
        weight: scale, along the axis of the channels.
        bias: shift, along that axis.
        dim: the axis of the channels.
        positions: whether mean and variance are over all axes behind that one too, which count alike.
        eps: added to the variance; None is the precision of the dtype of `x`.
        centred: whether the mean is subtracted; without, the variance is the mean square.
        power: divide by the norm of this order instead, `(sum members |x|^power)^(1/power)`, or by eps if that is more;
            nothing is subtracted then, and the members are factors in a sum. Of infinite order it is the largest.
        affine: the axis of weight and bias, where it is another one.
        blocks: whether each group is as many neighbouring channels, the first group first, as in a GroupNorm; says that
            whole groups may go, or be copied.
    """
    members = members.to(x)
    own = (members > 0).to(x)
    tiny, precision = torch.finfo(x.dtype).tiny, torch.finfo(x.dtype).eps
    counts = members if power is not None else members / members.sum(0).clamp_min(tiny)
    behind = list(range(dim % x.dim() + 1, x.dim())) if positions else []

    def counted(v: Tensor) -> Tensor:
        """What is counted in each group, `[..., groups]`."""
        return (v.mean(behind, keepdim=True) if behind else v).movedim(dim, -1) @ counts

    def spread(v: Tensor, along: Tensor) -> Tensor:
        """What each group has, beside its channels."""
        return (v @ along.t()).movedim(-1, dim)

    # Empty groups and channels that are all zero are divided by something above 0, as small as may be.
    y = x
    if power == math.inf:
        largest = (x.abs().movedim(dim, -1).unsqueeze(-2) * own.t()).amax(-1)
        factor = largest.clamp_min(max(eps or 0, tiny * precision)).reciprocal()
    elif power is not None:
        total = counted(x.square() if power == 2 else x.abs() ** power)
        factor = total.clamp_min(max((eps or 0) ** power, tiny * precision)) ** (-1 / power)
    else:
        y = x - spread(counted(x), own) if centred else x
        factor = (counted(y.square()) + (precision if eps is None else eps or tiny)).rsqrt()
    # The scale goes into the smaller factor: what is as large as x is gone over as seldom as may be.
    y = y * spread(factor, own if weight is None or affine is not None else own * weight.to(x).unsqueeze(1))
    shape = [1] * x.dim()
    shape[dim if affine is None else affine] = -1
    y = y if weight is None or affine is None else y * weight.to(x).reshape(shape)
    return y if bias is None else y + bias.to(x).reshape(shape)


@one_node
def grouped_product(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Multiply each group of rows by a matrix of its own: `F.grouped_mm` of any precision, in operators of ONNX.

    Args:
        x: `[rows, in]`, those of the first group first.
        weight: a matrix for each group, `[groups, in, out]`.
        offsets: where each group ends, `[groups]`; the rows behind the last group give 0.
    """
    if torch.compiler.is_compiling() or x.is_meta:  # where no number can be asked for
        group = (torch.arange(x.shape[0], device=x.device).unsqueeze(1) >= offsets).sum(1, keepdim=True)
        each = [torch.where(group == index, x, 0.0) @ matrix for index, matrix in enumerate(weight.unbind(0))]
        return functools.reduce(torch.add, each)
    ends = [int(end) for end in offsets.tolist()]
    parts = [x[start:end] @ matrix for start, end, matrix in zip([0, *ends], ends, weight.unbind(0), strict=False)]
    return torch.cat([*parts, x.new_zeros(x.shape[0] - ends[-1], weight.shape[-1])])


@one_node
def weigh(x: Tensor, dim: int, factors: Tensor) -> Tensor:
    """Multiply axis `dim` of `x` by one factor for each index, `factors [n]`, in each group of n of them."""
    return _times(x, along(x, dim, factors))


def _times(x: Tensor, factors: Tensor) -> Tensor:
    """A product; of flags those are off that are taken 0 times."""
    return x & (factors != 0) if x.dtype == torch.bool else x * factors


def along(x: Tensor, dim: int, factors: Tensor) -> Tensor:
    """One factor for each index of axis `dim` of `x`, `factors [n]` again in each group of n, laid along that axis."""
    groups = x.shape[dim] // len(factors)
    factors = factors if groups == 1 else factors.repeat(groups)
    return factors.reshape([-1 if axis == dim % x.dim() else 1 for axis in range(x.dim())])


@one_node
def spread(x: Tensor, dim: int, rounds: Sequence[Sequence[int]]) -> Tensor:
    """Axis `dim` of `x` at the size that it had before an edit: each index where it was, the sum of its copies, else 0.

    Args:
        x: the tensor as it is now.
        dim: the axis.
        rounds: for each index of the old axis the index of its first copy, then of its second, and so on; -1 where it
            has none.
    """
    width, gaps = x.shape[dim], any(-1 in places for places in rounds)
    x = torch.cat([x, torch.zeros_like(x.narrow(dim, 0, 1))], dim) if gaps else x
    placed = [torch.tensor([width if i < 0 else i for i in places], device=x.device) for places in rounds]
    found = x.index_select(dim, placed[0])
    for places in placed[1:]:
        found = found + x.index_select(dim, places)
    return found


@one_node
def pick(x: Tensor, dim: int, places: Sequence[int], like: Tensor | None = None) -> Tensor:  # noqa: ARG001
    """The indices of axis `dim` of `x` that an edit has left, or has copied: what `spread` leads to, after it.

    Args:
        x: what was computed at the old size.
        dim: the axis.
        places: the indices.
        like: a tensor whose axis `dim` has the same channels, and goes on having them.
    """
    index = torch.tensor(places, device=x.device)
    if x.is_complex():  # which ONNX has as two numbers
        return torch.view_as_complex(torch.view_as_real(x).index_select(dim % x.dim(), index))
    return x.index_select(dim, index)


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
