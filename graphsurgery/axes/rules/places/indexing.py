"""Operators that take a part of an axis, write into it, or mean its order.

Split, chunk, unbind, slices and indices; and those that fix the axis along which the order of indices matters.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis, Clash
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.kept import computes_at_size
from graphsurgery.axes.rules.contraction import set_argument
from graphsurgery.axes.rules.pointwise import broadcast
from graphsurgery.axes.types import Resize, TensorType
from graphsurgery.network.operators import spelled


@rule(*spelled("split"))
def split(
    infer: Inference,
    input: TensorType,
    sizes: Any = None,  # noqa: ARG001
    dim: int = 0,
    **options: Any,  # noqa: ARG001
) -> tuple[TensorType, ...]:
    """Consecutive pieces of one axis; where a rebuild changes them, the call becomes a split by explicit sizes."""
    pieces, position = [], 0
    for tensor in infer.value:
        pieces.append(ax.take(input[dim], position, position + tensor.shape[dim]))
        position += tensor.shape[dim]
    if not ax.is_fixed(input[dim]):
        infer.on_rebuild(lambda node, new: _split_by_sizes(node, pieces, [new.size(piece) for piece in pieces], dim))
    return tuple(input.replace(dim, piece) for piece in pieces)


_SPLITS = {"hsplit": 1, "vsplit": 0, "dsplit": 2}


@rule(*spelled("hsplit"))
def split_by_name(infer: Inference, input: TensorType, *others: Any, **options: Any) -> tuple[TensorType, ...]:  # noqa: ARG001
    """Pieces of the first, second or third axis; of a vector, of its only one."""
    dim = _SPLITS[infer.operator()] if len(input) > 1 else 0
    return split(infer, input, dim=dim)


def _split_by_sizes(node: fx.Node, pieces: list[Axis], sizes: list[int], dim: int) -> None:
    if sizes == [ax.size_of(piece) for piece in pieces]:
        return  # as the model spells it
    node.op, node.target, node.args, node.kwargs = "call_function", torch.split, (node.args[0], sizes), {"dim": dim}


@rule(torch.unbind, "unbind")
def unbind(infer: Inference, input: TensorType, dim: int = 0) -> tuple[TensorType, ...]:
    """One axis is taken apart, which fixes it; its neighbours stay free."""
    dim %= len(input)
    infer.freeze_axis("an axis that is unbound", input[dim])
    return tuple(TensorType([a for i, a in enumerate(input.axes) if i != dim]) for _ in infer.value)


@rule(operator.setitem)
def setitem(infer: Inference, target: Any, index: Any, value: Any) -> Any:
    """What is written has the type of the part that it is written over; indices in tensors are not moved along."""
    index = index if isinstance(index, tuple) else (index,)
    if not isinstance(target, TensorType) or any(isinstance(i, (TensorType, list, bool)) for i in index):
        infer.freeze("is written to by index", target, index, value)
        return infer.value
    part = _index_tensor(infer, target, index)
    if isinstance(value, TensorType):
        skipped = max(len(value) - len(part), 0)
        infer.fix(*value.axes[:skipped])
        broadcast(infer, TensorType(value.axes[skipped:]), part)
    return infer.value


@rule(operator.getitem)
def getitem(infer: Inference, input: Any, index: Any) -> Any:
    """An element of a tuple, or indices of a tensor: slices take, integers fix, None adds a single axis."""
    if not isinstance(input, TensorType):
        return input[index]
    return _index_tensor(infer, input, index if isinstance(index, tuple) else (index,))


def _index_tensor(infer: Inference, input: TensorType, index: tuple[Any, ...]) -> TensorType:
    if any(isinstance(i, (TensorType, list)) for i in index):
        return _look_up(infer, input, index)
    if all(isinstance(item, int) for item in index):
        return _at(infer, input, len(index))
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
            if item != slice(None) and not ax.is_fixed(axis):
                slices[position] = axis
            source += 1
        else:
            infer.freeze_axis("an axis that is indexed by a constant", input[source])
            source += 1
    if slices:
        infer.on_rebuild(lambda node, new: _resize_slices(node, new, index, slices))
    return TensorType([*result, *input.axes[source:]])


def _at(infer: Inference, input: TensorType, count: int) -> TensorType:
    """One index of each of the first axes, which that fixes; of weights in one tensor the weights of one expert."""
    infer.freeze_axis("an axis that is indexed by a constant", *input.axes[:count])
    return TensorType(input.axes[count:], input.parameter, input.order[count:])


def _slice(infer: Inference, axis: Axis, item: slice, out: int) -> Axis:
    size = ax.size_of(axis)
    if (item.start, item.stop, item.step) == (None, None, None):
        return axis
    start, stop, step = item.indices(size)
    if not all(isinstance(i, int) or i is None for i in (item.start, item.stop)):
        infer.freeze_axis("an axis that is sliced with a computed border", axis)
        return ax.fixed(infer.value.shape[out])
    try:
        return ax.take(axis, start, stop) if step == 1 else _every(axis, item, start, step)
    except Clash as clash:
        infer.freeze_axis(f"a slice: {clash}", axis)
        return ax.fixed(len(range(start, stop, step)))


def _every(axis: Axis, item: slice, start: int, step: int) -> Axis:
    """Every `step`-th index: of `n·step` one index of the inner factor, which that fixes."""
    size = ax.size_of(axis)
    if step < 0 or size % step or not 0 <= start < step or item.stop not in (None, size):
        raise Clash(f"every {step}th of {size} indices")
    outer, inner = ax.factor(axis, [size // step, step])
    ax.freeze(inner)
    return outer


def _resize_slices(node: fx.Node, new: Resize, old: tuple[Any, ...], slices: dict[int, Axis]) -> None:
    """Move the borders of slices along with what lies before them; `old` has them as numbers."""
    index = list(node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],))
    for position, axis in slices.items():
        item = old[position]
        start, stop, step = item.indices(ax.size_of(axis))
        if step != 1:
            index[position] = slice(start, None, step)
            continue
        before = new.size(ax.take(axis, 0, start)) if start else 0
        after = before + new.size(ax.take(axis, start, stop))
        same = (before, after, new.size(axis)) == (start, stop, ax.size_of(axis))
        index[position] = item if same else slice(before, after)
    node.update_arg(1, tuple(index) if isinstance(node.args[1], tuple) else index[0])


def _look_up(infer: Inference, input: TensorType, index: tuple[Any, ...]) -> TensorType:
    """Indexing by tensors fixes the axes that are looked up; they give way to the axes of the indices."""
    entries = _spelled_out(index, len(input))
    result: list[Axis] = []
    found: list[TensorType] = []
    places: list[int] = []
    looked_up: list[int] = []
    source = 0
    for position, item in enumerate(entries):
        if item is None:
            result.append(ax.UNIT)
            continue
        if isinstance(item, slice):
            if item != slice(None):
                infer.freeze_axis("an axis that is sliced beside one that is looked up", input[source])
            size = len(range(*item.indices(ax.size_of(input[source]))))
            result.append(input[source] if item == slice(None) else ax.fixed(size))
        else:
            looked_up.append(source)
            places.append(position)
            if isinstance(item, TensorType):
                found.append(item)
            elif isinstance(item, list):
                found.append(TensorType([ax.fixed(n) for n in torch.tensor(item).shape]))
        source += 1
    axes: Sequence[Axis] = broadcast(infer, *found).axes
    together = places[-1] - places[0] + 1 == len(places)
    # Where indices stand apart, their axes come first.
    before = sum(position < places[0] for position in range(len(entries))) if together else 0
    axes = _looked_up(infer, input, looked_up, axes, before)
    return TensorType([*result[:before], *axes, *result[before:]])


def _looked_up(
    infer: Inference, input: TensorType, dims: Sequence[int], axes: Sequence[Axis], before: int
) -> Sequence[Axis]:
    """The axes that a lookup gives, from those of its indices; `before` stands in front of them.

    Channels that are looked up one after the other stay free, and so do those that they come to.
    """
    reason = "an axis that is looked up by indices"
    follows = len(axes) == 1 and ax.is_fixed(axes[0]) and infer.value.shape[before] == ax.size_of(axes[0]) > 1
    if len(dims) != 1 or not follows or input.parameter is not None or ax.is_fixed(input[dims[0]]):
        infer.freeze_axis(reason, *(input[dim] for dim in dims))
        return axes
    found = ax.free(ax.size_of(axes[0]))
    infer.moves_to(reason, input[dims[0]], found)
    computes_at_size(infer, reason, input, dims, {before: found})
    return [found]


def _spelled_out(index: tuple[Any, ...], rank: int) -> list[Any]:
    """An entry for every axis, in place of the ellipsis and of what is left out at the end."""
    if any(isinstance(i, bool) for i in index):
        raise Clash("indexed by a truth value")
    missing = rank - sum(i is not None and i is not Ellipsis for i in index)
    entries: list[Any] = []
    for item in index if any(i is Ellipsis for i in index) else (*index, Ellipsis):
        entries.extend([slice(None)] * missing if item is Ellipsis else [item])
    return entries


@rule(torch.select, "select")
def select(infer: Inference, input: TensorType, dim: int, index: Any) -> TensorType:  # noqa: ARG001
    """One index of an axis, which that fixes."""
    dim %= len(input)
    infer.freeze_axis("an axis that is indexed by a constant", input[dim])
    return TensorType([a for i, a in enumerate(input.axes) if i != dim])


@rule(torch.narrow, "narrow")
def narrow(infer: Inference, input: TensorType, dim: int, start: Any, length: int) -> TensorType:
    """A piece of one axis, from its start and length."""
    axis = input[dim]
    if ax.is_fixed(axis) or not isinstance(start, int):
        infer.freeze_axis("an axis that is sliced with a computed border", axis)
        return input.replace(dim, ax.fixed(length))
    start %= ax.size_of(axis)
    before, piece = ax.take(axis, 0, start), ax.take(axis, start, start + length)

    def resize(node: fx.Node, new: Resize) -> None:
        set_argument(node, 2, "start", new.size(before))
        set_argument(node, 3, "length", new.size(piece))

    infer.on_rebuild(resize)
    return input.replace(dim, piece)


@rule(torch.index_select, "index_select")
def index_select(infer: Inference, input: TensorType, dim: int, index: TensorType) -> TensorType:
    """One axis is looked up by indices."""
    found = [index[0] if len(index) else ax.UNIT]
    return input.replace(dim, _looked_up(infer, input, [dim % len(input)], found, dim % len(input))[0])


@rule(torch.gather, "gather", torch.take_along_dim, "take_along_dim")
def gather(infer: Inference, input: TensorType, *arguments: Any, **options: Any) -> TensorType:
    """One axis is looked up by indices that differ along the others."""
    numbers = [a for a in (*arguments, *options.values()) if isinstance(a, int) and not isinstance(a, bool)]
    indices = [a for a in (*arguments, *options.values()) if isinstance(a, TensorType)]
    if len(numbers) != 1 or len(indices) != 1 or len(indices[0]) != len(input):
        raise Clash("indexed in all axes at once")
    dim, index = numbers[0] % len(input), indices[0]
    if ax.is_fixed(index[dim]) and input.parameter is None:
        computes_at_size(infer, "an axis that is looked up by indices", input, [dim])
    else:
        infer.freeze_axis("an axis that is looked up by indices", input[dim])
    axes = []
    for position, (axis, wanted) in enumerate(zip(input.axes, index.axes, strict=True)):
        if position != dim and ax.size_of(axis) != ax.size_of(wanted):
            infer.freeze_axis("an axis of which only a part is looked up", axis, wanted)
        elif position != dim:
            infer.unify(axis, wanted)
        axes.append(wanted)
    return TensorType(axes)


@rule(torch.rot90, "rot90")
def rot90(infer: Inference, input: TensorType, k: int = 1, dims: Sequence[int] = (0, 1)) -> TensorType:
    """Two axes are turned."""
    infer.freeze_axis("an axis that is turned", *(input[d] for d in dims))
    axes = list(input.axes)
    if k % 2:
        axes[dims[0]], axes[dims[1]] = axes[dims[1]], axes[dims[0]]
    return TensorType(axes)


@rule(torch.tril, "tril", torch.triu, "triu")
def triangle(infer: Inference, input: TensorType, diagonal: int = 0) -> TensorType:  # noqa: ARG001
    """What stays depends on the indices along the last two axes."""
    infer.freeze_axis("an axis of a triangle", *input.axes[-2:])
    return TensorType(input.axes)


@rule(F.one_hot)
def one_hot(infer: Inference, input: TensorType, num_classes: int = -1) -> TensorType:  # noqa: ARG001
    """A new last axis has a 1 at an index."""
    return TensorType([*input.axes, ax.fixed(infer.value.shape[-1])])
