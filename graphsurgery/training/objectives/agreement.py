"""Learning what another network says, and measuring it by how far the two agree: nobody knows a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from graphsurgery.network.outputs.naming import one_output
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.objectives.imitation import Mimicry
from graphsurgery.training.objectives.tasks import Batch

if TYPE_CHECKING:
    from torchmetrics import Metric


class Agreement(Mimicry):
    """Imitation of logits that stand beside the examples: batches are `(x, no label, logits)`.

    Its metrics are `agreement`, the share of examples with the same first class (of a single output there is none),
    and `deviation`, the root of the mean squared difference over that of the logits around their mean, which says which
    weights are best.

    Args:
        classes: numbers that an example has.
        imitation: the loss.
    """

    def __init__(self, classes: int, imitation: Imitation | None = None) -> None:
        super().__init__(classes if classes > 1 else None, imitation or Imitation())
        self.score, self.higher_is_better = "deviation", False

    def predict(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The network's logits, and those that it shall have."""
        return one_output(module(batch[0]), "the model"), batch[2]

    def metrics(self) -> Mapping[str, Metric]:  # type: ignore[override]
        """Agreement and deviation."""
        from graphsurgery.training.objectives.agreement_metrics import Deviation, SameClass

        deviation: dict[str, Metric] = {"deviation": Deviation()}
        return deviation if self.classes is None else {"agreement": SameClass(), **deviation}

    def validation_loss(self, output: Tensor, target: Tensor) -> Tensor | None:
        """The loss of the imitation."""
        return self._imitation(output, target)
