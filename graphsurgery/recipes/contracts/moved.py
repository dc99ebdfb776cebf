"""Moved: what an edit did to the outputs of a network, on random inputs, where there are no data to measure it on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.outputs.naming import run
from graphsurgery.progress import phase
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import apart

_MOST, _FEWEST, _MACS, _TOGETHER = 100, 4, 1e11, 4
ROUNDING = 1e-5
"""Up to here, relative to the largest output, outputs move by what float32 rounds."""


@dataclass(frozen=True)
class OutputChange:
    """How far two networks' outputs lie apart.

    Attributes:
        deviation: the largest of all inputs and outputs, relative to the largest number of that output.
        inputs: how many inputs were tried.
        same: on how many of them the class (the largest of the first output) stays; None where there are no classes.
    """

    deviation: float
    inputs: int
    same: int | None

    @property
    def stays(self) -> bool:
        """Whether the outputs are the same, but for rounding."""
        return self.deviation <= ROUNDING

    def __str__(self) -> str:
        number = "1 random input" if self.inputs == 1 else f"{self.inputs} random inputs"
        classes = f" on {number}" if self.same is None else f"; on {self.same} of {number} the class stays"
        return f"the outputs move by {self.deviation:.1e} of the largest{classes}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form."""
        return asdict(self)


@phase("measuring by how much the outputs move")
def moved(before: ModelGraph, after: ModelGraph, *, seed: int = 0) -> OutputChange:
    """Run two networks of the same inputs and outputs in evaluation, in their own precision, on random inputs.

    Args:
        before: the network as it was.
        after: what an edit made of it.
        seed: draws the inputs; there are 4 to 100 of them, by what the network costs. Indices are all 0, so a network
            that takes nothing else gets one input.

    Raises:
        UnlikeError: they do not give the same outputs, or not of the same shapes.
    """
    inputs = min(_MOST, max(_FEWEST, int(_MACS / max(1, cost(before).macs))))
    if not any(spec.dtype.is_floating_point for spec in before.inputs):
        inputs = 1
    deviation, same = 0.0, 0
    classified = True
    with evaluating(before.module), evaluating(after.module):
        for start in range(0, inputs, _TOGETHER):
            x = before.example_inputs(min(_TOGETHER, inputs - start), seed=seed + start)
            old, new = run(before, x, seed), run(after, x, seed)
            deviation = max(deviation, apart(new, old))
            first = next(iter(old), None)
            classified = classified and first is not None and _classes(old[first])
            if classified and first is not None:
                same += int((old[first].argmax(1) == new[first].argmax(1)).sum())
    return OutputChange(deviation, inputs, same if classified else None)


def _classes(output: Tensor) -> bool:
    """Whether an output is a number for each of several classes `[batch, classes]`."""
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype in (torch.float32, torch.float64, torch.float16)
