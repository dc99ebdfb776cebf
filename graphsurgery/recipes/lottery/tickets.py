"""What was found out about lottery tickets: plain data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from graphsurgery.recipes.outcome import Outcome
from graphsurgery.surgery.masks.mask_set import MaskSet

TICKET = "ticket"


@dataclass(frozen=True)
class Point:
    """One training.

    Attributes:
        seed: which network, from 0.
        round: 0 is the dense network.
        name: `ticket`, or which control.
        density: the share of all weights that live.
        validation, test: metrics at the end of the training (of its best epoch where the plan says so).
        stop: the optimizer step of the lowest validation loss that was read.
    """

    seed: int
    round: int
    name: str
    density: float
    validation: Mapping[str, float]
    test: Mapping[str, float]
    stop: int


@dataclass(frozen=True, kw_only=True)
class Lottery(Outcome):
    """Everything that was found out; a row has the means over the seeds, a check is of the worst ticket.

    Attributes:
        points: all trainings.
        masks: those of each seed and round.
    """

    points: tuple[Point, ...]
    masks: Mapping[tuple[int, int], MaskSet]

    @property
    def names(self) -> list[str]:
        """The ticket and the controls."""
        return list(dict.fromkeys(point.name for point in self.points))

    @property
    def rounds(self) -> list[int]:
        """The rounds, the dense network first."""
        return sorted({point.round for point in self.points})

    def of(self, number: int, name: str = TICKET) -> list[Point]:
        """The trainings of a round, one for each seed; of the dense network for round 0, whatever the name."""
        return [p for p in self.points if p.round == number and p.name == (name if number else TICKET)]

    @cached_property
    def chosen(self) -> int | None:
        """The last round whose mean validation metric is not worse than the dense network's; None where all are."""
        sign = 1 if self.higher_is_better else -1
        dense = sign * self.mean(0, test=False)[0]
        good = [number for number in self.rounds[1:] if sign * self.mean(number, test=False)[0] >= dense]
        return max(good, default=None)

    @property
    def delivered(self) -> int:
        """The round whose ticket is given out: the chosen one, else the last."""
        return self.rounds[-1] if self.chosen is None else self.chosen

    def mean(self, number: int, name: str = TICKET, *, test: bool = True) -> tuple[float, float]:
        """Mean and standard deviation of the metric over the seeds; no numbers where nothing was trained."""
        return mean_and_deviation([(p.test if test else p.validation)[self.metric] for p in self.of(number, name)])

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form, with the trainings; without the masks, and without the epochs of each training."""
        found = {key: value for key, value in super().as_dict().items() if key != "curves"}
        return {**found, "chosen": self.chosen, "points": [asdict(point) for point in self.points]}


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean, and standard deviation of a sample, which is no number for fewer than two values."""
    if not values:
        return math.nan, math.nan
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan
