"""Gradients of a module on some inputs, in numbers that tell two of them apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphsurgery.network.outputs.naming import dropout_by_index, named_outputs
from graphsurgery.network.outputs.randomness import seeded
from graphsurgery.network.values.dtypes import holds_numbers

MOST_APART = 1e-2
"""What the numbers of two gradients may differ by, as a share of the norm."""


def _weighed(output: Tensor, generator: torch.Generator) -> Tensor:
    """The sum of an output, with a random weight for each number; of complex ones, for both of their parts."""
    real = torch.view_as_real(output) if output.is_complex() else output
    return (real * torch.randn(real.shape, generator=generator).to(real)).nan_to_num(0, 0, 0).sum()


def with_gradients(
    module: Callable[..., Any], x: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[list[Tensor], list[Slope], Tensor]:
    """What a module gives in training, each gradient (of parameters, then of inputs), and what was drawn then."""
    inputs = [t.clone().requires_grad_() if t.is_floating_point() else t for t in x]
    asked = [*parameters, *(t for t in inputs if t.requires_grad)]
    with seeded(0), torch.enable_grad(), dropout_by_index():
        # Not the leaves themselves, so that an operator in place may write into them.
        output = module(*(t * 1 if t.requires_grad else t for t in inputs))
        drawn = torch.get_rng_state()
        outputs = list(named_outputs(output).values())
        trained = [t for t in outputs if t.requires_grad and holds_numbers(t)]
        weights = torch.Generator().manual_seed(1)
        total: Any = sum(_weighed(t, weights) for t in trained)
        found: Any = [None] * len(asked)
        if isinstance(total, Tensor) and asked:
            found = torch.autograd.grad(total, asked, allow_unused=True)
    return [t.detach() for t in outputs], [Slope.of(g) for g in found], drawn


class Slope(NamedTuple):
    """What tells two gradients apart, in any order of their numbers: shuffled weights have another."""

    norm: float
    mean: float
    others: tuple[float, float, float]

    @classmethod
    def of(cls, gradient: Tensor | None) -> Slope:
        """None of these is larger than the norm. Of no gradient, all is 0."""
        if gradient is None or not gradient.numel():
            return cls(0.0, 0.0, (0.0, 0.0, 0.0))
        flat = gradient.detach().flatten()
        flat = (torch.view_as_real(flat).flatten() if flat.is_complex() else flat).double()
        root, sizes, squares = math.sqrt(len(flat)), flat.abs(), flat * flat
        fourth = float(squares.dot(squares)) ** 0.25
        others = float(sizes.sum()) / root, fourth, float(sizes.max())
        return cls(math.sqrt(float(squares.sum())), float(flat.sum()) / root, others)

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.norm, self.mean, *self.others)

    def apart(self, other: Slope) -> float:
        """The largest difference in one of these."""
        return max(abs(a - b) for a, b in zip(self.numbers, other.numbers, strict=True))


def unlike(own: Slope, slope: Slope) -> bool:
    """Whether two gradients are not the same at first sight."""
    return not own.apart(slope) <= MOST_APART * slope.norm
