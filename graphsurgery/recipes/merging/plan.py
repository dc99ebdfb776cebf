"""How to merge: the ways, the two stages of training, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.training.loop.plan import TrainingPlan, recorded_plan
from graphsurgery.training.objectives.imitation import Imitation

WAYS = ("auto", "joint", "gates", "average", "soup")
CONTROLS = ("longer", "faster", "another", "distilled", "wide")
PARENT, CONTROL = "parent ", "control: "
"""How the rows of parents and controls begin."""
LABELS = 0.5
"""The weight of labels beside what a network says."""
RATE = 2.5
"""What the parents' learning rate is multiplied by where BatchNorm makes the scale of weights mean nothing."""

JOINT, DISTILLED = 0.5, 1.5
"""How long the two stages of the joint recipe are, in trainings of the first parent."""

_WIDE = TrainingPlan(epochs=10, lr=0.03)
_FINE_TUNING = TrainingPlan(epochs=30, lr=0.03)


@dataclass(frozen=True)
class MergePlan:
    """How to merge.

    Attributes:
        by: one of `WAYS`: `joint` trains the concatenated network on labels and on what the parents say together, cuts
            it, and distils what it has learnt into the rest; `gates` closes gates while it trains, as the paper does;
            `average` aligns the parents' channels and averages their weights, without training; `soup` averages them
            as they are, and takes in what helps on validation data; `auto` tries all but the gates, and the parents,
            and takes what is best on validation data.
        wide: how the concatenated network trains: jointly, or while its gates close.
        fine_tuning: how the cut network trains.
        imitation: how the networks that are learnt from count beside the labels, in `joint`; in `gates` only the
            weight of the labels counts, and only in the fine-tuning.
        gate_lr: learning rate of the gates, constant and without decay.
        budget: size of every space of the result, as a multiple of the first parent's.
        controls: which of `CONTROLS` are trained too: one network trained as long as everything together, `longer` at
            the parents' rate, `faster` at the merge's; `another` parent, and the best of all on validation data;
            parent 1 `distilled` from the ensemble for the epochs of the merge; a new network as `wide` as the parents
            together, trained, cut and distilled in the same epochs. Averages, which train nothing, have no epochs to
            compare with but the parents', so that only `longer` and `another` stand beside them.
        parent_epochs: how long each parent was trained; None reads it from the parents' lineage.
        seed: of gates, shuffles and the controls' weights.
    """

    by: str = "joint"
    wide: TrainingPlan = _WIDE
    fine_tuning: TrainingPlan = _FINE_TUNING
    imitation: Imitation = field(default_factory=lambda: Imitation("kl", temperature=2.0, labels=LABELS))
    gate_lr: float = 0.5
    budget: float = 1.0
    controls: tuple[str, ...] = CONTROLS
    parent_epochs: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise SurgeryError(f"merge: by is {self.by!r}; choose from {', '.join(WAYS)}")
        if not self.budget > 0:
            raise SurgeryError(
                f"merge: budget is {self.budget:g}, expected a multiple of the first parent's size above 0"
            )
        if unknown := [name for name in self.controls if name not in CONTROLS]:
            raise SurgeryError(f"merge: unknown control {unknown[0]!r}; choose from {', '.join(CONTROLS)}")

    @property
    def trains(self) -> bool:
        """Whether it trains anything; averages only find the statistics of BatchNorms anew."""
        return self.by not in ("average", "soup")


def default_plan(
    parents: Sequence[ModelGraph], seed: int = 0, *, by: str = "joint", rate: float | None = None, **settings: Any
) -> MergePlan:
    """A plan for these parents: both stages train as the first parent did, but for their length and rate.

    The joint recipe takes half as many epochs for the concatenated network and one and a half times as many for the
    cut one, at `rate` times its learning rate: 2.5 where there is BatchNorm and SGD, else 1. The paper's recipe takes
    as many for each; the gates close at 0.3 times its rate, held constant. Both cost two trainings of a parent.

    Args:
        parents: whose lineage tells how they were trained; else the plan has the defaults of `TrainingPlan`.
        seed: of everything that is drawn.
        by: see `MergePlan`.
        rate: instead of that factor.
        settings: other fields of `MergePlan`.

    Raises:
        SurgeryError: the lineage is damaged, or as for `MergePlan`.
    """
    record = training_record(parents[0])
    trained = TrainingPlan(epochs=20, lr=0.03) if record is None else recorded_plan(record)
    if by == "gates":
        wide = replace(trained, lr=0.3 * trained.lr, schedule="constant", warmup=0.0, keep_best=False)
        imitation = Imitation("kl", temperature=2.0, labels=1.0)
        return MergePlan(by, wide, trained, **{"imitation": imitation, "seed": seed, **settings})
    lr = (rate_for(parents[0], trained) if rate is None else rate) * trained.lr
    wide = _lasting(replace(trained, lr=lr, keep_best=False), JOINT)
    return MergePlan(by, wide, _lasting(replace(trained, lr=lr), DISTILLED), **{"seed": seed, **settings})


def rate_for(parent: ModelGraph, trained: TrainingPlan) -> float:
    """The factor on the learning rate of the parents."""
    normed = any(isinstance(module, _BatchNorm) for module in parent.module.modules())
    return RATE if normed and trained.optimizer == "sgd" else 1.0


def _lasting(plan: TrainingPlan, factor: float) -> TrainingPlan:
    """A plan of so many times the epochs."""
    return replace(plan, epochs=max(1, round(factor * plan.epochs)) if plan.epochs else 0)


def training_record(graph: ModelGraph) -> Mapping[str, Any] | None:
    """The last training in a network's lineage."""
    return next((r for r in reversed(graph.lineage) if r.get("pass") == "train"), None)


def trained_epochs(graph: ModelGraph) -> float | None:
    """How long a network was trained, as far as its lineage tells."""
    record = training_record(graph)
    return None if record is None else float(recorded_plan(record).epochs)
