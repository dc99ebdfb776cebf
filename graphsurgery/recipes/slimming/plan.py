"""How a slimmable network is trained: plain data, which is the command's options too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop.plan import TrainingPlan


@dataclass(frozen=True)
class SlimPlan:
    """How a network is trained for every width.

    Attributes:
        training: the training.
        min_width: the smallest share of every space.
        round_to: numbers of channels become multiples of this.
        widths: how many widths each step trains.
        rule: the widest, the narrowest and random ones (sandwich); or, as controls, random ones or only the widest.
        distil: narrow networks learn what the widest says in the same step.
        warmup: fraction of the training in which they learn labels before.
        sort: important channels first, where the network is trained already.
        switchable: only these widths and the whole, each with BatchNorms of its own, and all trained in every step;
            none: any width, and shared BatchNorms.
    """

    training: TrainingPlan
    min_width: float = 0.25
    round_to: int = 1
    widths: int = 4
    rule: str = "sandwich"
    distil: bool = True
    warmup: float = 0.5
    sort: bool = True
    switchable: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.training.keep_best:
            raise SurgeryError(
                "slim: keep_best is not for it: until it is trained, the statistics of BatchNorms are those of all "
                "widths together, and no validation score says which epoch is best; leave it out"
            )

        if self.warmup != SlimPlan.warmup and not (self.distil and self.rule == "sandwich"):
            raise SurgeryError(
                "slim: --distil-after says when narrow networks begin to learn from the widest, and here they do not; "
                "leave it out"
            )
        if self.widths != SlimPlan.widths and (self.switchable or self.rule == "widest"):
            what = "all switchable widths are" if self.switchable else "only the widest is"
            raise SurgeryError(f"slim: widths is {self.widths}, and {what} trained in each step; leave it out")

    def what_fixes_the_result(self) -> dict[str, Any]:
        """The fields that a resumed training must share with its beginning."""
        return {**asdict(self), "training": self.training.what_fixes_the_result()}
