"""How convolutions and pools pad: by attribute, or by a rule of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F

from graphsurgery.onnx.importing.operators.registry import UnlikeTorchError, Value, shape_of, size_of
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.sources import is_literal


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


def padded(operator: Operator, x: Value, kernel: Sequence[int], value: float = 0.0) -> tuple[Value, tuple[int, ...]]:
    """The input, padded where both sides differ or may, and the padding that is left to the operator."""
    dims = len(kernel)
    sizes = [size_of(x, 2 + axis) for axis in range(dims)] if operator.free else shape_of(x)[2:]
    pads = pads_of(operator, sizes, kernel)
    if all(map(is_literal, pads)) and pads[:dims] == pads[dims:]:
        return x, pads[:dims]
    pairs = [n for axis in reversed(range(dims)) for n in (pads[axis], pads[axis + dims])]
    return F.pad(x, pairs, value=value), (0,) * dims


def pads_of(operator: Operator, sizes: Sequence[Any], kernel: Sequence[int]) -> tuple[Any, ...]:
    """Padding in front of every spatial axis, then behind it."""
    dims = len(kernel)
    mode = operator.attributes.get("auto_pad", b"NOTSET").decode()
    if mode == "NOTSET":
        return tuple(operator.attributes.get("pads", (0,) * 2 * dims))
    if mode == "VALID":
        return (0,) * 2 * dims
    strides, dilations = per_axis(operator, "strides", dims), per_axis(operator, "dilations", dims)
    ends = [
        _missing(size, (length - 1) * dilation + 1, stride)
        for size, length, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    less, more = [n // 2 for n in ends], [n - n // 2 for n in ends]
    return (*less, *more) if mode == "SAME_UPPER" else (*more, *less)


def _missing(size: Any, extent: int, stride: int) -> Any:
    """How many numbers an axis lacks for as many windows as it has strides, the last begun one included."""
    if 1 in (stride, extent):
        return extent - 1
    if stride > extent and not is_literal(size):
        raise UnlikeTorchError("padded by a size that is free, with gaps between windows")
    missing = extent - 1 - (size - 1) % stride
    return missing if stride <= extent else max(missing, 0)
