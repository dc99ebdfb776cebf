"""A batch that an `.onnx` file fixes, made free again.

A file that was exported for one example has a 1, or a multiple of its batch, among the numbers of its shapes. Which
number that is follows from where the batch lies in what is reshaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from graphsurgery.onnx import operators, sizes

_SYMBOLS = (fx.Proxy, sizes.Size)


def freed(x: Any, before: Sequence[int], inner: bool, shape: sizes.Sizes, fixed: int) -> tuple[sizes.Sizes, bool]:
    """The target of a reshape for any batch, and whether the batch is the inner part of its axis there.

    A reshape keeps the order of the numbers, so the batch stays where as many numbers lie within one step of it.

    Args:
        x: what is reshaped.
        before: its shape in the file.
        inner: whether the batch is the inner part of its axis.
        shape: the target in the file, where the batch or a multiple of it is a literal.
        fixed: the batch of the file.
    """
    axis = next((i for i, (a, b) in enumerate(zip(operators.shape_of(x), before, strict=True)) if a != b), None)
    if axis is None:
        return shape, False
    entries = sizes.numbers(shape)
    target = [_value(n) for n in entries]
    symbolic = any(isinstance(n, _SYMBOLS) for n in entries)
    if symbolic and (-1 in target or math.prod(target) == math.prod(operators.shape_of(x))):
        return shape, False
    target = [before[i] if n == 0 and i < len(before) else n for i, n in enumerate(target)]
    if -1 in target:
        rest = math.prod(n for n in target if n != -1)
        target[target.index(-1)] = math.prod(before) // max(1, rest)
    step = math.prod(before[axis + 1 :]) if inner else math.prod(before[axis:]) // fixed
    fits = [i for i, size in enumerate(target) if size % fixed == 0]
    alone = [i for i in fits if target[i] == fixed and math.prod(target[i + 1 :]) == step]
    outer = [i for i in fits if math.prod(target[i:]) == step * fixed]
    within = [i for i in fits if math.prod(target[i + 1 :]) == step]
    # Features come last, and the batch is not among them.
    outer = [i for i in outer if i < len(target) - 1 or not within]
    places = alone or outer or within
    if not places:
        return shape, False
    new: list[Any] = [n if isinstance(n, _SYMBOLS) else size for n, size in zip(entries, target, strict=True)]
    new[places[0]] = operators.size_of(x, axis) * target[places[0]] // before[axis]
    return sizes.sizes_of(new), not alone and not outer


def _value(size: Any) -> int:
    return int(size.node.meta["value"] if isinstance(size, fx.Proxy) else size)


def alongside(values: list[Any], axis: int) -> list[Any]:
    """Tensors that meet in one; a constant with the batch of one, such as a class token, is repeated."""
    rank = operators.rank(values[0])
    shapes = [operators.shape_of(value) for value in values]
    largest = max(range(len(values)), key=lambda i: math.prod(n for at, n in enumerate(shapes[i]) if at != axis % rank))
    lead, wanted = values[largest], shapes[largest]
    found = []
    for value, shape in zip(values, shapes, strict=True):
        short = [i for i in range(rank) if i != axis % rank and shape[i] == 1 != wanted[i]]
        sizes_ = [operators.size_of(lead, i) if i in short else -1 for i in range(rank)]
        found.append(value.expand(sizes_) if short else value)
    return found
