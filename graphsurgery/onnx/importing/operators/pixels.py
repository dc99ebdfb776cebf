"""Pools, resizing, and what moves pixels."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from graphsurgery.onnx.importing.operators.padding import padded, per_axis
from graphsurgery.onnx.importing.operators.registry import UnlikeTorchError, Value, rank, rule, shape_of, size_of
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.sizes import Sizes, numbers
from graphsurgery.onnx.importing.sources import is_literal


@rule("GlobalAveragePool")
def _global_average(_: Operator, x: Value) -> Value:
    return x.mean(tuple(range(2, rank(x))), keepdim=True)


@rule("GlobalMaxPool")
def _global_max(_: Operator, x: Value) -> Value:
    return x.amax(tuple(range(2, rank(x))), keepdim=True)


@rule("GlobalLpPool")
def _global_lp(operator: Operator, x: Value) -> Value:
    power = operator.attributes.get("p", 2)
    sums = (torch.abs(x) ** power).sum(tuple(range(2, rank(x))), keepdim=True)
    return sums ** (1 / power)


@rule("MaxPool")
def _max_pool(operator: Operator, x: Value) -> Value:
    places, by_columns = len(operator.outputs) > 1, operator.attributes.get("storage_order")
    kernel = tuple(operator.attributes["kernel_shape"])
    if places and by_columns:
        raise UnlikeTorchError("a pool that gives places by columns")
    x, padding = padded(operator, x, kernel, -math.inf)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    stride, dilation = per_axis(operator, "strides", len(kernel)), per_axis(operator, "dilations", len(kernel))
    ceil = bool(operator.attributes.get("ceil_mode", 0))
    if not places:
        return function(x, kernel, stride, padding, dilation, ceil)
    found = function(x, kernel, stride, padding, dilation, ceil, return_indices=True)
    return found[0], found[1]


@rule("MaxUnpool")
def _max_unpool(operator: Operator, x: Value, places: Value, shape: Sizes | None = None) -> Value:  # noqa: ARG001
    """What a pool left goes back to its places; `unpooling` says to which of them."""
    kernel = tuple(operator.attributes["kernel_shape"])
    dims = len(kernel)
    padding = tuple(operator.attributes.get("pads", (0,) * 2 * dims))[:dims]
    function = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[dims - 1]
    return function(x, places, kernel, per_axis(operator, "strides", dims), padding)


@rule("AveragePool")
def _average_pool(operator: Operator, x: Value) -> Value:
    kernel = tuple(operator.attributes["kernel_shape"])
    counts = bool(operator.attributes.get("count_include_pad", 0))
    if max(per_axis(operator, "dilations", len(kernel))) > 1:
        raise UnlikeTorchError("an average pool that is dilated")
    stride, ceil = per_axis(operator, "strides", len(kernel)), bool(operator.attributes.get("ceil_mode", 0))
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    whole, padding = padded(operator, x, kernel)
    uneven = whole is not x
    y = function(whole, kernel, stride, padding, ceil, counts or uneven)
    if counts or not uneven:
        return y
    # What is padded counts in neither: the part of each window that lies inside, of one example and channel.
    inside, _ = padded(operator, x.new_ones([1, 1, *(size_of(x, axis) for axis in range(2, rank(x)))]), kernel)
    return y / function(inside, kernel, stride, 0, ceil, True)


@rule("Resize", "Upsample")
def _resize(operator: Operator, x: Value, *given: Sizes | None) -> Value:
    given = (None, *given) if operator.kind == "Upsample" else given
    _, scales, sizes = (*given, None, None, None)[:3]
    if operator.kind == "Resize" and operator.opset < 11:
        scales, sizes = given[0], None
    named = operator.attributes.get("axes")
    axes = [axis % rank(x) for axis in named] if named else list(range(rank(x)))
    mode = operator.attributes.get("mode", b"nearest").decode()
    grid = operator.attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    grid = "asymmetric" if operator.opset < 11 else grid
    whole = scales is not None and all(float(factor).is_integer() for factor in numbers(scales))
    if mode == "linear" and grid == "asymmetric" and not operator.attributes.get("antialias"):
        known = scales if whole and scales is not None and scales.size else None
        return _from_the_first_pixel(operator, x, axes, known, sizes)
    torch_mode, align = _interpolation(operator, mode, grid, rank(x) - 2, whole)
    flags: dict[str, Any] = {"mode": torch_mode}
    if align is not None:
        flags["align_corners"] = align
    if operator.attributes.get("antialias"):
        raise UnlikeTorchError("a resize that smooths, with weights that torch has otherwise")
    if sizes is not None and sizes.size:
        wanted = dict(zip(axes, numbers(sizes), strict=True))
        if grid == "pytorch_half_pixel" and any(is_literal(n) and n == 1 for n in list(wanted.values())[-2:]):
            raise UnlikeTorchError("a resize to one pixel, which is the first")
        return F.interpolate(x, size=[wanted.get(axis, size_of(x, axis)) for axis in range(2, rank(x))], **flags)
    if (
        scales is None
        or not scales.size
        or operator.attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch"
    ):
        raise UnlikeTorchError("a resize without constant scales or sizes")
    factors = dict(zip(axes, numbers(scales), strict=True))
    if any(factors.get(axis, 1) != 1 for axis in (0, 1)):
        raise UnlikeTorchError("a resize of other axes than the pixels")
    lengths = [shape_of(x)[axis] * float(factors.get(axis, 1)) for axis in range(2, rank(x))]
    if grid == "align_corners" and any(not math.isclose(n, round(n), rel_tol=1e-6) for n in lengths):
        raise UnlikeTorchError("a resize between corners to a length that is not whole")
    if grid == "pytorch_half_pixel" and any(math.floor(n) == 1 for n in lengths):
        raise UnlikeTorchError("a resize to one pixel, which is the first")
    return F.interpolate(x, scale_factor=[float(factors.get(axis, 1)) for axis in range(2, rank(x))], **flags)


def _from_the_first_pixel(
    operator: Operator, x: Value, axes: list[int], scales: Sizes | None, sizes: Sizes | None
) -> Value:
    """A linear resize whose pixel `i` lies at `i / factor`: between corners, with the last pixel once more behind."""
    dims = rank(x) - 2
    if sizes is not None and sizes.size:
        wanted = dict(zip(axes, numbers(sizes), strict=True))
    elif scales is not None:
        wanted = {axis: size_of(x, axis) * int(n) for axis, n in zip(axes, numbers(scales), strict=True) if axis > 1}
    else:
        raise UnlikeTorchError("a resize from the first pixel by factors that are not whole")
    aspect = operator.attributes.get("keep_aspect_ratio_policy", b"stretch")
    if dims not in (1, 2) or aspect != b"stretch":  # torch's padding by the last pixel has no other
        raise UnlikeTorchError("a resize from the first pixel of other than one or two axes")
    if scales is not None and any(n != 1 for axis, n in zip(axes, numbers(scales), strict=True) if axis < 2):
        raise UnlikeTorchError("a resize of other axes than the pixels")
    lengths = [wanted.get(axis, size_of(x, axis)) for axis in range(2, rank(x))]
    padded_ = F.pad(x, [0, 1] * dims, mode="replicate")
    mode = ("linear", "bilinear")[dims - 1]
    y = F.interpolate(padded_, size=[length + 1 for length in lengths], mode=mode, align_corners=True)
    inside: tuple[Any, ...] = (..., *(slice(None, -1) for _ in lengths))
    return y[inside]


def _interpolation(operator: Operator, mode: str, grid: str, dims: int, whole: bool) -> tuple[str, bool | None]:
    """torch's name of a resize, and its flag for corners."""
    if mode == "nearest":
        rounding = operator.attributes.get("nearest_mode", b"round_prefer_floor").decode()
        if grid == "asymmetric" and (rounding == "floor" or operator.opset < 11):
            return "nearest", None
        if grid == "half_pixel" and (rounding == "round_prefer_ceil" or (rounding == "round_prefer_floor" and whole)):
            return "nearest-exact", None  # pixels enlarged a whole number of times have no ties
    elif mode == "linear" and grid in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return ("linear", "bilinear", "trilinear")[dims - 1], grid == "align_corners"
    elif mode == "cubic" and dims == 2 and grid in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        given = operator.attributes
        if given.get("cubic_coeff_a", -0.75) != -0.75 or given.get("exclude_outside"):
            raise UnlikeTorchError("a cubic resize with other weights than torch's")
        return "bicubic", grid == "align_corners"
    raise UnlikeTorchError(f"a resize by {mode} with {grid} coordinates")


@rule("DepthToSpace")
def _depth_to_space(operator: Operator, x: Value) -> Value:
    size = operator.attributes["blocksize"]
    if operator.attributes.get("mode", b"DCR") == b"CRD":
        return F.pixel_shuffle(x, size)
    batch, channels, height, width = x.shape
    y = x.reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(batch, channels // size**2, height * size, width * size)


@rule("SpaceToDepth")
def _space_to_depth(operator: Operator, x: Value) -> Value:
    size = operator.attributes["blocksize"]
    if operator.attributes.get("mode", b"DCR") == b"CRD":
        return F.pixel_unshuffle(x, size)
    batch, channels, height, width = x.shape
    y = x.reshape(batch, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(batch, channels * size**2, height // size, width // size)


@rule("GridSample")
def _grid_sample(operator: Operator, x: Value, grid: Value) -> Value:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    mode = operator.attributes.get("mode", b"linear").decode()
    padding = operator.attributes.get("padding_mode", b"zeros").decode()
    align = bool(operator.attributes.get("align_corners", 0))
    return F.grid_sample(x, grid, mode=names.get(mode, mode), padding_mode=padding, align_corners=align)
