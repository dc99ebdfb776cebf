"""Tensors that are drawn: every index is drawn by itself, from one distribution or from that of its place."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.rules.creation import of_sizes
from graphsurgery.axes.rules.pointwise import broadcast
from graphsurgery.axes.rules.sequences import softmax
from graphsurgery.axes.types import TensorType


@rule(torch.rand_like, torch.randn_like, torch.randint_like, torch.bernoulli, "bernoulli", torch.poisson)
def drawn_alike(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """A number for every index of another tensor, by its value or not."""
    return TensorType(input.axes)


@rule("normal_", "uniform_", "bernoulli_", "exponential_", "log_normal_", "geometric_", "cauchy_", "random_")
def drawn_in_place(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:
    """Numbers in the memory of a tensor; a tensor of probabilities is laid over it."""
    for other in (*others, *options.values()):
        if isinstance(other, TensorType):
            broadcast(infer, input, other)
    return TensorType(input.axes)


@rule(torch.rand, torch.randn)
def drawn(infer: Inference, *size: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Sizes are given one by one, or as one sequence."""
    return of_sizes(infer, 0, spread=True)


@rule(torch.randint)
def drawn_integers(infer: Inference, *arguments: Any, **options: Any) -> TensorType:
    """One bound, or two, and then the sizes as a sequence."""
    return of_sizes(infer, len(arguments) - ("size" not in options), spread=False)


@rule(torch.normal)
def drawn_normally(infer: Inference, mean: Any, std: Any = 1.0, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Means and deviations as tensors, or as numbers and then sizes as a sequence."""
    given = [typed for typed in (mean, std) if isinstance(typed, TensorType)]
    return broadcast(infer, *given) if given else of_sizes(infer, 2, spread=False)


@rule(torch.multinomial, "multinomial")
def drawn_places(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Places on the last axis, which they fix."""
    infer.freeze_axis("an axis from which places are drawn", input[-1])
    return input.replace(-1, ax.fixed(infer.value.shape[-1]))


@rule(F.gumbel_softmax)
def gumbel_softmax(
    infer: Inference,
    logits: TensorType,
    tau: Any = 1,  # noqa: ARG001
    hard: Any = False,  # noqa: ARG001
    eps: float = 1e-10,  # noqa: ARG001
    dim: int = -1,
) -> TensorType:
    """Noise, and a softmax that mixes one axis."""
    return softmax(infer, logits, dim)
