"""The weights of a module after so many steps of its training, for tickets that go back to there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphsurgery.facts import named_tensors
from graphsurgery.training.objectives import Batch, Objective

if TYPE_CHECKING:
    from torchmetrics import Metric


class Snapshot(Objective):
    """An objective as it is, that remembers the module's tensors before step `step` (from 0) of a stage.

    Args:
        objective: what is minimised and measured.
        module: what is trained.
        step: how many optimizer steps are done by then.

    Attributes:
        values: the parameters and buffers by name, on the CPU; None until that step.
    """

    def __init__(self, objective: Objective, module: nn.Module, step: int) -> None:
        self.objective, self.module, self.step = objective, module, step
        self.score, self.higher_is_better = objective.score, objective.higher_is_better
        self.done = 0
        self.values: dict[str, Tensor] | None = None

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return self.objective.loss(module, batch)

    def predict(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.objective.predict(module, batch)

    def metrics(self) -> dict[str, Metric]:
        return self.objective.metrics()

    def validation_loss(self, output: Tensor, target: Tensor) -> Tensor | None:
        return self.objective.validation_loss(output, target)

    def on_step(self, fraction_done: float) -> None:
        self.objective.on_step(fraction_done)
        if self.done == self.step:
            self.values = {name: tensor.detach().cpu().clone() for name, tensor in named_tensors(self.module).items()}
        self.done += 1

    def epoch_metrics(self) -> dict[str, float]:
        return self.objective.epoch_metrics()

    def to(self, device: torch.device) -> None:
        self.objective.to(device)

    def state_dict(self) -> dict[str, Any]:
        return {"objective": self.objective.state_dict(), "done": self.done, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state["objective"])
        self.done, self.values = state["done"], state["values"]
