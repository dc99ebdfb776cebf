"""What training minimises and what validation measures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphsurgery.network.outputs.naming import named_outputs, one_output

if TYPE_CHECKING:
    from torchmetrics import Metric

    from graphsurgery.training.data.dataset import Data

Batch = Sequence[Tensor]


def rank_of(score: float, *, higher_is_better: bool) -> float:
    """A score among others, higher is better: what is no number comes after all that are."""
    if math.isnan(score):
        return -math.inf
    return score if higher_is_better else -score


class Objective(ABC):
    """A loss with its metrics; a recipe subclasses it to add terms, state and what it logs.

    Attributes:
        score: the validation metric that says which weights are best.
        higher_is_better: whether a larger score is a better one.
        takes_shards: whether it needs nothing of a module but what it gives, so that parameters may lie spread over
            processes.
    """

    score: str = "loss"
    higher_is_better: bool = False
    takes_shards: bool = False

    @abstractmethod
    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, each a mean over the batch; `total` is what is differentiated."""

    def predict(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The module's output and the target, as the metrics take them."""
        return one_output(module(batch[0]), "the model"), batch[1]

    def run(self, module: nn.Module, x: Tensor) -> Any:
        """What a module gives for the inputs of a batch."""
        return module(x)

    def metrics(self) -> dict[str, Metric]:
        """Fresh torchmetrics by name, each fed with what `predict` returns."""
        return {}

    def validation_loss(self, output: Tensor, target: Tensor) -> Tensor | None:  # noqa: ARG002
        """The task's loss, a mean over the batch, of a prediction; None where it has none."""
        return None

    def on_step(self, fraction_done: float) -> None:  # noqa: B027
        """Called before each optimizer step with the fraction, from 0 to 1, of the stage's steps that are done."""

    def epoch_metrics(self) -> dict[str, float]:
        """Numbers to log after each epoch besides losses and metrics."""
        return {}

    def to(self, device: torch.device) -> None:  # noqa: B027
        """Move tensors that the objective holds, such as a teacher."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that `on_step` changes: numbers, strings, tensors, and lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take back what `state_dict` gave."""


AUXILIARY_WEIGHT = 0.3
"""Weight of the loss of each auxiliary output (Szegedy et al., "Going deeper with convolutions", 2015, section 5)."""


def total_loss(output: Any, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The loss of an output; of several, the first is the network's and the others are auxiliary heads'.

    A network gives several in training only: one that gives several in evaluation is refused before it is trained.
    """
    if isinstance(output, Tensor):
        return loss(output)
    main, *auxiliary = named_outputs(output).values()
    return torch.stack([loss(main), *(AUXILIARY_WEIGHT * loss(part) for part in auxiliary)]).sum()


class CrossEntropy(Objective):
    """Mean cross entropy of logits `[batch, classes]` and class indices `[batch]`; scored by accuracy."""

    score = "accuracy"
    higher_is_better = True
    takes_shards = True

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"total": total_loss(module(batch[0]), partial(F.cross_entropy, target=batch[1]))}

    def metrics(self) -> dict[str, Metric]:
        # Imported here: it takes a second, and only training needs it.
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(self.classes, average="micro", validate_args=False)}

    def validation_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)


class MeanSquaredError(Objective):
    """Mean squared error of outputs and targets of one shape; scored by itself."""

    score = "mse"
    takes_shards = True

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"total": total_loss(module(batch[0]), partial(F.mse_loss, target=batch[1]))}

    def metrics(self) -> dict[str, Metric]:
        import torchmetrics

        return {"mse": torchmetrics.MeanSquaredError()}

    def validation_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target)


def objective_for(data: Data) -> Objective:
    """Cross entropy for data with classes, mean squared error for regression."""
    return MeanSquaredError() if data.classes is None else CrossEntropy(data.classes)
