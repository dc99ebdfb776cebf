"""`ModelGraph`: a traced model that passes take and return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class InputSpec:
    """One input of the model: its name, its example shape `[batch, ...]` and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """A network in normal form, with the types of all its axes.

    Attributes:
        module: the network; an ordinary `nn.Module` to run, train, move and cast.
        inputs: what the network takes; the first axis of every input is the batch.
        lineage: JSON-like records of how this network came to be, oldest first.
    """

    module: fx.GraphModule
    inputs: tuple[InputSpec, ...]
    lineage: tuple[Mapping[str, Any], ...] = field(default=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def example_inputs(self, batch: int = 2, *, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs `[batch, ...]` in the dtype and on the device of the network's parameters."""
        generator = torch.Generator().manual_seed(seed)
        reference = next((p for p in self.module.parameters() if p.is_floating_point()), torch.empty(0))
        tensors = []
        for spec in self.inputs:
            shape = (batch, *spec.shape[1:])
            if spec.dtype.is_floating_point:
                tensors.append(torch.randn(shape, generator=generator).to(reference))
            else:
                tensors.append(torch.zeros(shape, dtype=spec.dtype, device=reference.device))
        return tuple(tensors)
