"""What is seen of a module between the steps of its training: its weights at one step, its validation loss at many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from graphsurgery.network.paths import named_tensors
from graphsurgery.training.devices import device_of
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.objectives.tasks import Batch, Objective

if TYPE_CHECKING:
    from torchmetrics import Metric


class WatchedObjective(Objective):
    """An objective as it is, with a look at the module before each step of a stage.

    Args:
        objective: what is minimised and measured.
        module: what is trained.

    Attributes:
        done: how many optimizer steps are done.
    """

    def __init__(self, objective: Objective, module: nn.Module) -> None:
        self.objective, self.module = objective, module
        self.score, self.higher_is_better = objective.score, objective.higher_is_better
        self.done = 0

    @abstractmethod
    def look(self) -> None:
        """Called when `done` steps are done and another is to come."""

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
        self.look()
        self.done += 1

    def epoch_metrics(self) -> dict[str, float]:
        return self.objective.epoch_metrics()

    def to(self, device: torch.device) -> None:
        self.objective.to(device)

    def state_dict(self) -> dict[str, Any]:
        return {"objective": self.objective.state_dict(), "done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state["objective"])
        self.done = state["done"]


class Snapshot(WatchedObjective):
    """Remembers the module's tensors before step `step` (from 0), for tickets that go back to there.

    Args:
        objective: what is minimised and measured.
        module: what is trained.
        step: how many optimizer steps are done by then.

    Attributes:
        values: the parameters and buffers by name, on the CPU; None until that step.
    """

    def __init__(self, objective: Objective, module: nn.Module, step: int) -> None:
        super().__init__(objective, module)
        self.step = step
        self.values: dict[str, Tensor] | None = None

    def look(self) -> None:
        if self.done == self.step:
            self.values = {name: tensor.detach().cpu().clone() for name, tensor in named_tensors(self.module).items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.values = state["values"]


class LossReadings(WatchedObjective):
    """Reads the validation loss again and again, for the step at which it is lowest; training goes on as without it.

    Args:
        objective: what is minimised and measured.
        module: what is trained.
        validation: examples `(input, target)`.
        every: optimizer steps between two readings; 0 takes none.

    Attributes:
        losses: what was read, by the number of steps that were done.
    """

    def __init__(self, objective: Objective, module: nn.Module, validation: Dataset[Any], every: int) -> None:
        super().__init__(objective, module)
        self.validation, self.every = validation, every
        self.losses: dict[int, float] = {}

    def look(self) -> None:
        if not (self.every and self.done) or self.done % self.every:
            return
        device = device_of(self.module)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self.losses[self.done] = evaluate(self.module, self.validation, self.objective)["loss"]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "losses": dict(self.losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.losses = dict(state["losses"])
