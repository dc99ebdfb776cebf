"""Learning all that a network gives, whatever it is: maps, boxes, several outputs, each in proportion to its spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from graphsurgery.errors import SpecError
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.outputs.naming import named_outputs
from graphsurgery.training.data.batches import Examples, in_order
from graphsurgery.training.devices import choose_device, placed
from graphsurgery.training.objectives.agreement import Agreement
from graphsurgery.training.objectives.tasks import Batch

_AT_ONCE = 32
"""Examples in one pass."""
_MOST = 2**13
"""Numbers of an output that are compared for each example; of more, as many that are drawn once."""


@dataclass(frozen=True, eq=False)
class OutputSlice:
    """One output in a vector.

    Attributes:
        name: of the output.
        number: its place among the outputs.
        places: which of its numbers are compared, as indices into those of an example; None for all.
        scale: the standard deviation around the mean of the examples.
        count: how many numbers are compared.
    """

    name: str
    number: int
    places: Tensor | None
    scale: float
    count: int


class Reading:
    """All outputs of a network as one vector for each example, in which all count alike, whatever they measure.

    Args:
        parts: the outputs that are read.
    """

    def __init__(self, parts: Iterable[OutputSlice]) -> None:
        self.parts = tuple(parts)
        self.width = sum(part.count for part in self.parts)

    def __call__(self, output: Any) -> Tensor:
        """The vector `[batch, width]`."""
        outputs = list(named_outputs(output).values())
        found = []
        for part in self.parts:
            numbers = outputs[part.number].flatten(1)
            chosen = numbers if part.places is None else numbers[:, part.places.to(numbers.device)]
            # Every output has the same share of a mean over the vector.
            found.append(chosen / part.scale * math.sqrt(self.width / part.count / len(self.parts)))
        return torch.cat(found, 1)


def reading_of(output: Any, examples: int, *, seed: int = 0) -> Reading:
    """How the outputs of a network are read, by what it gives for some examples.

    Args:
        output: of the network, for all of these examples together.
        examples: how many.
        seed: draws the numbers of large outputs.

    Raises:
        SpecError: it gives no floating numbers for each example that differ from one to another.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for number, (name, tensor) in enumerate(named_outputs(output).items()):
        if not tensor.dim() or len(tensor) != examples or not tensor.is_floating_point():
            continue  # no numbers of one example
        numbers = tensor.detach().cpu().double().flatten(1)
        scale = float((numbers - numbers.mean(0)).square().mean().sqrt())
        if not (math.isfinite(scale) and scale > 0):
            continue
        count = numbers.shape[1]
        places = torch.randperm(count, generator=generator)[:_MOST] if count > _MOST else None
        parts.append(OutputSlice(name, number, places, scale, min(count, _MOST)))
    if not parts:
        shapes = (
            ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in named_outputs(output).items()) or "nothing"
        )
        raise SpecError(
            f"--calib: the network gives {shapes}; expected numbers [batch, ...] that differ between examples"
        )
    return Reading(parts)


def vectors_of(module: nn.Module, objective: SeveralOutputs, part: Dataset[Any], device: str) -> Tensor:
    """What a network gives for every example, as vectors `[examples, width]` on the CPU."""
    chosen, examples = choose_device(device), Examples(part, choose_device(device))
    with placed(module, chosen), evaluating(module), torch.no_grad():
        batches = examples.batches(in_order(len(examples), _AT_ONCE))
        return torch.cat([objective.reading(objective.run(module, batch[0])).float().cpu() for batch in batches])


class SeveralOutputs(Agreement):
    """Regression on all outputs that stand beside the examples as one vector: batches are `(x, no label, vector)`.

    Args:
        reading: how a network's outputs become that vector.
        run: what a network gives for the `x` of a batch, where that is not its only input.
    """

    def __init__(self, reading: Reading, run: Callable[[nn.Module, Tensor], Any] | None = None) -> None:
        super().__init__(1)
        self.reading, self._run = reading, run

    def run(self, module: nn.Module, x: Tensor) -> Any:
        """What a module gives for the inputs of a batch."""
        return module(x) if self._run is None else self._run(module, x)

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`total`, the mean squared difference, in which every output counts alike."""
        return {"total": F.mse_loss(self.reading(self.run(module, batch[0])), batch[2])}

    def predict(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The network's vector, and that which it shall have."""
        return self.reading(self.run(module, batch[0])), batch[2]
