"""Operators that reduce axes to one value; the axes are mixed, and go or become single."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.rules.pointwise import broadcast
from graphsurgery.axes.types import TensorType
from graphsurgery.network.operators import Trait, operator_named, spellings


@rule(*spellings(Trait.REDUCES))
def reduce(
    infer: Inference,
    input: TensorType,
    dim: Any = None,
    *others: Any,  # noqa: ARG001
    **options: Any,  # noqa: ARG001
) -> Any:
    """Mixes the named axes, or all."""
    known = operator_named(infer.node.target)
    assert known is not None
    assert known.mixes is not None
    return reduced(infer, input, dim, known.mixes)


@rule(torch.max, "max", torch.min, "min")
def extreme(infer: Inference, input: TensorType, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:  # noqa: ARG001
    """Of all elements, along an axis (with the indices), or of two tensors."""
    other = options.get("other", dim)
    if isinstance(other, TensorType):
        return broadcast(infer, input, other)
    result = reduced(infer, input, dim, "maximum")
    if isinstance(result, tuple) and not all(takes_values(user) for user in infer.node.users):
        infer.freeze_axis("an axis in which an index is found", input[dim])
    return result


def takes_values(user: fx.Node) -> bool:
    """Whether a node asks for the extreme itself, not for where it is."""
    if user.target is operator.getitem:
        return bool(user.args[1] == 0)
    return user.target is getattr and bool(user.args[1] == "values")


@rule(torch.argmax, "argmax", torch.argmin, "argmin")
def index_of_extreme(infer: Inference, input: TensorType, dim: Any = None, *others: Any, **options: Any) -> Any:  # noqa: ARG001
    """What is found is an index, so the axis is fixed."""
    infer.freeze_axis("an axis in which an index is found", *(input.axes if dim is None else [input[dim]]))
    return reduced(infer, input, dim, "maximum")


@rule(torch.norm, "norm", torch.linalg.norm, torch.linalg.vector_norm)
def norm(infer: Inference, input: TensorType, p: Any = None, dim: Any = None, *others: Any, **options: Any) -> Any:  # noqa: ARG001
    """A norm of the named axes, or of all."""
    return reduced(infer, input, dim, "norm")


@rule(F.cosine_similarity)
def cosine_similarity(
    infer: Inference,
    x1: TensorType,
    x2: TensorType,
    dim: int = 1,
    eps: float = 1e-8,  # noqa: ARG001
) -> Any:
    """A product over one axis, divided by the two norms."""
    return reduced(infer, broadcast(infer, x1, x2), dim, "cosine_similarity")


def reduced(infer: Inference, input: TensorType, dim: int | Sequence[int] | None, kind: str) -> Any:
    """The type of every tensor that the node gives."""
    rank = len(input)
    dims = [dim] if isinstance(dim, int) and not isinstance(dim, bool) else dim
    gone = {d % rank for d in dims} if isinstance(dims, (list, tuple)) and dims else set(range(rank))
    for index in sorted(gone):
        infer.mixes(input[index], kind, index)
    several = isinstance(infer.value, tuple)
    keepdim = len((infer.value[0] if several else infer.value).shape) == rank
    axes = [ax.UNIT if i in gone else axis for i, axis in enumerate(input.axes)]
    output = TensorType(axes if keepdim else [axis for i, axis in enumerate(axes) if i not in gone])
    return tuple(output for _ in infer.value) if several else output
