"""Operators that act on positions and leave channels alone: pooling, resizing, reductions over positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from graphsurgery import axes as ax
from graphsurgery.facts import TensorType
from graphsurgery.inference import Inference, rule

POOLING_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.LPPool1d, nn.LPPool2d, nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d, nn.ZeroPad1d, nn.ZeroPad2d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ConstantPad2d,
)  # fmt: skip
POOLING_FUNCTIONS = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d, F.interpolate, F.lp_pool2d,
)  # fmt: skip
REDUCTIONS = (torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin", torch.var, "var", "std")


@rule(*POOLING_MODULES, *POOLING_FUNCTIONS)
def pool(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """The last axes, as many as the operator's name says, are new positions; those before them stay."""
    digits = [int(c) for c in infer.operator() if c.isdigit()]
    kept = len(input) - digits[-1] if digits else 2
    infer.fix(*input.axes[kept:])
    return TensorType([*input.axes[:kept], *(ax.fixed(n) for n in infer.value.shape[kept:])])


@rule(*REDUCTIONS)
def reduce(
    infer: Inference,
    input: TensorType,
    dim: int | tuple[int, ...] | None = None,
    *others: Any,  # noqa: ARG001
    keepdim: bool = False,
    **options: Any,  # noqa: ARG001
) -> TensorType:
    """The reduced axes are mixed, and go or become single."""
    rank = len(input)
    dims = range(rank) if dim is None or isinstance(dim, bool) else [dim] if isinstance(dim, int) else dim
    reduced = {d % rank for d in dims}
    for index in reduced:
        infer.mixes(input[index], "mean")
    keepdim = len(infer.value.shape) == rank
    axes = [ax.UNIT if i in reduced else axis for i, axis in enumerate(input.axes)]
    return TensorType(axes if keepdim else [axis for i, axis in enumerate(axes) if i not in reduced])


@rule(nn.PixelShuffle)
def pixel_shuffle(infer: Inference, input: TensorType) -> TensorType:
    """Channels `c·r²` become `c`; the factor moves to the positions."""
    factor = infer.submodule.upscale_factor
    assert isinstance(factor, int)
    channels, _ = ax.factor(input[1], [ax.size_of(input[1]) // factor**2, factor**2])
    infer.fix(_)
    return TensorType([input[0], channels, *(ax.fixed(n) for n in infer.value.shape[2:])])
