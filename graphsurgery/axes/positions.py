"""Channels that are positions: what reads them gives each a meaning of its own, so that none can go unasked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from graphsurgery.axes.algebra import Axis, Dim, resolve
from graphsurgery.axes.types import Typing
from graphsurgery.network.paths import named_tensors

_FEWEST = 3
"""Any two numbers are in order."""


def positions(types: Typing) -> Mapping[Dim, str]:
    """The spaces whose channels have a meaning, with what gives it to them.

    - A softmax makes shares of the channels, and a vector that no training changes, or whose numbers rise or fall,
      reads them: the distribution of a box's distance over 16 bins, read by 0 to 15.
    - A vector in even steps reads them, softmax or not.
    - All that reads them are constants that no training changes, while what writes them is trained.

    A network that is frozen as a whole says nothing about its channels, and neither do weights without values.
    """
    tensors = named_tensors(types.module)
    softmaxed = {dim for mixing in types.mixings if mixing.kind == "softmax" and (dim := _only(mixing.axis))}
    found: dict[Dim, str] = {}
    trained: set[Dim] = set()
    for typed in types.parameters.values():
        tensor = tensors[typed.name]
        for index, axis in enumerate(typed.axes):
            dim = _only(axis)
            if dim is None:
                continue
            reads = index in typed.reads
            if not reads and _is_trained(tensor):
                trained.add(dim)
            if tensor.numel() != dim.size or not (reads or dim in softmaxed):
                continue
            if dim in softmaxed and (_is_ordered(tensor) or (reads and not _is_trained(tensor))):
                found.setdefault(dim, f"a softmax makes shares of them, which {_numbers(typed.name, tensor)}")
            elif reads and _is_even(tensor):
                found.setdefault(dim, f"{_numbers(typed.name, tensor)}, in even steps")
    for dim, weights in _readers(types).items():
        constant = all(name is not None and not _is_trained(tensors[name]) for name in weights)
        if constant and dim in trained:
            found.setdefault(dim, f"only {weights[0]} reads them, which no training changes")
    return found


def _only(axis: Axis) -> Dim | None:
    """The free dim that an axis is, if it is nothing else."""
    terms = resolve(axis)
    return terms[0][0] if len(terms) == 1 and len(terms[0]) == 1 and not terms[0][0].fixed else None


def _readers(types: Typing) -> dict[Dim, list[str | None]]:
    """The names of the weights that read each dim; None for what reads it without one."""
    found: dict[Dim, list[str | None]] = {}
    for access in types.readers:
        for term in resolve(access.axis):
            for dim in term:
                found.setdefault(dim, []).append(None if access.weight is None else access.weight[0])
    return found


def _is_trained(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def _steps(tensor: Tensor) -> Tensor:
    """The differences between neighbours; none of too few numbers, and of numbers that are not there."""
    if tensor.is_meta or tensor.numel() < _FEWEST:
        return torch.empty(0, dtype=torch.float64)
    return tensor.detach().flatten().cpu().double().diff()


def _is_ordered(tensor: Tensor) -> bool:
    steps = _steps(tensor)
    return bool(len(steps)) and bool((steps > 0).all() or (steps < 0).all())


def _is_even(tensor: Tensor) -> bool:
    steps = _steps(tensor)
    even = len(steps) > 0 and bool(torch.allclose(steps, steps[:1].expand_as(steps), rtol=1e-4, atol=0))
    return even and float(steps[0]) != 0


def _numbers(name: str, tensor: Tensor) -> str:
    """What a vector reads channels as."""
    if tensor.is_meta:
        return f"{name} reads"
    numbers = tensor.detach().flatten()
    return f"{name} reads as {float(numbers[0]):g} to {float(numbers[-1]):g}"
