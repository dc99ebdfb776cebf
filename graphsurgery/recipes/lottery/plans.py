"""How lottery tickets are drawn and supermasks found: plain data, which is the options of the commands too."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from graphsurgery.errors import SurgeryError
from graphsurgery.surgery.masks.plans import CONTROLS, CRITERION_NAMES, Restart, Selection
from graphsurgery.training.loop.plan import TrainingPlan

METHODS = ("learned", "top-k", "heuristic")
DENSITIES = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)


@dataclass(frozen=True)
class LotteryPlan:
    """How tickets are drawn.

    Attributes:
        training: of the dense network and of every round; its seed is that of the first network.
        rounds: how often weights are pruned; every round keeps the same share of those that live.
        density: share of the weights that lives after the last round, where their rate has the factor 1.
        one_shot: cut every density from the dense network at once.
        selection: which weights stay.
        restart: what a ticket starts from.
        rewind_to: the training step whose weights a ticket goes back to, where it is rewound.
        controls: also train under each mask: reinit, shuffle, constant, "constant, sign kept", reshuffle, rewind, …
        control_rounds: train controls in these rounds only; none stands for all.
        seeds: how many networks, from as many seeds; the table has means and deviations.
        stop_every: training steps between readings of the validation loss, for the early-stopping step; it is read once
            an epoch in any case.
    """

    training: TrainingPlan = field(default_factory=TrainingPlan)
    rounds: int = 12
    density: float = 0.07
    one_shot: bool = False
    selection: Selection = field(default_factory=Selection)
    restart: Restart = field(default_factory=Restart)
    rewind_to: int = 0
    controls: tuple[str, ...] = ()
    control_rounds: tuple[int, ...] = ()
    seeds: int = 1
    stop_every: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "seeds"):
            if getattr(self, name) < 1:
                raise SurgeryError(f"lottery: {name} is {getattr(self, name)}, expected at least 1")
        if not 0 < self.density < 1:
            raise SurgeryError(f"lottery: density is {self.density:g}, expected a share between 0 and 1")
        for name in ("rewind_to", "stop_every"):
            if getattr(self, name) < 0:
                raise SurgeryError(f"lottery: {name} is {getattr(self, name)}, expected a number of steps from 0")
        for name in self.controls:
            if name not in CONTROLS:
                raise SurgeryError(f"lottery: control {name!r} is unknown; choose from {'; '.join(CONTROLS)}")
        for number in self.control_rounds:
            if not 1 <= number <= self.rounds:
                raise SurgeryError(f"lottery: control round {number} is not one of the rounds 1 to {self.rounds}")
        if self.control_rounds and not self.controls:
            raise SurgeryError("lottery: control rounds are given, and no control; give --control reinit, or another")
        goes_back = (self.restart, *map(CONTROLS.__getitem__, self.controls))
        if self.rewind_to and all((start.kept, start.dead) == ("lr-rewind", "zero") for start in goes_back):
            raise SurgeryError(
                f"lottery: rewind_to is step {self.rewind_to}, and lr-rewind goes on from the last weights; give "
                "--kept rewind, or leave it out"
            )

    @property
    def trainings(self) -> int:
        """How many networks are trained, the dense ones and those of the controls among them."""
        controls = len(self.controls) * len(self.control_rounds or range(self.rounds))
        return self.seeds * (1 + self.rounds + controls)

    def what_fixes_the_result(self) -> dict[str, Any]:
        """The fields that a resumed lottery must share with its beginning."""
        return {**asdict(self), "training": self.training.what_fixes_the_result()}

    def keep(self, number: int) -> float:
        """The share of the weights that stay in a round, of those that live or, in one shot, of all."""
        return float(self.density ** ((number if self.one_shot else 1) / self.rounds))


@dataclass(frozen=True)
class SupermaskPlan:
    """How a mask is found.

    Attributes:
        method: scores learned by draws with straight-through gradients; the largest scores, for an exact density
            (top-k); or criteria that look at a network trained for it (heuristic).
        training: of the scores; with `heuristic`, of the network whose weights the criteria look at.
        constant: weights are the signs of the drawn ones times the standard deviation of their tensor; else the drawn
            ones.
        rescaled: multiply living weights by how many there are of each that lives; not with heuristic.
        through_factor: let gradients pass through that factor too.
        density: share of the weights that lives in every tensor, for top-k.
        criteria: for heuristic: which criteria are tried.
        densities: for heuristic: which densities are.
    """

    method: str = "learned"
    training: TrainingPlan = field(default_factory=TrainingPlan)
    constant: bool = True
    rescaled: bool = True
    through_factor: bool = False
    density: float = 0.5
    criteria: tuple[str, ...] = CRITERION_NAMES
    densities: tuple[float, ...] = DENSITIES

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SurgeryError(f"supermask: method is {self.method!r}; choose from {', '.join(METHODS)}")
        for density in (self.density, *self.densities):
            if not 0 < density <= 1:
                raise SurgeryError(f"supermask: density is {density:g}, expected a share above 0 and at most 1")
        for criterion in self.criteria:
            Selection(criterion)
        for name, method in sorted(_OF_ONE_METHOD.items()):
            if method != self.method and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise SurgeryError(f"supermask: {name} is for {method}, not for {self.method}; leave it out")
        if self.through_factor and not self.rescaled:
            raise SurgeryError("supermask: through_factor is of the factor that rescales; leave one of the two out")

    def what_fixes_the_result(self) -> dict[str, Any]:
        """The fields that a resumed search must share with its beginning."""
        return {**asdict(self), "training": self.training.what_fixes_the_result()}


_OF_ONE_METHOD = {"through_factor": "learned", "density": "top-k", "criteria": "heuristic", "densities": "heuristic"}
"""Settings that the other methods have no use for."""

_TRAININGS = {
    "learned": TrainingPlan(batch_size=250, optimizer="sgd", lr=100.0, schedule="constant"),
    "top-k": TrainingPlan(batch_size=128, optimizer="sgd", lr=0.1, schedule="cosine"),
    "heuristic": TrainingPlan(batch_size=60, optimizer="adam", lr=1.2e-3, schedule="constant"),
}


def training_for(method: str, **settings: Any) -> TrainingPlan:
    """How scores are trained by default, or the network that the criteria look at, with these settings instead.

    Args:
        method: see `SupermaskPlan`.
        settings: fields of `TrainingPlan`; None leaves the default.
    """
    return replace(_TRAININGS[method], **{name: value for name, value in settings.items() if value is not None})
