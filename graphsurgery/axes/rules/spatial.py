"""Operators that act on positions and leave channels alone: pooling, resizing, sampling, windows."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.rules.contraction import outputs_like
from graphsurgery.axes.types import TensorType
from graphsurgery.network.operators import Trait, spellings


@rule(*spellings(Trait.POSITIONS))
def pool(infer: Inference, input: TensorType, *others: Any, **options: Any) -> Any:  # noqa: ARG001
    """The last axes, as many as the operator's name says, are new positions; those before them stay."""
    digits = [int(c) for c in infer.operator() if c.isdigit()]
    kept = len(input) - digits[-1] if digits else 2
    infer.freeze_axis("an axis that is pooled, resized or padded", *input.axes[kept:])
    with_indices = isinstance(infer.value, tuple)
    shape = infer.value[0].shape if with_indices else infer.value.shape
    output = TensorType([*input.axes[:kept], *(ax.fixed(n) for n in shape[kept:])])
    return (output, output) if with_indices else output


@rule(F.grid_sample, torch.grid_sampler, torch.grid_sampler_2d, torch.grid_sampler_3d)
def grid_sample(infer: Inference, input: TensorType, grid: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Positions are looked up where a grid says; the channels stay."""
    infer.freeze_axis("an axis that is sampled", *input.axes[2:], *grid.axes[1:])
    infer.unify(input[0], grid[0])
    return outputs_like(infer, (0, input[0]), (1, input[1]))


@rule(F.affine_grid, torch.affine_grid_generator)
def affine_grid(infer: Inference, theta: TensorType, size: Any, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Positions, from a matrix for each example."""
    infer.freeze_axis("a matrix that moves positions", *theta.axes[1:])
    return outputs_like(infer, (0, theta[0]))


@rule(nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d, F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
def unpool(infer: Inference, input: TensorType, indices: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """What was pooled goes back to its positions; the axes before those stay."""
    kept = len(input) - next(int(c) for c in infer.operator() if c.isdigit())
    infer.freeze_axis("an axis that is pooled, resized or padded", *input.axes[kept:], *indices.axes[kept:])
    for own, axis in zip(input.axes[:kept], indices.axes[:kept], strict=True):
        infer.unify(own, axis)
    return outputs_like(infer, *enumerate(input.axes[:kept]))


@rule(nn.PixelShuffle, F.pixel_shuffle)
def pixel_shuffle(infer: Inference, input: TensorType, upscale_factor: int | None = None) -> TensorType:
    """Channels `c·r²` become `c`; the factor moves to the positions."""
    factor = upscale_factor or infer.submodule.upscale_factor
    assert isinstance(factor, int)
    channels, inner = ax.factor(input[-3], [ax.size_of(input[-3]) // factor**2, factor**2])
    infer.fix(inner)
    infer.freeze_axis("an axis that is resized", *input.axes[-2:])
    return outputs_like(infer, *enumerate([*input.axes[:-3], channels]))


@rule(nn.PixelUnshuffle, F.pixel_unshuffle)
def pixel_unshuffle(infer: Inference, input: TensorType, downscale_factor: int | None = None) -> TensorType:
    """Channels `c` become `c·r²`; the factor comes from the positions."""
    factor = downscale_factor or infer.submodule.downscale_factor
    assert isinstance(factor, int)
    infer.freeze_axis("an axis that is resized", *input.axes[-2:])
    return outputs_like(infer, *enumerate([*input.axes[:-3], ax.product([input[-3], ax.fixed(factor**2)])]))


@rule(nn.Unfold, F.unfold)
def windows(infer: Inference, input: TensorType, kernel_size: Any = None, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """`[batch, c, ...]` becomes `[batch, c·k, windows]`: every channel with the positions of its window."""
    infer.freeze_axis("an axis that windows slide over", *input.axes[-2:])
    size = _pair(infer.submodule.kernel_size if kernel_size is None else kernel_size)
    return outputs_like(infer, *enumerate([*input.axes[:-3], ax.product([input[-3], ax.fixed(prod(size))])]))


@rule(nn.Fold, F.fold)
def unwindowed(
    infer: Inference,
    input: TensorType,
    output_size: Any = None,  # noqa: ARG001
    kernel_size: Any = None,
    *others: Any,  # noqa: ARG001
    **options: Any,  # noqa: ARG001
) -> TensorType:
    """`[batch, c·k, windows]` becomes `[batch, c, ...]`: what overlaps is added."""
    count = prod(_pair(infer.submodule.kernel_size if kernel_size is None else kernel_size))
    channels, inner = ax.factor(input[-2], [ax.size_of(input[-2]) // count, count])
    infer.fix(inner)
    infer.freeze_axis("an axis of windows", input[-1])
    return outputs_like(infer, *enumerate([*input.axes[:-2], channels]))


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@rule("unfold")
def slide(infer: Inference, input: TensorType, dimension: int, size: int, step: int) -> TensorType:  # noqa: ARG001
    """One axis becomes windows of positions, whose elements are a new last axis."""
    dimension %= len(input)
    infer.freeze_axis("an axis that windows slide over", input[dimension])
    return outputs_like(infer, *((i, axis) for i, axis in enumerate(input.axes) if i != dimension))
