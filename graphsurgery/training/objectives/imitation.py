"""Losses with which a student learns what a teacher says, instead of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphsurgery.errors import SurgeryError
from graphsurgery.training.data.dataset import UNLABELLED
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.objectives.tasks import Batch, Objective, total_loss

if TYPE_CHECKING:
    from torchmetrics import Metric


def imitation_loss(imitation: Imitation, student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of logits `[batch, classes]` of both, a mean over the batch."""
    match imitation.loss:
        case "logits":
            return squared(student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True))
        case "probabilities":
            return squared(student.softmax(1), teacher.softmax(1))
        case "kl":
            return divergence(student, teacher, imitation.temperature)
        case "dkd":
            return decoupled(student, teacher, imitation.temperature, imitation.alpha, imitation.beta)
    return correlated(student, teacher, imitation.temperature, imitation.alpha, imitation.beta)


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared distance."""
    return 0.5 * F.mse_loss(student, teacher)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T² KL(teacher || student)` of the softened classes."""
    p, q = ((x / temperature).log_softmax(1) for x in (teacher, student))
    return temperature**2 * (p.exp() * (p - q)).sum() / len(student)


def decoupled(student: Tensor, teacher: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """`T² (alpha · TCKD + beta · NCKD)`; the target is the teacher's class, so that no labels are needed.

    Source: Zhao et al., "Decoupled knowledge distillation", CVPR 2022, equation 7.
    """
    top = F.one_hot(teacher.argmax(1), teacher.shape[1]).bool()
    q, p = ((x / temperature).log_softmax(1) for x in (student, teacher))
    halves = [torch.stack([x[top], torch.log1p(-x[top].exp().clamp_max(1 - 1e-7))], 1) for x in (q, p)]
    target = F.kl_div(halves[0], halves[1], reduction="batchmean", log_target=True)
    others = [x[~top].reshape(len(x), -1).log_softmax(1) for x in (student / temperature, teacher / temperature)]
    rest = F.kl_div(others[0], others[1], reduction="batchmean", log_target=True)
    return temperature**2 * (alpha * target + beta * rest)


def correlated(student: Tensor, teacher: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """`T² (alpha · (1 - r of examples) + beta · (1 - r of classes))` with Pearson's r of probabilities.

    Source: Huang et al., "Knowledge distillation from a stronger teacher", NeurIPS 2022, equations 7 to 10.
    """
    q, p = ((x / temperature).softmax(1) for x in (student, teacher))
    within = 1 - _pearson(q, p).mean()
    across = 1 - _pearson(q.t(), p.t()).mean()
    return temperature**2 * (alpha * within + beta * across)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of each pair of rows; 0 where one has no spread."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-8)


def shares_of(count: int, like: Tensor) -> Tensor:
    """What each example of a batch keeps of itself in a mixture, `[count]`: evenly spread over 0 to 1.

    The order of a batch is drawn anew in every epoch, and with it who is mixed with whom, and in which share; nothing
    else needs to be drawn.
    """
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count


def mixture(x: Tensor, shares: Tensor) -> Tensor:
    """Each example in its share, and the one before it in the rest."""
    shares = shares.view(-1, *[1] * (x.dim() - 1))
    return shares * x + (1 - shares) * x.roll(1, 0)


class Mimicry(Objective):
    """Imitation of a teacher, scored by the accuracy on labels as `CrossEntropy` is.

    Args:
        classes: how many; None for regression, whose outputs are compared as they are.
        imitation: the loss.
        teacher: runs on every batch `(x, ...)`; None takes its logits from the batch `(x, label, logits)`.
        spread: the standard deviation of the teacher's logits of each class `[classes]`, to divide them by; or None.

    Raises:
        SurgeryError: mixtures shall be answered, and there is no teacher.
    """

    takes_shards = True

    def __init__(
        self,
        classes: int | None,
        imitation: Imitation,
        *,
        teacher: nn.Module | None = None,
        spread: Tensor | None = None,
    ) -> None:
        self.classes, self.imitation, self.teacher, self.spread = classes, imitation, teacher, spread
        self.score = "accuracy" if classes else "mse"
        self.higher_is_better = classes is not None
        if teacher is not None:
            teacher.eval()
        elif imitation.mixed and imitation.labels < 1 and classes is not None:
            raise SurgeryError("imitation: nobody has answered mixtures before they are made; give a teacher")

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`total`, and where labels count and something beside them, `imitation` and `labels`."""
        x, weight = batch[0], self.imitation.labels
        mixed = self.imitation.mixed and self.classes is not None and x.is_floating_point()
        shares = shares_of(len(x), x) if mixed else None
        x = x if shares is None else mixture(x, shares)
        output = module(x)
        labelled = total_loss(output, lambda logits: self._labelled(logits, batch[1], shares)) if weight else None
        if labelled is not None and weight == 1:
            return {"total": labelled}
        target = self._answers(x, batch)
        imitation = total_loss(output, lambda logits: self._imitation(logits, target))
        if labelled is None:
            return {"total": imitation}
        return {"total": (1 - weight) * imitation + weight * labelled, "imitation": imitation, "labels": labelled}

    def _answers(self, x: Tensor, batch: Batch) -> Tensor:
        if self.teacher is None:
            return batch[2]
        with torch.no_grad():
            answers: Tensor = self.teacher(x)
        return answers

    def _imitation(self, output: Tensor, target: Tensor) -> Tensor:
        if self.classes is None:
            return F.mse_loss(output, target)  # as labels are, so that a weight between the two means what it says
        if self.spread is not None:
            output, target = output / self.spread, target / self.spread
        return imitation_loss(self.imitation, output, target)

    def _labelled(self, output: Tensor, labels: Tensor, shares: Tensor | None) -> Tensor:
        """The mean over the examples that have a label, or over such shares of them; 0 where none has."""
        if self.classes is None:
            known = ~labels.isnan()
            errors = (output - labels.where(known, output.detach())).square()
            return errors.sum() / known.sum().clamp(min=1)
        parts = [(labels, None)] if shares is None else [(labels, shares), (labels.roll(1, 0), 1 - shares)]
        total, count = output.new_zeros(()), output.new_zeros(())
        for named, share in parts:
            weights = (named != UNLABELLED).to(output.dtype) * (1 if share is None else share)
            errors = F.cross_entropy(output, named, ignore_index=UNLABELLED, reduction="none")
            total, count = total + (errors * weights).sum(), count + weights.sum()
        return total / count.where(count > 0, torch.ones_like(count))

    def metrics(self) -> Mapping[str, Metric]:  # type: ignore[override]
        """The metric of the task on labels."""
        return _task(self.classes).metrics()

    def validation_loss(self, output: Tensor, target: Tensor) -> Tensor | None:
        """The loss of the task on labels."""
        return _task(self.classes).validation_loss(output, target)

    def to(self, device: torch.device) -> None:
        """Move the teacher."""
        if self.teacher is not None:
            self.teacher.to(device)
        if self.spread is not None:
            self.spread = self.spread.to(device)


def _task(classes: int | None) -> Objective:
    from graphsurgery.training.objectives.tasks import CrossEntropy, MeanSquaredError

    return MeanSquaredError() if classes is None else CrossEntropy(classes)
