"""How to train: the plan of one stage, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from graphsurgery.errors import SurgeryError, one_line

OPTIMIZERS = ("sgd", "adam", "adamw")
MIXED_PRECISION = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class TrainingPlan:
    """One stage of training; the same plan gives the same training on any number of processes.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples of one optimizer step at most, over all processes and accumulation steps together.
        optimizer: "sgd", "adam" or "adamw".
        lr: highest learning rate, reached after the warm-up.
        momentum: of "sgd".
        weight_decay: of all trainable parameters with two axes or more.
        decay_vectors: also decay parameters with one axis (biases and norms).
        schedule: "constant", "cosine" (to zero), or "step:0.5,0.75" (times 0.1 at these fractions of all epochs).
        warmup: epochs of linear growth from zero, within `epochs`.
        gradient_accumulation: forward passes that share one optimizer step.
        mixed_precision: "no", "bf16" or "fp16".
        clip: largest total gradient norm; None leaves gradients as they are.
        seed: of the shuffle order (a function of seed and epoch), and of dropout and gate samples.
        device: "auto", "cpu", "cuda" or any torch device.
        keep_best: end with the weights of the best validation score instead of the last ones.
        workers: loading processes, for data sets that are not in memory.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay_vectors: bool = False
    schedule: str = "cosine"
    warmup: float = 0.0
    gradient_accumulation: int = 1
    mixed_precision: str = "no"
    clip: float | None = None
    seed: int = 0
    device: str = "auto"
    keep_best: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise SurgeryError(
                f"training plan: unknown optimizer {self.optimizer!r}; use one of {', '.join(OPTIMIZERS)}"
            )
        if self.mixed_precision not in MIXED_PRECISION:
            raise SurgeryError(
                f"training plan: unknown mixed_precision {self.mixed_precision!r}; "
                f"use one of {', '.join(MIXED_PRECISION)}"
            )
        for name in ("batch_size", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise SurgeryError(f"training plan: {name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("epochs", "lr", "weight_decay", "warmup", "workers"):
            if not getattr(self, name) >= 0 or math.isinf(getattr(self, name)):
                raise SurgeryError(
                    f"training plan: {name} is {getattr(self, name)}; it must be finite and not negative"
                )
        rate_factor(self.schedule, 0.0)

    def calmer(self) -> dict[str, float]:
        """Options of a training that is less likely to diverge: a usual or a smaller rate, a warm-up, clipping."""
        usual = 0.1 if self.optimizer == "sgd" else 0.001
        found = {"lr": min(usual, self.lr / 10), "warmup": 1.0, "clip": 1.0}
        return {name: value for name, value in found.items() if name == "lr" or not getattr(self, name)}

    def what_fixes_the_result(self) -> dict[str, Any]:
        """The fields that a resumed stage must share with its beginning."""
        fields = asdict(self)
        for name in ("device", "workers"):
            del fields[name]
        return fields

    def rate_factor(self, epoch: float, schedule: str | None = None) -> float:
        """The factor on the learning rate after `epoch` epochs, fractions included."""
        fraction = epoch / max(self.epochs, 1)
        warm = min(1.0, epoch / self.warmup) if self.warmup > 0 else 1.0
        return warm * rate_factor(schedule or self.schedule, fraction)


def recorded_plan(record: Mapping[str, Any], **settings: Any) -> TrainingPlan:
    """The plan in a lineage's record of a training, with these settings instead.

    Raises:
        SurgeryError: it is none; records come from files.
    """
    try:
        return TrainingPlan(**{**record["plan"], **settings})
    except (KeyError, TypeError, AttributeError) as cause:
        raise SurgeryError(f"lineage: the plan of the last training is damaged ({one_line(cause)})") from cause


def rate_factor(schedule: str, fraction: float) -> float:
    """The factor that `schedule` gives after a fraction of the training.

    Raises:
        SurgeryError: `schedule` is not "constant", "cosine" or "step:" with fractions between 0 and 1.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))
    kind, _, text = schedule.partition(":")
    try:
        milestones = [float(part) for part in text.split(",")]
    except ValueError:
        milestones = []
    if kind != "step" or not milestones or not all(0 < milestone < 1 for milestone in milestones):
        raise SurgeryError(
            f"training plan: unknown schedule {schedule!r}; use constant, cosine, or fractions as in step:0.5,0.75"
        )
    # A milestone is meant in whole steps: 0.1 + 0.2 > 0.3 must not move it by one.
    return 0.1 ** sum(fraction >= milestone - 1e-9 for milestone in milestones)
