"""The operators of an `.onnx` file on tensors: one torch expression for each.

Only operators and options whose meaning is certain are here; everything else is run whole by ONNX Runtime.
"""

from __future__ import annotations

import math
import operator as op
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from graphsurgery.onnx.reading import Operator
from graphsurgery.onnx.sizes import Size, Sizes, axes_of, number, numbers, sizes_of, slices

Value = Any
"""A tensor, or a number in its place."""

_Rule = Callable[..., Any]
RULES: dict[str, _Rule] = {}

SIZES_AT: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Split": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "TopK": (1,),
    "CumSum": (1,), "Trilu": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3), "Resize": (1, 2, 3), "Upsample": (1,),
    "Clip": (1, 2), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Dropout": (1, 2),
}  # fmt: skip
"""Which inputs of an operator are sizes and options, not data."""


class UnlikeTorchError(Exception):
    """An operator has options that no torch expression has here."""


def rule(*kinds: str) -> Callable[[_Rule], _Rule]:
    def add(function: _Rule) -> _Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return add


def rank(x: Value) -> int:
    return int(x.dim()) if isinstance(x, (Tensor, fx.Proxy)) else 0  # type: ignore[arg-type]


def shape_of(x: Value) -> tuple[int, ...]:
    """The sizes of the trace, for decisions that do not depend on the batch."""
    return tuple((x.node.meta["value"] if isinstance(x, fx.Proxy) else x).shape)


def size_of(x: Value, axis: int) -> Any:
    """One size: symbolic in a trace."""
    shape: Any = x.shape
    return shape[axis] if isinstance(x, fx.Proxy) else Size(shape[axis])


_UNARY: dict[str, Any] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Erf": torch.erf, "Floor": torch.floor, "Ceil": torch.ceil,
    "Round": torch.round, "Sign": torch.sign, "Reciprocal": torch.reciprocal, "Sin": torch.sin, "Cos": torch.cos,
    "Softplus": F.softplus, "Softsign": F.softsign, "HardSwish": F.hardswish, "Mish": F.mish, "Not": torch.logical_not,
    "Atan": torch.atan, "IsNaN": torch.isnan,
}  # fmt: skip
_BINARY: dict[str, Any] = {
    "Add": op.add, "Sub": op.sub, "Mul": op.mul, "Pow": op.pow, "Equal": op.eq, "Greater": op.gt, "Less": op.lt,
    "GreaterOrEqual": op.ge, "LessOrEqual": op.le, "And": op.and_, "Or": op.or_, "Xor": op.xor,
}  # fmt: skip

for _kind, _function in _UNARY.items():
    RULES[_kind] = lambda _, x, _function=_function: _function(x)
for _kind, _function in _BINARY.items():
    RULES[_kind] = lambda _, a, b, _function=_function: _function(a, b)


@rule("Div")
def _div(_: Operator, a: Value, b: Value) -> Value:
    whole = all(not x.is_floating_point() if rank(x) else isinstance(x, int) for x in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


@rule("Mod")
def _mod(operator: Operator, a: Value, b: Value) -> Value:
    return torch.fmod(a, b) if operator.attributes.get("fmod") else a % b


@rule("Max", "Min")
def _extreme(operator: Operator, *values: Value) -> Value:
    least = operator.kind == "Max"

    def pair(a: Value, b: Value) -> Value:
        if not rank(a):
            a, b = b, a
        if not rank(b):
            return torch.clamp(a, min=b) if least else torch.clamp(a, max=b)
        return torch.maximum(a, b) if least else torch.minimum(a, b)

    return reduce(pair, values)


@rule("Sum")
def _sum(_: Operator, *values: Value) -> Value:
    return reduce(op.add, values)


@rule("Mean")
def _mean(_: Operator, *values: Value) -> Value:
    return reduce(op.add, values) / len(values)


@rule("Where")
def _where(_: Operator, condition: Value, a: Value, b: Value) -> Value:
    return torch.where(condition, a, b)


@rule("Cast")
def _cast(operator: Operator, x: Value) -> Value:
    """A change of precision is left out: the network has one, which it can be cast to."""
    dtype = _dtype(operator.attributes["to"])
    return x if dtype.is_floating_point and x.is_floating_point() else x.to(dtype)


@rule("CastLike")
def _cast_like(_: Operator, x: Value, like: Value) -> Value:
    return x if x.is_floating_point() and like.is_floating_point() else x.to(like.dtype)


def _dtype(code: int) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(code))).dtype


# Activations.


@rule("LeakyRelu")
def _leaky_relu(operator: Operator, x: Value) -> Value:
    return F.leaky_relu(x, operator.attributes.get("alpha", 0.01))


@rule("Elu")
def _elu(operator: Operator, x: Value) -> Value:
    return F.elu(x, operator.attributes.get("alpha", 1.0))


@rule("Celu")
def _celu(operator: Operator, x: Value) -> Value:
    return F.celu(x, operator.attributes.get("alpha", 1.0))


@rule("Selu")
def _selu(operator: Operator, x: Value) -> Value:
    if not {"alpha", "gamma"}.isdisjoint(operator.attributes):
        raise UnlikeTorchError("a Selu with slopes of its own")
    return F.selu(x)


@rule("Gelu")
def _gelu(operator: Operator, x: Value) -> Value:
    return F.gelu(x, approximate=operator.attributes.get("approximate", b"none").decode())


@rule("Swish")
def _swish(operator: Operator, x: Value) -> Value:
    alpha = operator.attributes.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@rule("HardSigmoid")
def _hard_sigmoid(operator: Operator, x: Value) -> Value:
    alpha, beta = operator.attributes.get("alpha", 0.2), operator.attributes.get("beta", 0.5)
    if beta == 0.5 and math.isclose(alpha, 1 / 6, rel_tol=1e-6):
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@rule("Clip")
def _clip(operator: Operator, x: Value, low: Sizes | None = None, high: Sizes | None = None) -> Value:
    least = operator.attributes.get("min") if low is None else number(low)
    most = operator.attributes.get("max") if high is None else number(high)
    return x if least is None and most is None else torch.clamp(x, least, most)


@rule("PRelu")
def _prelu(_: Operator, x: Value, slope: Value) -> Value:
    return torch.where(x < 0, x * slope, x)


@rule("Softmax", "LogSoftmax")
def _softmax(operator: Operator, x: Value) -> Value:
    function = F.softmax if operator.kind == "Softmax" else F.log_softmax
    axis = operator.attributes.get("axis", -1 if operator.opset >= 13 else 1) % rank(x)
    if operator.opset < 13 and axis != rank(x) - 1:
        raise UnlikeTorchError("a softmax over several axes")
    return function(x, dim=axis)


# Products.


@rule("MatMul")
def _matmul(_: Operator, a: Value, b: Value) -> Value:
    return torch.matmul(a, b)


@rule("Gemm")
def _gemm(operator: Operator, a: Value, b: Value, c: Value | None = None) -> Value:
    alpha, beta = operator.attributes.get("alpha", 1.0), operator.attributes.get("beta", 1.0)
    a = a.transpose(0, 1) if operator.attributes.get("transA") else a
    b = b.transpose(0, 1) if operator.attributes.get("transB") else b
    y = torch.matmul(a, b)
    y = y if alpha == 1 else y * alpha
    if c is None:
        return y
    return y + (c if beta == 1 else c * beta)


@rule("Einsum")
def _einsum(operator: Operator, *values: Value) -> Value:
    return torch.einsum(operator.attributes["equation"].decode(), *values)


@rule("Conv")
def _conv(operator: Operator, x: Value, weight: Value, bias: Value | None = None) -> Value:
    x, padding = padded(operator, x, shape_of(weight)[2:])
    function = (F.conv1d, F.conv2d, F.conv3d)[rank(x) - 3]
    dims = rank(x) - 2
    stride, dilation = per_axis(operator, "strides", dims), per_axis(operator, "dilations", dims)
    return function(x, weight, bias, stride, padding, dilation, operator.attributes.get("group", 1))


@rule("ConvTranspose")
def _conv_transpose(operator: Operator, x: Value, weight: Value, bias: Value | None = None) -> Value:
    options = transposed_options(operator, rank(x) - 2)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank(x) - 3]
    return function(x, weight, bias, **options)


def transposed_options(operator: Operator, dims: int) -> dict[str, Any]:
    """What torch's transposed convolution takes."""
    given = operator.attributes
    pads = tuple(given.get("pads", (0,) * 2 * dims))
    if given.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in given or pads[:dims] != pads[dims:]:
        raise UnlikeTorchError("a transposed convolution padded by its output's shape")
    return {
        "stride": per_axis(operator, "strides", dims),
        "padding": pads[:dims],
        "output_padding": per_axis(operator, "output_padding", dims, 0),
        "groups": given.get("group", 1),
        "dilation": per_axis(operator, "dilations", dims),
    }


def per_axis(operator: Operator, name: str, dims: int, default: int = 1) -> tuple[int, ...]:
    """An attribute with a number for each spatial axis."""
    return tuple(operator.attributes.get(name, (default,) * dims))


def pads_of(operator: Operator, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Padding in front of every spatial axis, then behind it."""
    dims = len(kernel)
    mode = operator.attributes.get("auto_pad", b"NOTSET").decode()
    if mode == "NOTSET":
        return tuple(operator.attributes.get("pads", (0,) * 2 * dims))
    if mode == "VALID":
        return (0,) * 2 * dims
    strides, dilations = per_axis(operator, "strides", dims), per_axis(operator, "dilations", dims)
    ends = [
        max((math.ceil(size / stride) - 1) * stride + (length - 1) * dilation + 1 - size, 0)
        for size, length, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    less, more = [n // 2 for n in ends], [n - n // 2 for n in ends]
    return (*less, *more) if mode == "SAME_UPPER" else (*more, *less)


def padded(operator: Operator, x: Value, kernel: Sequence[int], value: float = 0.0) -> tuple[Value, tuple[int, ...]]:
    """The input, padded where both sides differ, and the padding that is left to the operator."""
    pads = pads_of(operator, shape_of(x)[2:], kernel)
    dims = len(kernel)
    if pads[:dims] == pads[dims:]:
        return x, pads[:dims]
    pairs = [n for axis in reversed(range(dims)) for n in (pads[axis], pads[axis + dims])]
    return F.pad(x, pairs, value=value), (0,) * dims


# Norms.


@rule("BatchNormalization")
def _batch_norm(operator: Operator, x: Value, scale: Value, shift: Value, mean: Value, var: Value) -> Value:
    return F.batch_norm(x, mean, var, scale, shift, False, 0.0, operator.attributes.get("epsilon", 1e-5))


@rule("LayerNormalization")
def _layer_norm(operator: Operator, x: Value, scale: Value, shift: Value | None = None) -> Value:
    axis = operator.attributes.get("axis", -1) % rank(x)
    return F.layer_norm(x, shape_of(x)[axis:], scale, shift, operator.attributes.get("epsilon", 1e-5))


@rule("RMSNormalization")
def _rms_norm(operator: Operator, x: Value, scale: Value) -> Value:
    axis = operator.attributes.get("axis", -1) % rank(x)
    return F.rms_norm(x, shape_of(x)[axis:], scale, operator.attributes.get("epsilon", 1e-5))


@rule("GroupNormalization")
def _group_norm(operator: Operator, x: Value, scale: Value, shift: Value) -> Value:
    if operator.opset < 21:
        raise UnlikeTorchError("a group norm with one scale for each group")
    return F.group_norm(x, operator.attributes["num_groups"], scale, shift, operator.attributes.get("epsilon", 1e-5))


@rule("InstanceNormalization")
def _instance_norm(operator: Operator, x: Value, scale: Value, shift: Value) -> Value:
    return F.instance_norm(x, weight=scale, bias=shift, eps=operator.attributes.get("epsilon", 1e-5))


@rule("LpNormalization")
def _lp_normalization(operator: Operator, x: Value) -> Value:
    return F.normalize(x, operator.attributes.get("p", 2), operator.attributes.get("axis", -1), eps=0.0)


@rule("LRN")
def _local_response(operator: Operator, x: Value) -> Value:
    given = operator.attributes
    if given["size"] % 2 == 0:
        raise UnlikeTorchError("a response norm over an even number of channels")
    alpha, beta, bias = given.get("alpha", 1e-4), given.get("beta", 0.75), given.get("bias", 1.0)
    return F.local_response_norm(x, given["size"], alpha, beta, bias)


# Pools and pixels.


@rule("GlobalAveragePool")
def _global_average(_: Operator, x: Value) -> Value:
    return x.mean(tuple(range(2, rank(x))), keepdim=True)


@rule("GlobalMaxPool")
def _global_max(_: Operator, x: Value) -> Value:
    return x.amax(tuple(range(2, rank(x))), keepdim=True)


@rule("MaxPool")
def _max_pool(operator: Operator, x: Value) -> Value:
    if len(operator.outputs) > 1 or operator.attributes.get("storage_order"):
        raise UnlikeTorchError("a pool that also gives indices")
    kernel = tuple(operator.attributes["kernel_shape"])
    x, padding = padded(operator, x, kernel, -math.inf)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    stride, dilation = per_axis(operator, "strides", len(kernel)), per_axis(operator, "dilations", len(kernel))
    return function(x, kernel, stride, padding, dilation, bool(operator.attributes.get("ceil_mode", 0)))


@rule("AveragePool")
def _average_pool(operator: Operator, x: Value) -> Value:
    kernel = tuple(operator.attributes["kernel_shape"])
    counts = bool(operator.attributes.get("count_include_pad", 0))
    pads = pads_of(operator, shape_of(x)[2:], kernel)
    uneven = pads[: len(kernel)] != pads[len(kernel) :]
    if max(per_axis(operator, "dilations", len(kernel))) > 1 or (uneven and not counts):
        raise UnlikeTorchError("an average pool that is dilated, or padded unevenly without counting it")
    x, padding = padded(operator, x, kernel)
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    stride = per_axis(operator, "strides", len(kernel))
    return function(x, kernel, stride, padding, bool(operator.attributes.get("ceil_mode", 0)), counts)


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
    if operator.opset < 11:
        grid = "asymmetric"
    whole = scales is not None and all(float(factor).is_integer() for factor in numbers(scales))
    torch_mode, align = _interpolation(operator, mode, grid, rank(x) - 2, whole)
    flags: dict[str, Any] = {"mode": torch_mode}
    if align is not None:
        flags["align_corners"] = align
    if operator.attributes.get("antialias"):
        flags["antialias"] = True
    if sizes is not None and sizes.size:
        wanted = dict(zip(axes, numbers(sizes), strict=True))
        return F.interpolate(x, size=[wanted.get(axis, shape_of(x)[axis]) for axis in range(2, rank(x))], **flags)
    if (
        scales is None
        or not scales.size
        or operator.attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch"
    ):
        raise UnlikeTorchError("a resize without constant scales or sizes")
    factors = dict(zip(axes, numbers(scales), strict=True))
    if any(factors.get(axis, 1) != 1 for axis in (0, 1)):
        raise UnlikeTorchError("a resize of other axes than the pixels")
    return F.interpolate(x, scale_factor=[float(factors.get(axis, 1)) for axis in range(2, rank(x))], **flags)


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


# Reductions.

_REDUCTIONS: dict[str, Callable[[Any, tuple[int, ...], bool], Any]] = {
    "ReduceMean": lambda x, dims, keep: x.mean(dims, keepdim=keep),
    "ReduceSum": lambda x, dims, keep: x.sum(dims, keepdim=keep),
    "ReduceMax": lambda x, dims, keep: x.amax(dims, keepdim=keep),
    "ReduceMin": lambda x, dims, keep: x.amin(dims, keepdim=keep),
    "ReduceSumSquare": lambda x, dims, keep: (x * x).sum(dims, keepdim=keep),
    "ReduceL1": lambda x, dims, keep: x.norm(1, dims, keepdim=keep),
    "ReduceL2": lambda x, dims, keep: x.norm(2, dims, keepdim=keep),
    "ReduceLogSumExp": lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep),
}


def _reduction(operator: Operator, x: Value, given: Sizes | None = None) -> Value:
    axes = axes_of(operator, given)
    if not axes:
        if operator.attributes.get("noop_with_empty_axes"):
            return x
        axes = tuple(range(rank(x)))
    dims = tuple(axis % rank(x) for axis in axes)
    return _REDUCTIONS[operator.kind](x, dims, bool(operator.attributes.get("keepdims", 1)))


RULES.update(dict.fromkeys(_REDUCTIONS, _reduction))
SIZES_AT.update(dict.fromkeys(_REDUCTIONS, (1,)))


@rule("ArgMax", "ArgMin")
def _arg_extreme(operator: Operator, x: Value) -> Value:
    if operator.attributes.get("select_last_index"):
        raise UnlikeTorchError("the last of equal indices")
    function = torch.argmax if operator.kind == "ArgMax" else torch.argmin
    return function(x, operator.attributes.get("axis", 0), keepdim=bool(operator.attributes.get("keepdims", 1)))


@rule("TopK")
def _top_k(operator: Operator, x: Value, k: Sizes) -> Value:
    given = operator.attributes
    largest, ordered = bool(given.get("largest", 1)), bool(given.get("sorted", 1))
    found = torch.topk(x, number(k), given.get("axis", -1), largest, ordered)
    return found[0], found[1]


@rule("CumSum")
def _cum_sum(operator: Operator, x: Value, axis: Sizes) -> Value:
    if operator.attributes.get("exclusive") or operator.attributes.get("reverse"):
        raise UnlikeTorchError("a running sum that is exclusive or reversed")
    return torch.cumsum(x, number(axis))


# Movement.


@rule("Reshape")
def _reshape(operator: Operator, x: Value, shape: Sizes) -> Value:
    target = list(numbers(shape))
    if not operator.attributes.get("allowzero"):
        target = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(target)]
    return x.reshape(target)


@rule("Flatten")
def _flatten(operator: Operator, x: Value) -> Value:
    axis = operator.attributes.get("axis", 1)
    axis += rank(x) if axis < 0 else 0
    if axis == 0:
        return x.reshape(1, -1)
    x = x if axis == 1 else torch.flatten(x, 0, axis - 1)
    return torch.flatten(x, 1) if rank(x) > 1 else x.unsqueeze(1)


@rule("Transpose")
def _transpose(operator: Operator, x: Value) -> Value:
    return x.permute(tuple(operator.attributes.get("perm", reversed(range(rank(x))))))


@rule("Squeeze")
def _squeeze(operator: Operator, x: Value, given: Sizes | None = None) -> Value:
    axes = axes_of(operator, given)
    if axes is None:
        raise UnlikeTorchError("a squeeze of all axes of one")
    for axis in sorted((axis % rank(x) for axis in axes), reverse=True):
        x = x.squeeze(axis)
    return x


@rule("Unsqueeze")
def _unsqueeze(operator: Operator, x: Value, given: Sizes | None = None) -> Value:
    axes = axes_of(operator, given) or ()
    for axis in sorted(axis % (rank(x) + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@rule("Concat")
def _concat(operator: Operator, *values: Value) -> Value:
    return torch.cat(values, operator.attributes["axis"])


@rule("Split")
def _split(operator: Operator, x: Value, given: Sizes | None = None) -> Value:
    axis = operator.attributes.get("axis", 0)
    lengths = operator.attributes.get("split") if given is None else numbers(given)
    if lengths is None:
        length = math.ceil(shape_of(x)[axis] / len(operator.outputs))
        parts = torch.split(x, length, axis)
    else:
        parts = torch.split(x, list(lengths), axis)
    return tuple(parts[i] for i in range(len(operator.outputs)))


@rule("Slice")
def _slice(operator: Operator, x: Value, *given: Sizes | None) -> Value:
    found = slices(operator, rank(x), given)
    for axis, part in found.items():
        if isinstance(part.step, int) and part.step < 0:
            if part.step != -1 or part.start not in (-1, shape_of(x)[axis] - 1) or part.stop is not None:
                raise UnlikeTorchError("a slice that goes backwards")
            x = torch.flip(x, (axis,))
    forward = {axis: part for axis, part in found.items() if not (isinstance(part.step, int) and part.step < 0)}
    if not forward:
        return x
    index = [slice(None)] * (max(forward) + 1)
    for axis, part in forward.items():
        index[axis] = slice(part.start, part.stop, None if part.step == 1 else part.step)
    return x[tuple(index)]


@rule("Gather")
def _gather(operator: Operator, x: Value, indices: Value) -> Value:
    axis = operator.attributes.get("axis", 0) % rank(x)
    if not rank(indices):
        return x[(*[slice(None)] * axis, indices)]
    if axis == 0:
        return x[indices]
    return torch.index_select(x, axis, indices) if rank(indices) == 1 else x[(*[slice(None)] * axis, indices)]


@rule("GatherElements")
def _gather_elements(operator: Operator, x: Value, indices: Value) -> Value:
    return torch.gather(x, operator.attributes.get("axis", 0), indices)


@rule("Expand")
def _expand(_: Operator, x: Value, shape: Sizes) -> Value:
    wanted = list(numbers(shape))
    if not rank(x):
        return torch.full(wanted, x)
    own = [1] * (len(wanted) - rank(x)) + list(shape_of(x))
    lead = [1] * (len(own) - len(wanted)) + wanted
    # A size of one in the wanted shape keeps that of the tensor.
    return x.expand(
        [-1 if isinstance(new, int) and new in (1, old) else new for new, old in zip(lead, own, strict=True)]
    )


@rule("Tile")
def _tile(_: Operator, x: Value, repeats: Sizes) -> Value:
    return x.repeat(*numbers(repeats))


@rule("Pad")
def _pad(operator: Operator, x: Value, *given: Sizes | None) -> Value:
    if "pads" in operator.attributes:
        pads, fill, axes = tuple(operator.attributes["pads"]), operator.attributes.get("value", 0.0), None
    else:
        counts, value, named = (*given, None, None)[:3]
        assert counts is not None
        pads = numbers(counts)
        fill = 0.0 if value is None or not value.size else number(value)
        axes = None if named is None else numbers(named)
    named_axes = [axis % rank(x) for axis in (range(rank(x)) if axes is None else axes)]
    each = {axis: (pads[i], pads[i + len(named_axes)]) for i, axis in enumerate(named_axes)}
    pairs = [n for axis in reversed(range(rank(x))) for n in each.get(axis, (0, 0))]
    while len(pairs) > 2 and pairs[-1] == 0 and pairs[-2] == 0:
        del pairs[-2:]
    names = {"edge": "replicate", "reflect": "reflect", "wrap": "circular", "constant": "constant"}
    mode = names[operator.attributes.get("mode", b"constant").decode()]
    return F.pad(x, pairs, value=fill) if mode == "constant" else F.pad(x, pairs, mode)


@rule("Trilu")
def _trilu(operator: Operator, x: Value, k: Sizes | None = None) -> Value:
    function = torch.triu if operator.attributes.get("upper", 1) else torch.tril
    return function(x, 0 if k is None else number(k))


@rule("Shape")
def _sizes_of(operator: Operator, x: Value) -> Any:
    first, last = operator.attributes.get("start", 0), operator.attributes.get("end")
    return sizes_of([size_of(x, i) for i in range(rank(x))][first:last])


@rule("Size")
def _size(_: Operator, x: Value) -> Any:
    return reduce(op.mul, [size_of(x, i) for i in range(rank(x))], 1)


@rule("ConstantOfShape")
def _constant_of_shape(operator: Operator, shape: Sizes) -> Value:
    value = operator.attributes.get("value")
    filled = np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value)
    return torch.full(numbers(shape), filled[0].item())


@rule("Range")
def _range(_: Operator, start: Sizes, limit: Sizes, step: Sizes) -> Value:
    return torch.arange(number(start), number(limit), number(step))


@rule("Attention")
def _attention(operator: Operator, q: Value, k: Value, v: Value, mask: Value | None = None) -> Value:
    given = operator.attributes
    if rank(q) != 4 or len(operator.outputs) > 1 or given.get("softcap") or shape_of(q)[1] != shape_of(k)[1]:
        raise UnlikeTorchError("an attention with packed heads, a cache or a cap")
    scale, causal = given.get("scale"), bool(given.get("is_causal", 0))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
