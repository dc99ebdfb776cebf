"""The sandwich rule: every step trains the widest network, the narrowest, and some in between."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphsurgery.errors import SurgeryError
from graphsurgery.network.outputs.naming import named_outputs
from graphsurgery.surgery.channels.slimming import Slimmable
from graphsurgery.training.objectives.tasks import Batch, Objective, total_loss

if TYPE_CHECKING:
    from torchmetrics import Metric

WIDTH_RULES = ("sandwich", "random", "widest")
_STEPS = 16


class Sandwich(Objective):
    """The loss of several widths of one network, the sum of theirs: every width learns as fast as it would alone.

    Args:
        slimmable: the network; what is trained is its whole module.
        task: the objective of the widest, and of the others where they do not mimic it.
        widths: how many widths each step trains; of a switchable network it is all that there are.
        rule: `sandwich`: the widest, the narrowest and random ones; `random`: random ones, as a control; `widest`: only
            that one.
        distil: whether the others learn what the widest says in the same step, without gradient, instead of labels.
        warmup: fraction of the training in which they learn labels before.

    A widest network that has just begun is a bad teacher: in short trainings early distillation costs accuracy at every
    width, see docs/benchmarks.md.

    Random widths are drawn from sixteen that lie evenly between narrowest and widest, so that each is built once.

    Source: Yu & Huang, "Universally slimmable networks", arXiv:1903.05134, sections 3.1 and 3.2.
    """

    def __init__(
        self,
        slimmable: Slimmable,
        task: Objective,
        *,
        widths: int = 4,
        rule: str = "sandwich",
        distil: bool = True,
        warmup: float = 0.5,
    ) -> None:
        if rule not in WIDTH_RULES:
            raise SurgeryError(f"slim: rule is {rule!r}; choose from {', '.join(WIDTH_RULES)}")
        if widths < 2:
            raise SurgeryError(f"slim: {widths} widths in a step, expected at least 2")
        if not 0 <= warmup <= 1:
            raise SurgeryError(f"slim: warmup is {warmup:g}, expected a fraction from 0 to 1")
        if slimmable.switchable and rule != "sandwich":
            raise SurgeryError(f"slim: rule {rule} is not for switchable BatchNorms, each step trains all their widths")
        self.slimmable, self.task, self.widths, self.rule = slimmable, task, widths, rule
        self.distil, self.warmup = distil, warmup
        self.score, self.higher_is_better = task.score, task.higher_is_better
        self._done = 0.0

    def on_step(self, fraction_done: float) -> None:
        """Remember how far the training is."""
        self._done = fraction_done

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`total`, and the loss of the widest and of the narrowest where they are trained."""
        if self.rule == "widest":
            return self.task.loss(module, batch)
        named: dict[str, Tensor] = {}
        chosen = self.chosen()
        soft: Tensor | None = None
        losses: list[Tensor] = []
        if self.rule == "sandwich":
            wide = _Kept(module)
            named["widest"] = self.task.loss(wide, batch)["total"]
            losses.append(named["widest"])
            if self.distil and self._done >= self.warmup:
                soft = next(iter(named_outputs(wide.output).values())).detach()  # others are auxiliary heads'
        for number, width in enumerate(chosen):
            narrow = self.slimmable.at(width)
            loss = (
                total_loss(narrow(batch[0]), partial(self._mimicked, soft=soft))
                if soft is not None
                else self.task.loss(_Called(narrow), batch)["total"]
            )
            losses.append(loss)
            if number == 0 and self.rule == "sandwich":
                named["narrowest"] = loss
        return {"total": torch.stack(losses).sum(), **named}

    def chosen(self) -> list[float]:
        """The widths of a step besides the widest, the narrowest first."""
        if self.slimmable.switchable:
            return list(self.slimmable.switchable[:-1])
        if self.rule == "sandwich":
            return [self.slimmable.min_width, *self._drawn(self.widths - 2)]
        return self._drawn(self.widths)

    def _drawn(self, count: int) -> list[float]:
        """Random widths from the grid, by torch's random state."""
        span = 1 - self.slimmable.min_width
        places = torch.randint(0, _STEPS, (count,)).tolist()
        return [self.slimmable.min_width + span * place / (_STEPS - 1) for place in places]

    def _mimicked(self, output: Tensor, soft: Tensor) -> Tensor:
        """What a narrow network learns from the widest: its classes, or for regression its values."""
        if self.task.score == "mse":
            return F.mse_loss(output, soft)
        return -(soft.softmax(1) * output.log_softmax(1)).sum(1).mean()

    def metrics(self) -> Mapping[str, Metric]:  # type: ignore[override]
        """Those of the task, of the widest network."""
        return self.task.metrics()

    def validation_loss(self, output: Tensor, target: Tensor) -> Tensor | None:
        """That of the task."""
        return self.task.validation_loss(output, target)


class _Kept(nn.Module):
    """Runs a module and keeps what it gave."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__["module"] = module
        self.output: Any = None

    def forward(self, x: Tensor) -> Any:
        self.output = self.__dict__["module"](x)
        return self.output


class _Called(nn.Module):
    """A callable as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.__dict__["function"] = function

    def forward(self, x: Tensor) -> Any:
        return self.__dict__["function"](x)
