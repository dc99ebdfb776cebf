"""What moves, cuts and repeats numbers without changing them, and what makes sizes of tensors."""

from __future__ import annotations

import operator as op
from functools import reduce
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F

from graphsurgery.onnx.importing.operators.registry import UnlikeTorchError, Value, rank, rule, shape_of, size_of
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.sizes import Sizes, axes_of, number, numbers, sizes_of, slices
from graphsurgery.onnx.importing.sources import is_literal


@rule("Reshape")
def _reshape(operator: Operator, x: Value, shape: Sizes) -> Value:
    target = list(numbers(shape))
    if not operator.attributes.get("allowzero"):
        target = [x.shape[i] if is_literal(n) and n == 0 else n for i, n in enumerate(target)]
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
    parts = torch.chunk(x, len(operator.outputs), axis) if lengths is None else torch.split(x, list(lengths), axis)
    return tuple(parts[i] for i in range(len(operator.outputs)))


@rule("Slice")
def _slice(operator: Operator, x: Value, *given: Sizes | None) -> Value:
    found = slices(operator, rank(x), given)
    for axis, part in found.items():
        if isinstance(part.step, int) and part.step < 0:
            last = shape_of(x)[axis] - 1
            if part.step != -1 or part.stop is not None or not is_literal(part.start) or part.start not in (-1, last):
                raise UnlikeTorchError("a slice that goes backwards")
            # Where another input is longer, what lies behind the start is left out.
            x = torch.flip(x if part.start == -1 else x[(*[slice(None)] * axis, slice(last + 1))], (axis,))
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
    axis = operator.attributes.get("axis", 0)
    return torch.gather(x, axis, indices % size_of(x, axis))  # negative indices count from the end


@rule("Expand")
def _expand(_: Operator, x: Value, shape: Sizes) -> Value:
    wanted = list(numbers(shape))
    if not rank(x):
        return torch.full(wanted, x)
    new = max(0, len(wanted) - rank(x))
    own = [1] * new + list(shape_of(x))
    lead = [1] * (len(own) - len(wanted)) + wanted
    # A size of one in the wanted shape keeps that of the tensor; an axis that the tensor has not needs a size.
    return x.expand(
        [
            -1 if at >= new and is_literal(size) and size in (1, old) else size
            for at, (size, old) in enumerate(zip(lead, own, strict=True))
        ]
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
