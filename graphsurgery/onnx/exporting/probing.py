"""What a comparison feeds: noise in the ranges that preprocessing gives, and real inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.runtime.index_ranges import Ranges, drawn, ranges_of

GIVEN = "given inputs"
_NORMAL = "normal"
_EXAMPLES = 4
"""An output can only be seen to vary on several examples."""

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
    ranges = ranges_of(network, sizes[0]) if sizes else Ranges()
    found = []
    for number, size in enumerate(sizes):
        again = 1000 * number if size in sizes[:number] else 0
        found.append(Feed(f"batch {size}", _NORMAL, drawn(network, size, size + again, ranges)))
    if inputs is not None:
        real = tuple(x.cpu().float() if x.is_floating_point() else x.cpu() for x in inputs)
        return [*found, Feed(GIVEN, GIVEN, real)]
    noise = [ranges.of(at, spec) is None for at, spec in enumerate(network.inputs)]
    if not any(noise):
        return found
    middle = sorted(sizes)[len(sizes) // 2] if sizes else 1
    for label, scaled in _SCALES.items():
        for number in range(-(-_EXAMPLES // middle)):
            tensors = drawn(network, middle, 100 + number, ranges)
            scaled_too = (scaled(x) if is_noise else x for x, is_noise in zip(tensors, noise, strict=True))
            found.append(Feed(label, label, tuple(scaled_too)))
    return found
