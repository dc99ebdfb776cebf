"""Tensors after an edit: taken at the old indices of each axis, from memory or, row by row, from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from graphsurgery.axes.algebra import Axis
from graphsurgery.axes.maps import Edit, Lifted
from graphsurgery.axes.types import ParameterType
from graphsurgery.network.layers import along

_BLOCK = 2**18
"""Numbers of a tensor that are gathered at a time: what lies between two steps stays in the cache and in few pages."""

_READ = 2**22
"""Numbers of a stored tensor that are read at a time."""


class Stored(Protocol):
    """A tensor that lies in a file, and is read when its rows are asked for.

    Attributes:
        shape: of the whole tensor.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Its rows from `start` to `stop`, as they are stored, with memory of their own; by default all of it."""


def rows_at_a_time(shape: Sequence[int]) -> int:
    """How many rows of a stored tensor are read at a time: some megabytes of them."""
    return max(1, _READ // max(1, math.prod(shape[1:])))


def gather(edit: Edit, typed: ParameterType, tensor: Tensor | Stored, scaled: Mapping[int, Axis]) -> Tensor:
    """A parameter or buffer after an edit: taken at the old indices, and scaled where it reads.

    Args:
        edit: the edit.
        typed: the axes of the tensor.
        tensor: its old value; of a stored one no more is in memory at a time than some rows, and the result.
        scaled: what is summed over, by the number of each axis that gets the shares; see `ParameterType.reads`.
    """
    axes = range(len(typed.axes))
    changes = [(index, lifted) for index in axes if (lifted := edit.lift_in(typed.axes, index)) is not None]
    # What depends on another axis comes last, when that axis has its new indices.
    changes.sort(key=lambda change: change[1].beside is not None)
    new = _selected(tensor, changes) if isinstance(tensor, Tensor) else _read(tensor, changes)
    for index, _ in changes:
        share = edit.share(scaled[index]) if index in scaled else None
        if share is not None:
            new *= along(new, index, share.to(new))
    if typed.counts and any(index == 1 for index, _ in changes):
        new = _in_own_group(new)
    return new.clone() if new is tensor else new


def _in_own_group(members: Tensor) -> Tensor:
    """Members of blocks that count in their own group alone, and not in copies of it, nor in those it is a copy of."""
    channels, groups = members.shape
    return members * torch.eye(groups).repeat_interleave(channels // groups, 0).to(members)


def _selected(tensor: Tensor, changes: Sequence[tuple[int, Lifted]]) -> Tensor:
    """A tensor at the new indices of some axes."""
    in_blocks = len(changes) > 1 and tensor.numel() > _BLOCK and not tensor.is_meta
    first = changes[0] if in_blocks else None
    if first is None or first[0] != 0 or any(lifted.beside is not None for _, lifted in changes):
        for index, lifted in changes:
            tensor = _select(tensor, index, lifted)
        return tensor
    rows = first[1].source.to(tensor.device).split(max(1, _BLOCK * tensor.shape[0] // tensor.numel()))
    sizes = {index: len(lifted.source) for index, lifted in changes}
    new = tensor.new_empty([sizes.get(axis, size) for axis, size in enumerate(tensor.shape)])
    start = 0
    for block in rows:
        *others, (last, lifted) = changes[1:]
        source, stop = _selected(tensor.index_select(0, block), others), start + block.shape[0]
        torch.index_select(source, last, lifted.source.to(tensor.device), out=new[start:stop])
        start = stop
    return new


def _read(tensor: Stored, changes: Sequence[tuple[int, Lifted]]) -> Tensor:
    """A stored tensor at the new indices of some axes; each of its rows is read once, in order."""
    if not tensor.shape or any(lifted.beside is not None for _, lifted in changes):
        return _selected(tensor.read(), changes)
    by_row = next((lifted.source for index, lifted in changes if index == 0), torch.arange(tensor.shape[0]))
    rest = [change for change in changes if change[0] != 0]
    new = _selected(tensor.read(0, 0), rest)
    step = rows_at_a_time(tensor.shape)
    for start in range(0, tensor.shape[0], step):
        places = ((by_row >= start) & (by_row < start + step)).nonzero().flatten()
        block = tensor.read(start, min(start + step, tensor.shape[0]))
        block = _selected(block.index_select(0, by_row[places] - start), rest)
        if not start:
            new = block.new_empty((len(by_row), *block.shape[1:]))
        new.index_copy_(0, places, block)
    return new


def _select(tensor: Tensor, index: int, lifted: Lifted) -> Tensor:
    """One axis of a tensor at its new indices."""
    source = lifted.source if tensor.is_cpu else lifted.source.to(tensor.device)
    if lifted.beside is None:
        return tensor.index_select(index, source)
    shape = [1] * tensor.dim()
    shape[lifted.beside], shape[index] = source.shape
    return tensor.take_along_dim((source if lifted.beside < index else source.t()).reshape(shape), index)
