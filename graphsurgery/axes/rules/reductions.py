"""Operators that reduce axes to one value; the axes are mixed, and go or become single."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.kept import computes_at_size
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
    result = reduced(infer, input, dim, known.mixes)
    places = isinstance(result, tuple) and known.mixes == "median"
    if places and not all(takes_values(user) for user in infer.node.users):
        infer.freeze_axis("an axis in which an index is found", input[-1 if dim is None else dim])
    return result


@rule(torch.kthvalue, "kthvalue")
def kth_value(infer: Inference, input: TensorType, k: int, dim: int = -1, *others: Any, **options: Any) -> Any:  # noqa: ARG001
    """The k-th smallest along an axis, and where it is; of more or fewer numbers it would be another one."""
    if all(takes_values(user) for user in infer.node.users):
        computes_at_size(infer, "an axis of which the k-th number is taken", input, [dim])
    else:
        infer.freeze_axis("an axis in which an index is found", input[dim])
    return _without(infer, input, dim)


@rule(torch.mode, "mode")
def most_frequent(infer: Inference, input: TensorType, dim: int = -1, *others: Any, **options: Any) -> Any:  # noqa: ARG001
    """The most frequent number along an axis, and where it is."""
    return kth_value(infer, input, 1, dim)


def _without(infer: Inference, input: TensorType, dim: int) -> Any:
    """The type of every tensor that the node gives, where an axis goes or becomes single."""
    several = isinstance(infer.value, tuple)
    kept = len((infer.value[0] if several else infer.value).shape) == len(input)
    axes = [*input.axes[: dim % len(input)], *([ax.UNIT] * kept), *input.axes[dim % len(input) + 1 :]]
    return tuple(TensorType(axes) for _ in infer.value) if several else TensorType(axes)


@rule(torch.quantile, "quantile", torch.nanquantile, "nanquantile")
def quantile(
    infer: Inference,
    input: TensorType,
    q: Any,
    dim: int | None = None,
    keepdim: bool = False,
    **options: Any,  # noqa: ARG001
) -> TensorType:
    """A number between those of an axis, or of all; several are a new first axis."""
    several = [ax.fixed(infer.value.shape[0])] if isinstance(q, TensorType) and len(q) else []
    gone = range(len(input)) if dim is None else [dim % len(input)]
    for index in gone:
        infer.mixes(input[index], "quantile", index)
    axes = [ax.UNIT if i in gone else axis for i, axis in enumerate(input.axes) if keepdim or i not in gone]
    return TensorType([*several, *axes])


@rule(torch.nuclear_norm, torch.frobenius_norm, torch.linalg.matrix_norm, torch.linalg.cond)
def matrix_norm(infer: Inference, input: TensorType, *others: Any, dim: Any = None, **options: Any) -> TensorType:  # noqa: ARG001
    """A norm of the last two axes, or of the two that are named, taken as a matrix."""
    pairs = (tuple(other) for other in others if isinstance(other, (list, tuple)) and len(other) == 2)
    named = dim if dim is not None else next(pairs, (-2, -1))
    return cast("TensorType", reduced(infer, input, tuple(named), "matrix norm"))


@rule(torch.dist, "dist")
def distance(infer: Inference, input: TensorType, other: TensorType, p: float = 2.0) -> TensorType:  # noqa: ARG001
    """A norm of all differences."""
    return summed_up(infer, broadcast(infer, input, other), "distance")


def summed_up(infer: Inference, whole: TensorType, kind: str) -> TensorType:
    """One number of all those of tensors that are laid over each other."""
    for index, axis in enumerate(whole.axes):
        infer.mixes(axis, kind, index - len(whole))
    return TensorType([])


@rule(F.pairwise_distance, nn.PairwiseDistance)
def pairwise_distance(
    infer: Inference,
    x1: TensorType,
    x2: TensorType,
    p: float = 2.0,  # noqa: ARG001
    eps: float = 1e-6,  # noqa: ARG001
    keepdim: bool = False,  # noqa: ARG001
) -> TensorType:
    """A norm of differences along the last axis."""
    whole = broadcast(infer, x1, x2)
    infer.mixes(whole[-1], "distance", -1)
    kept = len(infer.value.shape) == len(whole)
    return TensorType([*whole.axes[:-1], *([ax.UNIT] * kept)])


@rule(torch.cdist)
def distances(infer: Inference, x1: TensorType, x2: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """`[..., n, k]` and `[..., m, k]`: the distance of every row of one from every row of the other."""
    infer.unify(x1[-1], x2[-1])
    infer.mixes(x1[-1], "distance", -1)
    lead = broadcast(infer, TensorType(x1.axes[:-2]), TensorType(x2.axes[:-2]))
    infer.multiplies(*lead.axes, x1[-2], x2[-2], x1[-1])
    return TensorType([*lead.axes, x1[-2], x2[-2]])


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


@rule(F.cosine_similarity, nn.CosineSimilarity)
def cosine_similarity(
    infer: Inference,
    x1: TensorType,
    x2: TensorType,
    dim: int | None = None,
    eps: float = 1e-8,  # noqa: ARG001
) -> Any:
    """A product over one axis, divided by the two norms."""
    layer = infer.node.op == "call_module"
    dim = cast("int", infer.submodule.dim) if layer else 1 if dim is None else dim
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
