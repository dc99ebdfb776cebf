"""Layers of torch for the operators of an `.onnx` file that have weights of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from graphsurgery.onnx.importing.operators import per_axis, transposed_options
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.recurrent import RECURRENT, recurrent_layer
from graphsurgery.onnx.importing.sources import Arrays, Layer, Source, stored

_Maker = Callable[[Operator, Arrays, int], Layer | None]


def layer_of(operator: Operator, constants: Arrays, rank: int) -> Layer | None:
    """The layer of an operator whose weights are constants of the file, on meta; None where there is none.

    Args:
        operator: its first input is what the layer reads, the others are weights.
        constants: of the file, by name.
        rank: number of axes of what it reads.
    """
    maker = _MAKERS.get(operator.kind)
    if maker is None:
        return None
    with torch.device("meta"):
        return maker(operator, constants, rank)


def _stored(operator: Operator, constants: Arrays, *positions: int) -> list[str] | None:
    """The names of these inputs, if all are floating constants or left out."""
    names = [operator.inputs[i] if i < len(operator.inputs) else "" for i in positions]
    return names if stored(names, constants) else None


def _sources(**names: str) -> dict[str, Source]:
    return {key: Source(name) for key, name in names.items() if name}


def _conv(operator: Operator, constants: Arrays, _: int) -> Layer | None:
    names = _stored(operator, constants, 1, 2)
    given = operator.attributes
    if names is None or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    shape = constants[names[0]].shape
    dims, groups = len(shape) - 2, given.get("group", 1)
    pads = tuple(given.get("pads", (0,) * 2 * dims))
    if dims not in (1, 2, 3) or pads[:dims] != pads[dims:]:
        return None
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    module = kind(
        shape[1] * groups,
        shape[0],
        shape[2:],
        per_axis(operator, "strides", dims),  # type: ignore[arg-type]
        pads[:dims],
        per_axis(operator, "dilations", dims),  # type: ignore[arg-type]
        groups,
        bias=bool(names[1]),
    )
    return Layer(module, _sources(weight=names[0], bias=names[1]))


def _conv_transpose(operator: Operator, constants: Arrays, _: int) -> Layer | None:
    names = _stored(operator, constants, 1, 2)
    if names is None or operator.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    shape = constants[names[0]].shape
    dims = len(shape) - 2
    pads = tuple(operator.attributes.get("pads", (0,) * 2 * dims))
    if dims not in (1, 2, 3) or "output_shape" in operator.attributes or pads[:dims] != pads[dims:]:
        return None
    options = transposed_options(operator, dims)
    kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    module = kind(shape[0], shape[1] * options["groups"], shape[2:], bias=bool(names[1]), **options)
    return Layer(module, _sources(weight=names[0], bias=names[1]))


def _linear(weight: str, transposed: bool, bias: str, constants: Arrays, rank: int) -> Layer | None:
    """`x W + b` with the file's `W [in, out]`, or `[out, in]` where it is transposed already.

    Args:
        weight, bias: names of the constants; the bias may be left out.
        transposed: whether the weight is.
        rank: number of axes of `x`; a bias with more would add some.
    """
    array = constants[weight]
    if array.ndim != 2:
        return None
    outputs, inputs = array.shape if transposed else array.shape[::-1]
    if bias:
        added = constants[bias]
        # A number for each column: `[out]` or `[1, out]`; `[n, 1]` has one for each row.
        if added.size != outputs or added.ndim > rank or (added.ndim and added.shape[-1] != outputs):
            return None
    sources = {"weight": Source(weight, "same" if transposed else "transposed")}
    if bias:
        sources["bias"] = Source(bias, "flat")
    return Layer(nn.Linear(inputs, outputs, bias=bool(bias)), sources)


def _gemm(operator: Operator, constants: Arrays, rank: int) -> Layer | None:
    names = _stored(operator, constants, 1, 2)
    given = operator.attributes
    if names is None or given.get("transA") or given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1:
        return None
    return _linear(names[0], bool(given.get("transB")), names[1], constants, rank)


def _matmul(operator: Operator, constants: Arrays, rank: int) -> Layer | None:
    """A product with a constant; a third input is the bias that was added to it."""
    names = _stored(operator, constants, 1, 2)
    return None if names is None else _linear(names[0], False, names[1], constants, rank)


def _batch_norm(operator: Operator, constants: Arrays, rank: int) -> Layer | None:
    names = _stored(operator, constants, 1, 2, 3, 4)
    given = operator.attributes
    if names is None or given.get("training_mode") or not given.get("spatial", 1):
        return None
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(rank, nn.BatchNorm1d)
    momentum = round(1 - given.get("momentum", 0.9), 6)
    module = kind(len(constants[names[0]]), given.get("epsilon", 1e-5), momentum)
    return Layer(module, _sources(weight=names[0], bias=names[1], running_mean=names[2], running_var=names[3]))


def _layer_norm(operator: Operator, constants: Arrays, _: int) -> Layer | None:
    names = _stored(operator, constants, 1, 2)
    if names is None or len([name for name in operator.outputs if name]) > 1:
        return None
    shape, axis = constants[names[0]].shape, operator.attributes.get("axis", -1)
    if axis != -len(shape):
        return None
    module = nn.LayerNorm(shape, operator.attributes.get("epsilon", 1e-5), bias=bool(names[1]))
    return Layer(module, _sources(weight=names[0], bias=names[1]))


def _group_norm(operator: Operator, constants: Arrays, _: int) -> Layer | None:
    names = _stored(operator, constants, 1, 2)
    if names is None or operator.opset < 21:
        return None
    given = operator.attributes
    module = nn.GroupNorm(given["num_groups"], len(constants[names[0]]), given.get("epsilon", 1e-5))
    return Layer(module, _sources(weight=names[0], bias=names[1]))


def _dropout(operator: Operator, constants: Arrays, _: int) -> Layer:
    ratio = operator.attributes.get("ratio", 0.5)
    if len(operator.inputs) > 1 and operator.inputs[1] in constants:
        ratio = float(constants[operator.inputs[1]])
    return Layer(nn.Dropout(ratio), {})


def _prelu(operator: Operator, constants: Arrays, rank: int) -> Layer | None:
    """One slope, or one for each channel: slopes broadcast from the last axis, so they need axes behind theirs."""
    names = _stored(operator, constants, 1)
    if names is None:
        return None
    shape = constants[names[0]].shape
    aligned = (1,) * (rank - len(shape)) + shape
    if len(shape) > rank or any(size != 1 for axis, size in enumerate(aligned) if axis != 1):
        return None
    return Layer(nn.PReLU(constants[names[0]].size), {"weight": Source(names[0], "flat")})


_MAKERS: dict[str, _Maker] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "PRelu": _prelu,
    "Dropout": _dropout,
    **dict.fromkeys(RECURRENT, recurrent_layer),
}
