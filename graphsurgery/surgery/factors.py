"""The weights of a layer as a matrix, its truncated decomposition, and the two layers that have the factors."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.network.copying import laid_out_like
from graphsurgery.surgery.growth.identity_layers import CONVOLUTIONS


class Matrix:
    """The weights of a layer as one matrix for each of its groups, `[groups, rows, columns]`.

    Args:
        layer: a linear layer or convolution.
        values: its weights, `[groups, rows, columns]`; what is read stands in the columns.
        spatial: whether the columns have the first axis of the kernel and the rows the second.
    """

    def __init__(self, layer: Any, values: Tensor, *, spatial: bool = False) -> None:
        self.layer, self.values, self.spatial = layer, values, spatial
        self.groups, self.rows, self.columns = values.shape

    @property
    def full(self) -> int:
        """The largest rank that the matrix can have."""
        return min(self.rows, self.columns)

    @cached_property
    def energy(self) -> Tensor:
        """The share of the squared singular values that each rank keeps, in all groups together, `[full]`."""
        squares = torch.linalg.svdvals(self.values.double()).square().sum(0)
        return squares.cumsum(0) / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)

    def rank_for(self, energy: float) -> int:
        """The smallest rank that keeps a share of the squared singular values."""
        return min(self.full, int((self.energy < energy * (1 - 1e-12)).sum()) + 1)

    def split(self, rank: int, generator: torch.Generator | None) -> tuple[nn.Module, nn.Module]:
        """The layer that reads and the one that writes, with the best factors of a rank, or with random ones."""
        if generator is None:
            u, s, v = torch.linalg.svd(self.values.double(), full_matrices=False)
            root = s[:, :rank].sqrt()
            left, right = u[:, :, :rank] * root[:, None, :], root[:, :, None] * v[:, :rank]
        else:
            # Their product has about the spread of the weights.
            spread = math.sqrt(float(self.values.double().std()) / math.sqrt(rank))
            left = torch.randn(self.groups, self.rows, rank, generator=generator, dtype=torch.float64) * spread
            right = torch.randn(self.groups, rank, self.columns, generator=generator, dtype=torch.float64) * spread
        return self._layers(left, right, rank)

    def _layers(self, left: Tensor, right: Tensor, rank: int) -> tuple[nn.Module, nn.Module]:
        layer = self.layer
        reduce: Any
        expand: Any
        if isinstance(layer, nn.Linear):
            reduce = nn.Linear(self.columns, rank, bias=False)
            expand = nn.Linear(rank, self.rows, bias=layer.bias is not None)
        elif self.spatial:
            reduce, expand = _spatial(layer, rank)
        else:
            convolution = type(layer)
            channels = rank * self.groups
            settings = {"groups": self.groups, "padding_mode": layer.padding_mode}
            reduce = convolution(
                layer.in_channels, channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                bias=False, **settings,
            )  # fmt: skip
            expand = convolution(channels, layer.out_channels, 1, groups=self.groups, bias=layer.bias is not None)
        with torch.no_grad():
            if self.spatial:
                height, width = layer.kernel_size
                reduce.weight.data = right.reshape(rank, layer.in_channels, height, 1)
                expand.weight.data = left.reshape(layer.out_channels, width, rank).transpose(1, 2)[:, :, None, :]
            else:
                reduce.weight.data = right.reshape(reduce.weight.shape)
                expand.weight.data = left.reshape(expand.weight.shape)
            if layer.bias is not None:
                expand.bias.data = layer.bias.detach().clone()
        for part in (reduce, expand):
            part.to(layer.weight)
            part.weight.data = laid_out_like(part.weight.data.contiguous(), layer.weight)
            part.weight.requires_grad_(layer.weight.requires_grad)
        if layer.bias is not None:
            expand.bias.requires_grad_(layer.bias.requires_grad)
        return reduce, expand

    def macs_saved(self, rank: int, before: int, given: torch.Size, gives: torch.Size) -> int:
        """The multiply-accumulates that factors of a rank save in one call.

        Args:
            rank: of the factors.
            before: those of the layer in this call, whatever stands in the axis of the batch (tokens, windows).
            given: the shape of what the layer reads.
            gives: the shape of what it writes.
        """
        places = before // (self.rows * self.columns)
        if not self.spatial:
            return before - places * rank * (self.rows + self.columns)
        middle = places // gives[3] * given[3]
        return before - rank * (middle * self.columns + places * self.rows)


def _spatial(layer: Any, rank: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A convolution down the kernel and one along it."""

    def part(inputs: int, outputs: int, axis: int, *, bias: bool) -> nn.Conv2d:
        def only(setting: Any, other: int) -> tuple[int, int]:
            return (setting[0], other) if axis == 0 else (other, setting[1])

        padding = layer.padding if isinstance(layer.padding, str) else only(layer.padding, 0)
        return nn.Conv2d(
            inputs, outputs, only(layer.kernel_size, 1), only(layer.stride, 1), padding, only(layer.dilation, 1),
            bias=bias,
        )  # fmt: skip

    first = part(layer.in_channels, rank, 0, bias=False)
    return first, part(rank, layer.out_channels, 1, bias=layer.bias is not None)


def matrix_of(layer: nn.Module, shape: str) -> Matrix | str:
    """The weights of a layer as a matrix, or why they are none."""
    if isinstance(layer, nn.Linear):
        return Matrix(layer, layer.weight.detach()[None])
    if not isinstance(layer, CONVOLUTIONS):
        return f"{type(layer).__name__} is no linear layer and no convolution"
    weight, groups = layer.weight.detach(), layer.groups
    if groups == layer.in_channels:
        return "a depthwise convolution has rank 1"
    if shape == "spatial" and isinstance(layer, nn.Conv2d) and groups == 1 and min(layer.kernel_size) > 1:
        if layer.padding_mode != "zeros":
            return f"a spatial factor would pad twice ({layer.padding_mode})"
        out, inputs, height, width = weight.shape
        values = weight.permute(0, 3, 1, 2).reshape(1, out * width, inputs * height)
        return Matrix(layer, values, spatial=True)
    return Matrix(layer, weight.reshape(groups, layer.out_channels // groups, -1))


def merged(reduce: Any, expand: Any) -> nn.Module:
    """The one layer that two factors make."""
    dtype = expand.weight.dtype
    left, right = expand.weight.detach().double(), reduce.weight.detach().double()
    layer: Any
    if isinstance(expand, nn.Linear):
        layer = nn.Linear(reduce.in_features, expand.out_features, bias=expand.bias is not None)
        weight = left @ right
    elif _is_spatial(expand):
        kernel = (reduce.kernel_size[0], expand.kernel_size[1])
        pairs = zip(reduce.stride, expand.stride, strict=True)
        layer = nn.Conv2d(
            reduce.in_channels, expand.out_channels, kernel, tuple(max(pair) for pair in pairs),
            reduce.padding if isinstance(reduce.padding, str) else (reduce.padding[0], expand.padding[1]),
            (reduce.dilation[0], expand.dilation[1]), bias=expand.bias is not None,
        )  # fmt: skip
        weight = torch.einsum("okw,kih->oihw", left[:, :, 0, :], right[:, :, :, 0])
    else:
        groups = reduce.groups
        layer = type(reduce)(
            reduce.in_channels, expand.out_channels, reduce.kernel_size, reduce.stride, reduce.padding,
            reduce.dilation, groups=groups, bias=expand.bias is not None, padding_mode=reduce.padding_mode,
        )  # fmt: skip
        rank = expand.weight.shape[1]
        weight = left.reshape(groups, -1, rank) @ right.reshape(groups, rank, -1)
        weight = weight.reshape(layer.weight.shape)
    with torch.no_grad():
        layer.weight.data = laid_out_like(weight.to(dtype).contiguous(), reduce.weight)
        layer.weight.requires_grad_(expand.weight.requires_grad)
        if expand.bias is not None:
            layer.bias.data = expand.bias.detach().clone()
            layer.bias.requires_grad_(expand.bias.requires_grad)
    return layer


def are_factors(reduce: Any, expand: Any) -> bool:
    """Whether two layers are the factors of one: of one kind, without a bias or a step between them."""
    if type(reduce) is not type(expand) or getattr(reduce, "bias", None) is not None:
        return False
    if isinstance(reduce, nn.Linear):
        return True
    if not isinstance(reduce, CONVOLUTIONS) or reduce.groups != expand.groups:
        return False
    if _is_spatial(expand):
        return (
            reduce.groups == 1
            and (reduce.kernel_size[1], expand.kernel_size[0]) == (1, 1)
            and (reduce.stride[1], expand.stride[0]) == (1, 1)
            and (reduce.dilation[1], expand.dilation[0]) == (1, 1)
            and (isinstance(reduce.padding, str) or (reduce.padding[1], expand.padding[0]) == (0, 0))
            and reduce.padding_mode == expand.padding_mode == "zeros"
        )
    single = all(k == 1 for k in expand.kernel_size) and all(s == 1 for s in expand.stride)
    return single and all(p == 0 for p in _padding(expand))


def _padding(layer: Any) -> tuple[int, ...]:
    return (0,) if isinstance(layer.padding, str) else tuple(layer.padding)


def _is_spatial(expand: Any) -> bool:
    """Whether the second factor goes along the kernel, which the first goes down."""
    return isinstance(expand, nn.Conv2d) and expand.kernel_size[1] > 1
