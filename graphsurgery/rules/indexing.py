"""Operators that take a part of an axis: split, chunk, unbind, slices and indices, and writes into them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from graphsurgery import axes as ax
from graphsurgery.axes import Axis, Clash
from graphsurgery.facts import Resize, TensorType
from graphsurgery.inference import Inference, rule
from graphsurgery.rules.contraction import outputs_like


@rule(torch.split, "split", torch.chunk, "chunk", torch.tensor_split)
def split(
    infer: Inference,
    input: TensorType,
    sizes: Any = None,  # noqa: ARG001
    dim: int = 0,
    **options: Any,  # noqa: ARG001
) -> tuple[TensorType, ...]:
    """Consecutive pieces of one axis; on a rebuild the call becomes a split by explicit sizes."""
    pieces, position = [], 0
    for tensor in infer.value:
        pieces.append(ax.take(input[dim], position, position + tensor.shape[dim]))
        position += tensor.shape[dim]
    if not ax.is_fixed(input[dim]):
        infer.on_rebuild(lambda node, new: _split_by_sizes(node, [new.size(piece) for piece in pieces]))
    return tuple(input.replace(dim, piece) for piece in pieces)


def _split_by_sizes(node: fx.Node, sizes: list[int]) -> None:
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    node.op, node.target, node.args, node.kwargs = "call_function", torch.split, (node.args[0], sizes), {"dim": dim}


@rule(torch.unbind, "unbind")
def unbind(infer: Inference, input: TensorType, dim: int = 0) -> tuple[TensorType, ...]:
    """One axis is taken apart, which fixes it; its neighbours stay free."""
    dim %= len(input)
    infer.freeze_axis("an axis that is unbound", input[dim])
    return tuple(TensorType([a for i, a in enumerate(input.axes) if i != dim]) for _ in infer.value)


@rule(operator.setitem)
def setitem(infer: Inference, *operands: Any) -> Any:
    """Writing into a tensor by index fixes it and what is written: the indices are not moved along."""
    infer.freeze("is written to by index", operands)
    return infer.value


@rule(operator.getitem)
def getitem(infer: Inference, input: Any, index: Any) -> Any:
    """An element of a tuple, or indices of a tensor: slices take, integers fix, None adds a single axis."""
    if not isinstance(input, TensorType):
        return input[index]
    return _index_tensor(infer, input, index if isinstance(index, tuple) else (index,))


def _index_tensor(infer: Inference, input: TensorType, index: tuple[Any, ...]) -> TensorType:
    if any(isinstance(i, (TensorType, list)) for i in index):
        return _gather(infer, input, index)
    result: list[Axis] = []
    slices: dict[int, Axis] = {}
    source = 0
    missing = len(input) - sum(i is not None and i is not Ellipsis for i in index)
    for position, item in enumerate(index):
        if item is None:
            result.append(ax.UNIT)
        elif item is Ellipsis:
            result.extend(input.axes[source : source + missing])
            source += missing
        elif isinstance(item, slice):
            axis = input[source]
            result.append(_slice(infer, axis, item, len(result)))
            if (item.start, item.stop) != (None, None) and not ax.is_fixed(axis):
                slices[position] = axis
            source += 1
        else:
            infer.freeze_axis("an axis that is indexed by a constant", input[source])
            source += 1
    if slices:
        infer.on_rebuild(lambda node, new: _resize_slices(node, new, index, slices))
    return TensorType([*result, *input.axes[source:]])


def _slice(infer: Inference, axis: Axis, item: slice, out: int) -> Axis:
    size = ax.size_of(axis)
    if (item.start, item.stop, item.step) == (None, None, None):
        return axis
    start, stop, step = item.indices(size)
    if step != 1 or not all(isinstance(i, int) or i is None for i in (item.start, item.stop)):
        infer.freeze_axis("an axis that is sliced with a step or a computed border", axis)
        return ax.fixed(infer.value.shape[out])
    try:
        return ax.take(axis, start, stop)
    except Clash as clash:
        infer.freeze_axis(f"a slice: {clash}", axis)
        return ax.fixed(max(stop - start, 0))


def _resize_slices(node: fx.Node, new: Resize, old: tuple[Any, ...], slices: dict[int, Axis]) -> None:
    """Move the borders of slices along with what lies before them; `old` has them as numbers."""
    index = list(node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],))
    for position, axis in slices.items():
        item = old[position]
        start, stop, _ = item.indices(ax.size_of(axis))
        before = new.size(ax.take(axis, 0, start)) if start else 0
        index[position] = slice(before, before + new.size(ax.take(axis, start, stop)))
    node.update_arg(1, tuple(index) if isinstance(node.args[1], tuple) else index[0])


def _gather(infer: Inference, input: TensorType, index: tuple[Any, ...]) -> TensorType:
    """Indexing by tensors fixes the axes that are looked up; the others pass."""
    if any(not isinstance(i, (TensorType, list, slice)) for i in index) or Ellipsis in index:
        infer.freeze("indexed by tensors and more", input, index)
        return outputs_like(infer)
    looked_up = [i for i, item in enumerate(index) if not isinstance(item, slice)]
    if len(looked_up) != 1 or any(isinstance(i, slice) and i != slice(None) for i in index):
        infer.freeze("indexed by several tensors", input, index)
        return outputs_like(infer)
    infer.freeze_axis("an axis that is looked up by indices", input[looked_up[0]])
    lead, tail = input.axes[: looked_up[0]], input.axes[looked_up[0] + 1 :]
    shape = infer.value.shape
    return TensorType([*lead, *(ax.fixed(n) for n in shape[len(lead) : len(shape) - len(tail)]), *tail])
