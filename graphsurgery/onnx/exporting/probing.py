"""What a comparison feeds: noise in the ranges that preprocessing gives, and real inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphsurgery.graph import ModelGraph

GIVEN = "given inputs"
_NORMAL = "normal"
_EXAMPLES = 4
"""An output can only be seen to vary on several examples."""
_INDICES = ((0, 999), (0, 99), (0, 9), (0, 1), (1, 4), (1, 2), (1, 1))
"""Ranges of random indices that are tried; tables have as many rows or more, and lengths are not 0."""

_SCALES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "noise from 0 to 1": torch.special.ndtr,
    "noise of a tenth": lambda x: x / 10,
    "noise from 0 to 255": lambda x: 255 * torch.special.ndtr(x),
}
"""What becomes of normal noise; normal noise itself is fed in any case."""


@dataclass(frozen=True, eq=False)
class Feed:
    """The inputs of one run.

    Attributes:
        label: what they are called in a report.
        group: feeds of one group are of one kind, so that outputs may be expected to vary alike on them.
        tensors: the inputs, each `[batch, ...]`.
    """

    label: str
    group: str
    tensors: tuple[Tensor, ...]


def feeds(network: ModelGraph, batches: Sequence[int], inputs: Sequence[Tensor] | None = None) -> list[Feed]:
    """Normal noise in these batches, then the real inputs, or noise of other scales where there are none.

    Where all batches together have few examples, the last size is drawn several times.

    Args:
        network: a float32 network on the CPU, in evaluation mode.
        batches: sizes of batches; may be empty where there are real inputs.
        inputs: real inputs, each `[batch, ...]`.
    """
    sizes = list(batches)
    while sizes and sum(sizes) < _EXAMPLES:
        sizes.append(sizes[-1])
    limits = index_range(network, sizes[0]) if sizes else (0, 0)
    found = []
    for number, size in enumerate(sizes):
        again = 1000 * number if size in sizes[:number] else 0
        found.append(Feed(f"batch {size}", _NORMAL, _noise(network, size, size + again, limits)))
    if inputs is not None:
        real = tuple(x.cpu().float() if x.is_floating_point() else x.cpu() for x in inputs)
        return [*found, Feed(GIVEN, GIVEN, real)]
    if not any(spec.dtype.is_floating_point for spec in network.inputs):
        return found
    middle = sorted(sizes)[len(sizes) // 2] if sizes else 1
    for label, scaled in _SCALES.items():
        for number in range(-(-_EXAMPLES // middle)):
            tensors = _noise(network, middle, 100 + number, limits)
            tensors = tuple(scaled(x) if x.is_floating_point() else x for x in tensors)
            found.append(Feed(label, label, tensors))
    return found


def _noise(network: ModelGraph, size: int, seed: int, limits: tuple[int, int]) -> tuple[Tensor, ...]:
    """Normal noise; of inputs that are no floating numbers random indices within limits, bytes and flags."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for x in network.example_inputs(size, seed=seed):
        if not x.is_floating_point():
            low, high = range_of(x.dtype, limits)
            x = torch.randint(low, high + 1, x.shape, generator=generator).to(x.dtype)
        found.append(x)
    return tuple(found)


def range_of(dtype: torch.dtype, limits: tuple[int, int]) -> tuple[int, int]:
    """Of what no network takes as an index, the range that its dtype has; else these limits."""
    if dtype == torch.bool:
        return 0, 1
    return (0, 255) if dtype == torch.uint8 and limits[1] > 0 else limits


def index_range(network: ModelGraph, size: int) -> tuple[int, int]:
    """The smallest and the largest of random indices that the network takes; twice 0 where it takes no others."""
    if all(spec.dtype.is_floating_point for spec in network.inputs):
        return 0, 0
    for limits in _INDICES:
        try:
            with torch.no_grad():
                for drawn in (limits, *((end, end) for end in limits)):  # few draws do not meet both ends
                    network.module.forward(*_noise(network, size, 0, drawn))  # a call would print what fails
        except Exception:  # an index out of range, in whatever way the operator says so
            continue
        return limits
    return 0, 0
