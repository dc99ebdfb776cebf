"""How to train: the plan of one stage, by what it is executed, and the learning-rate schedules."""

# Types are no texts here: where `Execution` is inherited, command lines read them without the names of this file.
import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from graphsurgery.errors import SurgeryError, one_line

OPTIMIZERS = ("sgd", "adam", "adamw")
MIXED_PRECISION = ("no", "bf16", "fp16")
TRACKERS = {"none": (), "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
"""What epochs can be told to, and the packages of which one has to be installed for it."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """By what a training is executed: every command that trains takes it, and no network remembers it.

    Attributes:
        mixed_precision: no, bf16 or fp16, in which layers compute where they may; the weights stay as they are.
        device: auto, cpu, cuda or any torch device.
        workers: loading processes, for data sets that are not in memory.
        tracker: what is told the losses and metrics of every epoch beside the run folder: tensorboard, wandb or none.
    """

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    device: str = "auto"
    workers: int = 0
    tracker: Literal["tensorboard", "wandb", "none"] = "none"

    def __post_init__(self) -> None:
        for name, known in (("mixed_precision", MIXED_PRECISION), ("tracker", tuple(TRACKERS))):
            if getattr(self, name) not in known:
                raise SurgeryError(
                    f"training plan: unknown {name} {getattr(self, name)!r}; use one of {', '.join(known)}"
                )
        if self.workers < 0:
            raise SurgeryError(f"training plan: workers is {self.workers}; it must not be negative")
        packages = TRACKERS[self.tracker]
        if packages and not any(map(_installed, packages)):
            raise SurgeryError(f"tracker {self.tracker}: its package is missing; pip install {packages[0]}")

    def execution(self) -> dict[str, Any]:
        """The same as settings of a plan."""
        return {field.name: getattr(self, field.name) for field in fields(Execution)}


def _installed(package: str) -> bool:
    """Whether a package is installed; a folder of its name, such as Weights & Biases makes, is none."""
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@dataclass(frozen=True)
class TrainingPlan(Execution):
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
        clip: largest total gradient norm; None leaves gradients as they are.
        seed: of the shuffle order (a function of seed and epoch), and of dropout and gate samples.
        keep_best: end with the weights of the best validation score instead of the last ones.
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
    clip: float | None = None
    seed: int = 0
    keep_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in OPTIMIZERS:
            raise SurgeryError(
                f"training plan: unknown optimizer {self.optimizer!r}; use one of {', '.join(OPTIMIZERS)}"
            )
        for name in ("batch_size", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise SurgeryError(f"training plan: {name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("epochs", "lr", "weight_decay", "warmup"):
            if not getattr(self, name) >= 0 or math.isinf(getattr(self, name)):
                raise SurgeryError(
                    f"training plan: {name} is {getattr(self, name)}; it must be finite and not negative"
                )
        if not 0 <= self.momentum < 1:
            raise SurgeryError(f"training plan: momentum is {self.momentum}; it must be 0 or more, and below 1")
        if self.clip is not None and not self.clip > 0:
            raise SurgeryError(f"training plan: clip is {self.clip}; it must be above 0")
        rate_factor(self.schedule, 0.0)

    def calmer(self) -> dict[str, float]:
        """Options of a training that is less likely to diverge: a usual or a smaller rate, a warm-up, clipping."""
        usual = 0.1 if self.optimizer == "sgd" else 0.001
        found = {"lr": min(usual, self.lr / 10), "warmup": 1.0, "clip": 1.0}
        return {name: value for name, value in found.items() if name == "lr" or not getattr(self, name)}

    def what_fixes_the_result(self) -> dict[str, Any]:
        """The fields that a resumed stage must share with its beginning."""
        found = asdict(self)
        for name in ("device", "workers", "tracker"):
            del found[name]
        return found

    def rate_factor(self, epoch: float, schedule: str | None = None) -> float:
        """The factor on the learning rate after `epoch` epochs, fractions included."""
        fraction = epoch / max(self.epochs, 1)
        warm = min(1.0, epoch / self.warmup) if self.warmup > 0 else 1.0
        return warm * rate_factor(schedule or self.schedule, fraction)


def recorded_plan(record: Mapping[str, Any], **settings: Any) -> TrainingPlan:
    """The plan in a lineage's record of a training, with these settings instead.

    By what that was executed is said anew: the record may be from another machine.

    Raises:
        SurgeryError: it is none; records come from files.
    """
    executed = Execution().execution()
    try:
        return TrainingPlan(**{**record["plan"], **executed, **settings})
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
