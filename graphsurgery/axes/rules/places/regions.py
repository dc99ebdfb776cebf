"""Where a tensor is read at places that other tensors say: deformable convolutions, regions of interest."""

from __future__ import annotations

from math import prod
from typing import Any

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.rules.contraction import convolve, groups_axis
from graphsurgery.axes.types import TensorType
from graphsurgery.network.operators import spelled


@rule(*spelled("deform_conv2d"))
def deformable_convolution(
    infer: Inference,
    input: TensorType,
    offset: TensorType,
    weight: TensorType,
    bias: TensorType | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),  # noqa: ARG001
    mask: TensorType | None = None,
) -> TensorType:
    """A convolution whose groups the shapes say; `offset [batch, k·2·h·w, ...]` moves the channels of k groups."""
    infer.freeze_axis("an axis that a convolution slides over", *input.axes[2:])
    kernel = prod(weight.shape[2:])
    moved = groups_axis(ax.size_of(offset[1]) // (2 * kernel))
    for typed, each in ((offset, 2 * kernel), (mask, kernel)):
        if typed is not None:
            infer.unify(typed[1], ax.product([moved, ax.fixed(each)]))
            infer.freeze_axis("positions of a deformable convolution", *typed.axes[2:])
    if ax.size_of(moved) > 1:
        infer.unify(input[1], ax.product([moved, ax.free(ax.size_of(input[1]) // ax.size_of(moved))]))
    groups = groups_axis(ax.size_of(input[1]) // ax.size_of(weight[1]))
    result = convolve(infer, input, weight, bias, groups, stride, padding)
    return TensorType([*result.axes[:2], *(ax.fixed(n) for n in infer.value.shape[2:])])


@rule(*spelled("roi_align", "roi_pool"))
def regions(infer: Inference, input: TensorType, boxes: Any, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """The channels of each box, whose number nothing else has; boxes are positions."""
    infer.freeze("boxes of regions", boxes)
    infer.freeze_axis("an axis that regions are cut out of", input[0], *input.axes[2:])
    count, _, *pixels = infer.value.shape
    return TensorType([ax.fixed(count), input[1], *(ax.fixed(n) for n in pixels)])
