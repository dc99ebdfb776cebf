"""What the inputs of a file are traced with: which of their axes is the batch, and how long the others are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor

from graphsurgery.errors import SpecError, UnsupportedError
from graphsurgery.onnx.files.axes import Axis, Given, axes_of, example, given_sizes
from graphsurgery.onnx.importing.operators import UnlikeTorchError, torch_dtype

_BATCH = 2


@dataclass(frozen=True)
class FileInputs:
    """The inputs of a file, as they are traced.

    Attributes:
        examples: meta tensors by name, in order.
        again: the same at another batch.
        batched: which of them have the batch as their first axis.
        batch: the batch that the file fixes, and that is freed; None where it is free, or no first axis is one.
    """

    examples: Mapping[str, Tensor]
    again: Sequence[Tensor]
    batched: Sequence[bool]
    batch: int | None


def plan_inputs(path: Path, inputs: Sequence[onnx.ValueInfoProto], given: Given | None) -> FileInputs:
    """What the inputs of a file are traced with.

    The first axis is the batch where all inputs have a free one, or one of the same size, which is freed. Inputs
    without it, such as a mask or a number, stand beside those that have it. Where the batch is another axis of some
    inputs, such as of states `[layers, batch, hidden]`, or the first axes are of several sizes, no axis is the batch:
    all sizes are those of the file, or those that are given.

    Raises:
        SpecError: the file leaves an axis open, and no size is given for it, or one that does not fit.
        UnsupportedError: an input is no tensor that torch computes with.
    """
    axes = {value.name: axes_of(value, path) for value in inputs}
    sizes = given_sizes(path, axes, given)
    firsts = {name: own[0] for name, own in axes.items() if own}
    if not firsts:
        raise UnsupportedError(f"{path}: input {next(iter(axes), '')} is a single number, expected [batch, ...]")
    fixed = {axis.size for axis in firsts.values()}
    lead = next((axis for axis in firsts.values() if axis.size is None), None)
    batch = next(iter(fixed)) if lead is None and len(fixed) == 1 else None
    having = set(firsts) if batch is not None else _with_free_batch(axes, sizes)
    taken = {axis.size for own in axes.values() for axis in own} | {batch}
    count = next(n for n in range(_BATCH, 100) if n not in ({batch} if having else taken))
    # A batch that is not the first axis everywhere has the size that is given, or one that is like no other.
    own_size = {} if lead is None or having else _with_same_size(axes, lead, sizes, sizes.get(lead.name, count))
    dtypes = {value.name: _dtype_of(value, path) for value in inputs}

    def traced(first: int, known: Mapping[str, int]) -> dict[str, Tensor]:
        shapes = {
            name: ([first] if name in having else []) + _sizes(path, name, own, known, skipped=name in having)
            for name, own in axes.items()
        }
        return {name: torch.empty(shape, dtype=dtypes[name], device="meta") for name, shape in shapes.items()}

    examples = traced(count, {**sizes, **own_size})
    others = {} if own_size.keys() & _held(axes, sizes) else {name: size + 1 for name, size in own_size.items()}
    again = traced(batch or count + 1, {**sizes, **others})
    return FileInputs(examples, list(again.values()), [name in having for name in axes], batch)


def _with_same_size(
    axes: Mapping[str, Sequence[Axis]], lead: Axis, sizes: Mapping[str, int], size: int
) -> dict[str, int]:
    """A free axis with its size, and those that are it by another name: where a file names none, those of its size."""
    found = {lead.name: size}
    if lead.unnamed:
        free = (axis.name for own in axes.values() for axis in own if axis.size is None and axis.unnamed)
        found |= {name: size for name in free if sizes.get(name) == size}
    return found


def _with_free_batch(axes: Mapping[str, Sequence[Axis]], sizes: Mapping[str, int]) -> set[str]:
    """The inputs whose first axis is a free batch; none where it is another axis of some, or has several sizes."""
    free = {name: own for name, own in axes.items() if own and own[0].size is None}
    firsts = {own[0].name for own in free.values()}
    inner = {axis.name for own in free.values() for axis in own[1:]}
    others = {axis.name for name, own in axes.items() if name not in free for axis in own if axis.size is None}
    given = {sizes[name] for name in firsts if name in sizes}
    none = firsts & inner or others - inner or len(given) > 1 or firsts & _held(axes, sizes)
    return set() if none else set(free)


def _held(axes: Mapping[str, Sequence[Axis]], sizes: Mapping[str, int]) -> set[str]:
    """The first axes whose given size a state of a fixed size has, such as `[layers, batch, hidden]`: no other fits."""
    fixed = [own for own in axes.values() if len(own) > 2 and all(axis.size is not None for axis in own)]
    held = {axis.size for own in fixed for axis in own[1:-1]}
    return {own[0].name for own in axes.values() if own and own[0].size is None and sizes.get(own[0].name) in held}


def _sizes(path: Path, name: str, own: Sequence[Axis], known: Mapping[str, int], *, skipped: bool) -> list[int]:
    """The sizes of the axes of an input; without the first where that is skipped."""
    axes = own[1:] if skipped else own
    found = [known.get(axis.name) if axis.size is None else axis.size for axis in axes]
    if None in found:
        words = "x".join(axis.text for axis in axes)
        raise SpecError(f"{path}: input {name} is {words} in the file; give --input, such as {example(name, own)}")
    return [size for size in found if size is not None]


def _dtype_of(value: onnx.ValueInfoProto, path: Path) -> torch.dtype:
    """The dtype of an input."""
    try:
        return torch_dtype(value.type.tensor_type.elem_type)
    except UnlikeTorchError as cause:
        raise UnsupportedError(f"{path}: input {value.name} is {cause}, which torch does not compute with") from cause
