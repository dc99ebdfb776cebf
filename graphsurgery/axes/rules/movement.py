"""Operators that move whole axes without computing: reshape, permute, concat, expand, pad, roll."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis, Clash
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.rules.contraction import in_proportion, set_argument
from graphsurgery.axes.types import Resize, TensorType


def write_sizes(
    infer: Inference,
    axes: Sequence[Axis],
    get: Callable[[fx.Node], Any],
    put: Callable[[fx.Node, list[Any]], None],
    arguments: Iterable[int | str],
    *,
    may_infer: bool = False,
) -> None:
    """On a rebuild, the sizes in a call become the new sizes of these axes.

    A size that is computed stays computed where it comes out right, so that other batches and resolutions keep
    working; where it does not (`width // heads`, when heads were cut), the types have the last word. -1 stays.

    Args:
        infer: at the node that is called.
        axes: what the sizes are the sizes of.
        get, put: where the sizes stand in the call.
        arguments: the same by position and name.
        may_infer: whether the operator takes a -1, which serves where a wrong size may be a product with the batch.
    """

    def resize(node: fx.Node, new: Resize) -> None:
        wanted = [new.size(axis) for axis in axes]
        written = _elements(node, get(node), wanted)
        inferred = not may_infer or any(_number(old) == -1 for old in written)
        sizes = []
        for old, size, axis in zip(written, wanted, axes, strict=True):
            if _number(old) in (-1, size):
                sizes.append(old)
            elif not isinstance(old, fx.Node) or not _may_hold_the_batch(axis):
                sizes.append(size)
            else:
                sizes.append(in_proportion(node, old, size) if inferred else -1)
                inferred = True
        if sizes != list(written) or isinstance(get(node), fx.Node):
            put(node, sizes)

    infer.on_rebuild(resize, arguments)


def _may_hold_the_batch(axis: Axis) -> bool:
    """Whether an axis may be a product with the batch: by a fixed factor, or by as many repetitions of a sum."""
    terms = ax.resolve(axis)
    return any(dim.fixed for dim in ax.dims_of(axis)) or len(set(terms)) < len(terms)


def _number(size: Any) -> Any:
    return size.meta["value"] if isinstance(size, fx.Node) else size


def _elements(node: fx.Node, written: Any, wanted: list[int]) -> Sequence[Any]:
    """The sizes one by one, also of a call whose sizes are one computed value (`x.view(y.shape)`)."""
    if not isinstance(written, fx.Node):
        return written
    value = written.meta["value"]
    if not isinstance(value, tuple) or len(value) != len(wanted):
        return wanted
    elements = []
    for index, size in enumerate(value):
        with node.graph.inserting_before(node):
            elements.append(node.graph.call_function(operator.getitem, (written, index)))
        elements[-1].meta["value"] = size
    return elements


def _varargs(node: fx.Node) -> Any:
    """The sizes of `x.view(2, 3)`, `x.view((2, 3))` or `x.view(y.shape)`."""
    sizes: Any = node.args[1:] or node.kwargs.get("shape") or node.kwargs.get("size")
    if isinstance(sizes, tuple) and len(sizes) == 1:
        first = sizes[0]
        if isinstance(first, (list, tuple)) or (isinstance(first, fx.Node) and isinstance(first.meta["value"], tuple)):
            return first
    return sizes


def _after_first(infer: Inference) -> Iterable[int | str]:
    """All arguments but the tensor."""
    return (*range(1, len(infer.node.args)), *infer.node.kwargs)


def _put_varargs(node: fx.Node, sizes: list[Any]) -> None:
    nested = len(node.args) == 1 or isinstance(node.args[1], (list, tuple)) or node.op == "call_function"
    node.args = (node.args[0], tuple(sizes)) if nested else (node.args[0], *sizes)
    node.kwargs = {}


RESHAPES = frozenset(
    {torch.reshape, "reshape", "view", torch.flatten, "flatten", torch.unflatten, "unflatten", "view_as", "reshape_as"}
)


@rule(torch.reshape, "reshape", "view")
def reshape(infer: Inference, input: TensorType, *shape: Any, **options: Any) -> TensorType:
    """Matches runs of input axes with runs of output axes of equal size; each run is a product, refined to fit."""
    if any(isinstance(size, torch.dtype) for size in (*shape, *options.values())):
        raise Clash("its memory is read as another type")
    result = reshaped(infer, input, infer.value.shape)
    write_sizes(infer, result.axes, _varargs, _put_varargs, _after_first(infer), may_infer=True)
    return result


@rule("view_as", "reshape_as")
def reshape_as(infer: Inference, input: TensorType, other: TensorType) -> TensorType:
    """Laid out as another tensor, whatever its sizes."""
    result = reshaped(infer, input, other.shape)
    for own, axis in zip(result.axes, other.axes, strict=True):
        infer.unify(own, axis)
    return TensorType(other.axes)


def reshaped(infer: Inference, input: TensorType, shape: Sequence[int]) -> TensorType:
    """The type of `input` laid out as `shape`."""
    result: list[Axis] = []
    for axes, sizes in _runs(input.axes, list(shape)):
        if len(axes) == 1 and len(sizes) == 1:
            result.extend(axes)
            continue
        whole = ax.product(axes)
        try:
            result.extend(ax.factor(whole, sizes) if sizes else [])
        except Clash as clash:
            infer.freeze_axis(f"{infer.operator()} to {tuple(sizes)}: {clash}", whole, *axes)
            result.extend(ax.fixed(size) for size in sizes)
    return TensorType(result)


def _runs(axes: Sequence[Axis], shape: Sequence[int]) -> list[tuple[list[Axis], list[int]]]:
    """The shortest runs of input axes and output sizes with equal products; units go along."""
    runs: list[tuple[list[Axis], list[int]]] = []
    i = j = 0
    while i < len(axes) or j < len(shape):
        left, right = [], []
        if i < len(axes):
            left.append(axes[i])
            i += 1
        if j < len(shape):
            right.append(shape[j])
            j += 1
        while prod(map(ax.size_of, left)) != prod(right):
            if prod(map(ax.size_of, left)) < prod(right):
                left.append(axes[i])
                i += 1
            else:
                right.append(shape[j])
                j += 1
        if not left or not right:
            _close(runs, left, right)
        else:
            runs.append((left, right))
    return runs


def _close(runs: list[tuple[list[Axis], list[int]]], left: list[Axis], right: list[int]) -> None:
    """Units that are left over at the end belong to the last run."""
    if not runs:
        runs.append((left, right))
        return
    runs[-1][0].extend(left)
    runs[-1][1].extend(right)


@rule(torch.flatten, "flatten")
def flatten(infer: Inference, input: TensorType, start_dim: int = 0, end_dim: int = -1) -> TensorType:
    """Axes `start_dim` to `end_dim` become their product."""
    start, end = (dim % max(len(input), 1) for dim in (start_dim, end_dim))
    if not len(input):
        return TensorType([ax.UNIT])
    try:
        merged = ax.product(input.axes[start : end + 1])
    except Clash as clash:
        infer.freeze_axis(f"flatten: {clash}", *input.axes[start : end + 1])
        merged = ax.fixed(prod(input.shape[start : end + 1]))
    return TensorType([*input.axes[:start], merged, *input.axes[end + 1 :]])


@rule(nn.Flatten)
def flatten_module(infer: Inference, input: TensorType) -> TensorType:
    """As `flatten`."""
    module = infer.submodule
    assert isinstance(module, nn.Flatten)
    return flatten(infer, input, module.start_dim, module.end_dim)


@rule(nn.Unflatten)
def unflatten_module(infer: Inference, input: TensorType) -> TensorType:
    """As `unflatten`; the sizes are an attribute."""
    module = infer.submodule
    assert isinstance(module, nn.Unflatten)
    if not isinstance(module.dim, int):
        raise Clash("named axes")
    dim = module.dim % len(input)
    parts = reshaped(infer, TensorType([input[dim]]), infer.value.shape[dim : dim + len(module.unflattened_size)]).axes

    def resize(new_module: nn.Module, new: Resize) -> None:
        new_module.unflattened_size = tuple(new.size(axis) for axis in parts)  # type: ignore[assignment]

    infer.on_module(resize)
    return TensorType([*input.axes[:dim], *parts, *input.axes[dim + 1 :]])


@rule(torch.unflatten, "unflatten")
def unflatten(infer: Inference, input: TensorType, dim: int, sizes: Any) -> TensorType:  # noqa: ARG001
    """One axis becomes a product."""
    dim %= len(input)
    shape = infer.value.shape
    parts = reshaped(infer, TensorType([input[dim]]), shape[dim : dim + len(shape) - len(input) + 1]).axes

    def get(node: fx.Node) -> Any:
        return node.args[2] if len(node.args) > 2 else node.kwargs["sizes"]

    write_sizes(infer, parts, get, lambda node, new: set_argument(node, 2, "sizes", tuple(new)), (2, "sizes"))
    return TensorType([*input.axes[:dim], *parts, *input.axes[dim + 1 :]])


@rule(torch.permute, "permute")
def permute(infer: Inference, input: TensorType, *order: Any, dims: Any = None) -> TensorType:  # noqa: ARG001
    """The axes in another order."""
    return input.permuted(_flat(order) if dims is None else dims)


def _flat(numbers: Any) -> Sequence[int]:
    """Numbers given one by one, or as one sequence."""
    return numbers[0] if len(numbers) == 1 and not isinstance(numbers[0], int) else numbers


@rule(torch.movedim, "movedim", torch.moveaxis, "moveaxis")
def movedim(infer: Inference, input: TensorType, source: Any, destination: Any) -> TensorType:  # noqa: ARG001
    """Some axes go to new places; the others keep their order."""
    rank = len(input)
    sources, destinations = ([d % rank for d in ([n] if isinstance(n, int) else n)] for n in (source, destination))
    order: list[int | None] = [None] * rank
    for old, new in zip(sources, destinations, strict=True):
        order[new] = old
    rest = iter(d for d in range(rank) if d not in sources)
    return input.permuted([next(rest) if d is None else d for d in order])


@rule(torch.transpose, "transpose", torch.swapaxes, "swapaxes", torch.swapdims, "swapdims")
def transpose(infer: Inference, input: TensorType, dim0: int, dim1: int) -> TensorType:  # noqa: ARG001
    """Two axes change places."""
    order = list(range(len(input)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return input.permuted(order)


@rule("t", torch.t, "adjoint", torch.adjoint)
def t(infer: Inference, input: TensorType) -> TensorType:  # noqa: ARG001
    """A matrix, or each of a batch, transposed."""
    order = range(len(input))
    return input.permuted([*order[:-2], *order[-2:][::-1]])


_RESULTS = {"values": 0, "indices": 1, "min": 0, "max": 1}


@rule(getattr)
def attribute(infer: Inference, input: Any, name: str) -> TensorType:
    """A tensor seen another way, or one of several results by its name."""
    if isinstance(input, tuple):
        if name not in _RESULTS:
            raise Clash(f"the result {name}")
        result: TensorType = input[_RESULTS[name]]
        return result
    if name == "T":
        return input.permuted(range(len(input))[::-1])
    if name in ("mT", "mH", "H") and len(input) > 1:
        return t(infer, input)
    if name in ("real", "imag", "data"):
        return TensorType(input.axes)
    raise Clash(f"the attribute {name} of a tensor")


@rule(torch.imag)
def imaginary(infer: Inference, input: TensorType) -> TensorType:  # noqa: ARG001
    """A number for each."""
    return TensorType(input.axes)


@rule(torch.view_as_real)
def view_as_real(infer: Inference, input: TensorType) -> TensorType:  # noqa: ARG001
    """The real and imaginary part are a new last axis."""
    return TensorType([*input.axes, ax.fixed(2)])


@rule(torch.view_as_complex)
def view_as_complex(infer: Inference, input: TensorType) -> TensorType:
    """The last axis holds the real and imaginary part."""
    infer.fix(input[-1])
    return TensorType(input.axes[:-1])


@rule(torch.complex, torch.polar)
def complex_numbers(infer: Inference, real: TensorType, imag: TensorType) -> TensorType:
    """Complex numbers from two tensors."""
    from graphsurgery.axes.rules.pointwise import broadcast

    return broadcast(infer, real, imag)


@rule("unsqueeze", torch.unsqueeze)
def unsqueeze(infer: Inference, input: TensorType, dim: int) -> TensorType:  # noqa: ARG001
    """A new single axis."""
    axes = list(input.axes)
    axes.insert(dim % (len(axes) + 1), ax.UNIT)
    return TensorType(axes)


@rule("squeeze", torch.squeeze)
def squeeze(infer: Inference, input: TensorType, dim: Any = None) -> TensorType:
    """Single axes go; on a rebuild the call names them, since other axes may have become single."""
    chosen = range(len(input)) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % len(input) for d in chosen if ax.size_of(input[d]) == 1}
    infer.fix(*(input[d] for d in gone))

    def name_axes(node: fx.Node, new: Resize) -> None:  # noqa: ARG001
        node.args, node.kwargs = (node.args[0], tuple(sorted(gone))), {}

    if any(d % len(input) not in gone and not ax.is_fixed(input[d]) for d in chosen):
        infer.on_rebuild(name_axes)
    return TensorType([a for i, a in enumerate(input.axes) if i not in gone])


@rule(torch.cat, torch.concat, torch.concatenate)
def cat(infer: Inference, tensors: Sequence[TensorType], dim: int = 0) -> TensorType:
    """The direct sum along one axis; the others are unified."""
    first = tensors[0]
    dim %= len(first)
    for other in tensors[1:]:
        for index, (a, b) in enumerate(zip(first.axes, other.axes, strict=True)):
            if index != dim:
                infer.unify(a, b)
    return first.replace(dim, ax.concat(typed[dim] for typed in tensors))


_STACKS = {torch.vstack: 0, torch.row_stack: 0, torch.hstack: 1, torch.column_stack: 1, torch.dstack: 2}


@rule(*_STACKS)
def stacked(infer: Inference, tensors: Sequence[TensorType]) -> TensorType:
    """A concat along the first, second or third axis."""
    dim = _STACKS[infer.node.target]  # type: ignore[index]
    if any(len(typed) < max(2, dim + 1) for typed in tensors):
        raise Clash("tensors that get new axes")
    return cat(infer, tensors, dim)


@rule(torch.atleast_1d, torch.atleast_2d, torch.atleast_3d)
def at_least(infer: Inference, input: Any) -> TensorType:
    """Nothing, for a tensor that has as many axes."""
    if not isinstance(input, TensorType) or len(input) != len(infer.value.shape):
        raise Clash("tensors that get new axes")
    return TensorType(input.axes)


@rule(torch.ravel, "ravel")
def ravel(infer: Inference, input: TensorType) -> TensorType:
    """All axes become their product."""
    return flatten(infer, input)


@rule(torch.stack)
def stack(infer: Inference, tensors: Sequence[TensorType], dim: int = 0) -> TensorType:
    """A new fixed axis; the others are unified."""
    for other in tensors[1:]:
        for a, b in zip(tensors[0].axes, other.axes, strict=True):
            infer.unify(a, b)
    axes = list(tensors[0].axes)
    axes.insert(dim % (len(axes) + 1), ax.fixed(len(tensors)))
    return TensorType(axes)


@rule("expand", torch.broadcast_to, "broadcast_to")
def expand(infer: Inference, input: TensorType, *sizes: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Single axes stretch: what is stretched is the same at each index, so it fits any type of its size."""
    shape = infer.value.shape
    axes = [ax.UNIT] * (len(shape) - len(input)) + list(input.axes)
    stretched = list(axes)
    for index, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        if ax.size_of(axis) == 1 and size != 1:
            infer.fix(axis)
            stretched[index] = ax.free(size)
    write_sizes(infer, stretched, _varargs, _put_varargs, _after_first(infer))
    return TensorType(stretched)


@rule("expand_as")
def expand_as(infer: Inference, input: TensorType, other: TensorType) -> TensorType:
    """Single axes stretch to those of another tensor."""
    from graphsurgery.axes.rules.pointwise import broadcast

    broadcast(infer, input, other)
    return TensorType(other.axes)


@rule("repeat", "tile", torch.tile)
def repeat(infer: Inference, input: TensorType, *sizes: Any) -> TensorType:
    """Copies side by side: `n·axis` with the number of copies fixed; copies of a single index stretch it."""
    given = _flat(sizes)
    counts = [1] * (len(input) - len(given)) + list(given)
    axes = [ax.UNIT] * (len(counts) - len(input)) + list(input.axes)
    result, copies = [], []
    for count, axis in zip(counts, axes, strict=True):
        stretched = ax.size_of(axis) == 1 and count > 1
        if stretched:
            infer.fix(axis)
        copies.append(ax.free(count) if stretched else ax.fixed(count))
        result.append(copies[-1] if stretched else ax.product([copies[-1], axis]))
    write_sizes(infer, copies[len(copies) - len(given) :], _varargs, _put_varargs, _after_first(infer))
    return TensorType(result)


@rule(torch.repeat_interleave, "repeat_interleave")
def repeat_interleave(
    infer: Inference,  # noqa: ARG001
    input: TensorType,
    repeats: Any,
    dim: int | None = None,
    **options: Any,  # noqa: ARG001
) -> TensorType:
    """Copies of every index next to it: `axis·n` with the number of copies fixed."""
    if not isinstance(repeats, int):
        raise Clash("numbers of copies that differ")
    if dim is None:
        raise Clash("no axis is named")
    return input.replace(dim, ax.product([input[dim], ax.fixed(repeats)]))


@rule(F.pad)
def pad(
    infer: Inference,
    input: TensorType,
    pad: Sequence[Any],
    mode: str = "constant",
    value: Any = None,  # noqa: ARG001
) -> TensorType:
    """The padded axes grow by fixed indices at both ends."""
    axes = list(input.axes)
    for k in range(len(pad) // 2):
        before, after = pad[2 * k], pad[2 * k + 1]
        index = len(axes) - 1 - k
        if isinstance(before, int) and before == 0 and isinstance(after, int) and after == 0:
            continue
        if ax.is_fixed(axes[index]) or not (isinstance(before, int) and isinstance(after, int)):
            infer.freeze_axis("an axis that is padded by a computed size", axes[index])
            axes[index] = ax.fixed(infer.value.shape[index])
        elif before < 0 or after < 0 or mode != "constant":
            infer.freeze_axis("an axis that is cropped, or padded with its own indices", axes[index])
            axes[index] = ax.fixed(infer.value.shape[index])
        else:
            ends = [ax.fixed(n) for n in (before, after)]
            parts = [ends[0]] * (before > 0) + [axes[index]] + [ends[1]] * (after > 0)
            axes[index] = ax.concat(parts)
    return TensorType(axes)


_PADS = pad


@rule(torch.constant_pad_nd)
def padded(infer: Inference, input: TensorType, pad: Sequence[Any], value: Any = 0) -> TensorType:  # noqa: ARG001
    """The form of `torch`."""
    return _PADS(infer, input, pad)
