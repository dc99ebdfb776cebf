"""Tensors that are made: one of a single value, or of none yet, is alike at every index, so it fits any axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.rules.movement import write_sizes
from graphsurgery.axes.types import TensorType
from graphsurgery.network.layers import shift_mask


@rule(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like)
def like(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Sizes follow those of another tensor."""
    return TensorType(input.axes)


@rule(torch.tensor, torch.as_tensor, torch.scalar_tensor)
def written(infer: Inference, data: Any, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Numbers in a tensor; of a tensor, what it is."""
    return (
        TensorType(data.axes) if isinstance(data, TensorType) else TensorType([ax.fixed(n) for n in infer.value.shape])
    )


@rule(torch.zeros, torch.ones, torch.empty)
def constant(infer: Inference, *size: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Sizes are given one by one, or as one sequence."""
    return of_sizes(infer, 0, spread=True)


@rule(torch.full)
def filled(infer: Inference, size: Any, fill_value: float, **options: Any) -> TensorType:  # noqa: ARG001
    """Sizes are a sequence."""
    return of_sizes(infer, 0, spread=False)


@rule("new_zeros", "new_ones", "new_empty")
def new_constant(infer: Inference, input: TensorType, *size: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """As `constant`, with the dtype of another tensor."""
    return of_sizes(infer, 1, spread=True)


@rule("new_full")
def new_filled(infer: Inference, input: TensorType, size: Any, fill_value: float, **options: Any) -> TensorType:  # noqa: ARG001
    """As `filled`, with the dtype of another tensor."""
    return of_sizes(infer, 1, spread=False)


@rule("new_tensor")
def new_tensor(infer: Inference, input: TensorType, data: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Numbers in a tensor of their own; the other one only lends its dtype."""
    return TensorType([ax.fixed(n) for n in infer.value.shape])


@rule(shift_mask)
def mask_of_positions(infer: Inference, like: TensorType, *sizes: Any) -> Any:  # noqa: ARG001
    """Windows and tokens are positions; the other tensor only lends its dtype."""
    return infer.untyped()


def of_sizes(infer: Inference, position: int, *, spread: bool) -> TensorType:
    """A free axis for every size, which stand from argument number `position` on."""
    axes = [ax.free(n) if n > 1 else ax.fixed(n) for n in infer.value.shape]
    get, put = _sizes_at(position, spread)
    last = len(infer.node.args) if spread else position + 1
    write_sizes(infer, axes, get, put, (*range(position, last), "size"))
    return TensorType(axes)


def _sizes_at(position: int, spread: bool) -> tuple[Callable[[fx.Node], Any], Callable[[fx.Node, list[Any]], None]]:
    def is_one(node: fx.Node) -> bool:
        first = node.args[position]
        value = first.meta["value"] if isinstance(first, fx.Node) else first
        return isinstance(value, (list, tuple))

    def get(node: fx.Node) -> Any:
        if len(node.args) <= position:
            return node.kwargs["size"]
        return node.args[position] if not spread or is_one(node) else node.args[position:]

    def put(node: fx.Node, sizes: list[Any]) -> None:
        if len(node.args) <= position:
            node.update_kwarg("size", tuple(sizes))
        elif not spread or is_one(node):
            node.update_arg(position, tuple(sizes))
        else:
            node.args = (*node.args[:position], *sizes)

    return get, put
