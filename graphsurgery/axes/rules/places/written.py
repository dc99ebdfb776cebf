"""Operators that write into a part of a tensor, and those that take its diagonal."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis, Clash
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.rules.contraction import outputs_like, set_argument
from graphsurgery.axes.rules.pointwise import broadcast
from graphsurgery.axes.types import Resize, TensorType

_BY_INDICES = "an axis that is written by indices"


@rule(
    torch.index_add, "index_add", torch.index_copy, "index_copy", torch.index_reduce, "index_reduce",
    torch.index_fill, "index_fill",
)  # fmt: skip
def placed(
    infer: Inference,
    input: TensorType,
    dim: int,
    index: TensorType,  # noqa: ARG001
    source: Any,
    *others: Any,  # noqa: ARG001
    **options: Any,  # noqa: ARG001
) -> TensorType:
    """One axis is written by indices; what is written there has the others."""
    infer.freeze_axis(_BY_INDICES, input[dim])
    if isinstance(source, TensorType) and len(source) == len(input):
        infer.freeze_axis(_BY_INDICES, source[dim])
        _meet_elsewhere(infer, input, source, dim)
    return TensorType(input.axes)


def _meet_elsewhere(infer: Inference, input: TensorType, other: TensorType, dim: int) -> None:
    """Make all axes but one the same; of some that are longer only a part is written."""
    for index, (own, axis) in enumerate(zip(input.axes, other.axes, strict=True)):
        if index == dim % len(input):
            continue
        if ax.size_of(own) == ax.size_of(axis):
            infer.unify(own, axis)
        else:
            infer.freeze_axis("an axis of which a part is written", own, axis)


@rule(
    torch.scatter, "scatter", torch.scatter_add, "scatter_add", torch.scatter_reduce, "scatter_reduce",
)  # fmt: skip
def scattered(
    infer: Inference,
    input: TensorType,
    dim: int,
    index: TensorType,
    src: Any = None,
    *others: Any,  # noqa: ARG001
    **options: Any,
) -> TensorType:
    """One axis is written by indices that differ along the others."""
    source = options.get("value", src)
    infer.freeze_axis(_BY_INDICES, input[dim], index[dim])
    _meet_elsewhere(infer, input, index, dim)
    if isinstance(source, TensorType) and len(source) == len(index):
        infer.freeze_axis(_BY_INDICES, source[dim])
        _meet_elsewhere(infer, index, source, dim)
    return TensorType(input.axes)


@rule(torch.index_put, torch.index_put_, "index_put")
def put_at(
    infer: Inference,
    input: TensorType,
    indices: Any,
    values: TensorType,
    accumulate: bool = False,  # noqa: ARG001
) -> TensorType:
    """The first axes are written by indices; what is written there has the others behind it."""
    named = [index for index in indices if isinstance(index, TensorType)]
    masks = infer.node.args[1] if len(infer.node.args) > 1 else infer.node.kwargs["indices"]
    whole = all(isinstance(i, fx.Node) and i.meta["value"].dtype == torch.int64 for i in masks)  # type: ignore[union-attr]
    infer.freeze_axis(_BY_INDICES, *input.axes[: len(named)])
    if len(named) < len(indices) or not whole:
        infer.freeze(_BY_INDICES, input, values)
    else:
        places = broadcast(infer, *named)
        broadcast(infer, TensorType([*places.axes, *input.axes[len(named) :]]), values)
    return TensorType(input.axes)


@rule(torch.select_scatter, "select_scatter")
def written_at_one(infer: Inference, input: TensorType, src: TensorType, dim: int, index: Any) -> TensorType:  # noqa: ARG001
    """One index of an axis is written, which that fixes."""
    infer.freeze_axis("an axis that is indexed by a constant", input[dim])
    rest = [axis for number, axis in enumerate(input.axes) if number != dim % len(input)]
    for own, axis in zip(rest, src.axes, strict=True):
        infer.unify(own, axis)
    return TensorType(input.axes)


@rule(torch.slice_scatter, "slice_scatter")
def written_slice(
    infer: Inference,
    input: TensorType,
    src: TensorType,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> TensorType:
    """A slice of one axis is written."""
    axis, size = input[dim], ax.size_of(input[dim])
    first, last, _ = slice(start, end, step).indices(size)
    if step != 1 or ax.is_fixed(axis):
        infer.freeze_axis("an axis of which every other index is written", axis, src[dim])
    else:
        _write_borders(infer, axis, src[dim], first, last)
    _meet_elsewhere(infer, input, src, dim)
    return TensorType(input.axes)


def _write_borders(infer: Inference, axis: Axis, part: Axis, first: int, last: int) -> None:
    """Move the borders of a slice along with what lies before them."""
    try:
        before, own = ax.take(axis, 0, first), ax.take(axis, first, last)
    except Clash as clash:
        infer.freeze_axis(f"a slice: {clash}", axis, part)
        return
    infer.unify(own, part)

    def resize(node: fx.Node, new: Resize) -> None:
        start = new.size(before)
        set_argument(node, 3, "start", start)
        set_argument(node, 4, "end", start + new.size(own))

    infer.on_rebuild(resize)


@rule(torch.diagonal, "diagonal", torch.linalg.diagonal)
def diagonal(
    infer: Inference,
    input: TensorType,
    offset: int = 0,  # noqa: ARG001
    dim1: int = 0,
    dim2: int = 1,
    **named: Any,  # noqa: ARG001
) -> TensorType:
    """Two axes, which that fixes, give one, which is the last."""
    if infer.node.target is torch.linalg.diagonal:
        given = infer.node.kwargs
        dim1, dim2 = int(given.get("dim1", -2)), int(given.get("dim2", -1))  # type: ignore[arg-type]
    infer.freeze_axis("an axis of a diagonal", input[dim1], input[dim2])
    return outputs_like(infer, *enumerate(_besides(input, dim1, dim2)))


def _besides(input: TensorType, *dims: int) -> list[Axis]:
    """The axes that are not those of a diagonal."""
    gone = {dim % len(input) for dim in dims}
    return [axis for index, axis in enumerate(input.axes) if index not in gone]


@rule(torch.diagonal_scatter, "diagonal_scatter")
def written_diagonal(
    infer: Inference,
    input: TensorType,
    src: TensorType,
    offset: int = 0,  # noqa: ARG001
    dim1: int = 0,
    dim2: int = 1,
) -> TensorType:
    """A diagonal of two axes is written, which that fixes."""
    infer.freeze_axis("an axis of a diagonal", input[dim1], input[dim2], src[-1])
    for own, axis in zip(_besides(input, dim1, dim2), src.axes[:-1], strict=True):
        infer.unify(own, axis)
    return TensorType(input.axes)


@rule(torch.diag_embed, "diag_embed")
def on_a_diagonal(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:
    """The last axis becomes the diagonal of two; where these are the last two and it the main one, they follow it."""
    if others or options or infer.value.shape[-1] != ax.size_of(input[-1]):
        infer.freeze("an axis of a diagonal", input)
        return TensorType([ax.fixed(n) for n in infer.value.shape])
    return TensorType([*input.axes, input[-1]])


@rule(torch.cross, "cross", torch.linalg.cross)
def cross(infer: Inference, input: TensorType, other: TensorType, dim: int | None = None, **options: Any) -> TensorType:  # noqa: ARG001
    """Products of three numbers each, whose axis is fixed."""
    whole = broadcast(infer, input, other)
    sizes = [ax.size_of(axis) for axis in whole.axes]
    named = dim if dim is not None else -1 if infer.node.target is torch.linalg.cross else sizes.index(3)
    infer.freeze_axis("an axis of a vector product", whole[named])
    return TensorType(whole.axes)
