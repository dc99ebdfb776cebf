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
_INDICES = (1000, 100, 10, 2)
"""How large random indices are tried to be; tables have as many rows or more."""

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
    limit = _index_limit(network, sizes[0]) if sizes else 1
    found = []
    for number, size in enumerate(sizes):
        again = 1000 * number if size in sizes[:number] else 0
        found.append(Feed(f"batch {size}", _NORMAL, _noise(network, size, size + again, limit)))
    if inputs is not None:
        real = tuple(x.cpu().float() if x.is_floating_point() else x.cpu() for x in inputs)
        return [*found, Feed(GIVEN, GIVEN, real)]
    if not any(spec.dtype.is_floating_point for spec in network.inputs):
        return found
    middle = sorted(sizes)[len(sizes) // 2] if sizes else 1
    for label, scaled in _SCALES.items():
        for number in range(-(-_EXAMPLES // middle)):
            tensors = _noise(network, middle, 100 + number, limit)
            tensors = tuple(scaled(x) if x.is_floating_point() else x for x in tensors)
            found.append(Feed(label, label, tensors))
    return found


def _noise(network: ModelGraph, size: int, seed: int, limit: int) -> tuple[Tensor, ...]:
    """Normal noise; of inputs that are no floating numbers random indices below a limit, bytes and flags."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for x in network.example_inputs(size, seed=seed):
        if not x.is_floating_point():
            most = 2 if x.dtype == torch.bool else 256 if x.dtype == torch.uint8 and limit > 1 else limit
            x = torch.randint(0, most, x.shape, generator=generator).to(x.dtype)
        found.append(x)
    return tuple(found)


def _index_limit(network: ModelGraph, size: int) -> int:
    """The largest limit for random indices that the network takes; 1 (zeros) where it takes no others."""
    if all(spec.dtype.is_floating_point for spec in network.inputs):
        return 1
    for limit in _INDICES:
        try:
            with torch.no_grad():
                network.module(*_noise(network, size, 0, limit))
        except Exception:  # an index out of range, in whatever way the operator says so
            continue
        return limit
    return 1
