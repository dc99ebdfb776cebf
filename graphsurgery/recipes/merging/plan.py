"""How to merge: the ways, the two stages of training, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop.plan import Execution, TrainingPlan, recorded_plan

if TYPE_CHECKING:
    from graphsurgery.graph import ModelGraph
from graphsurgery.training.imitation import Imitation

WAYS = ("auto", "distil", "joint", "gates", "average", "soup")
CONTROLS = ("longer", "faster", "another", "distilled", "wide", "mixed")
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
        by: one of `WAYS`: `distil` lets the parent that is best on validation data learn from all parents together, on
            mixtures of examples; `joint` trains the concatenated network on labels and on what the parents say
            together, cuts it, and distils what it has learnt into the rest; `gates` closes gates while it trains, as
            the paper does; `average` aligns the parents' channels and averages their weights, without training; `soup`
            averages them as they are, and takes in what helps on validation data; `auto` tries soup, average, one way
            that trains and the parents, and takes what is best on validation data: it distils, but trains a regression
            jointly.
        wide: how the concatenated network trains: jointly, or while its gates close. `distil` has its epochs too.
        fine_tuning: how the cut network trains, or the parent that learns from all.
        imitation: how the networks that are learnt from count beside the labels, in `distil` and `joint`; only the
            first of them learns from mixtures. In `gates` only the weight of the labels counts, and only in the
            fine-tuning.
        gate_lr: learning rate of the gates, constant and without decay.
        budget: size of every space of the result, as a multiple of the first parent's.
        controls: which of `CONTROLS` are trained too: one network trained as long as everything together, `longer` at
            the parents' rate, `faster` at the merge's; `another` parent, and the best of all on validation data;
            parent 1 `distilled` from the ensemble for the epochs of the merge; a new network as `wide` as the parents
            together, trained, cut and distilled in the same epochs; beside a merge that learns from mixtures, one
            network that is trained on mixtures, `mixed`, as long as everything together. Averages, which train
            nothing, have no epochs to compare with but the parents', so that only `longer` and `another` stand beside
            them.
        parent_epochs: how long each parent was trained; None reads it from the parents' lineage.
        seed: of gates, shuffles and the controls' weights.
    """

    by: str = "auto"
    wide: TrainingPlan = _WIDE
    fine_tuning: TrainingPlan = _FINE_TUNING
    imitation: Imitation = field(default_factory=lambda: Imitation("kl", temperature=2.0, labels=LABELS, mixed=True))
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
        if self.by not in ("joint", "gates") and self.budget != 1:
            raise SurgeryError(
                f"merge: budget is {self.budget:g}, --by {self.by} keeps a parent's size; use --by joint"
            )
        if not self.gate_lr > 0:
            raise SurgeryError(f"merge: gate_lr is {self.gate_lr:g}; it must be above 0")
        if unknown := [name for name in self.controls if name not in CONTROLS]:
            raise SurgeryError(f"merge: unknown control {unknown[0]!r}; choose from {', '.join(CONTROLS)}")

    @property
    def trains(self) -> bool:
        """Whether it trains anything; averages only find the statistics of BatchNorms anew."""
        return self.by not in ("average", "soup")

    @property
    def epochs(self) -> int:
        """How long the merge itself trains."""
        return self.wide.epochs + self.fine_tuning.epochs

    def what_fixes_the_result(self) -> dict[str, Any]:
        """The fields that a resumed merge must share with its beginning."""
        trainings = {"wide": self.wide, "fine_tuning": self.fine_tuning}
        return {**asdict(self), **{name: plan.what_fixes_the_result() for name, plan in trainings.items()}}


def default_plan(
    parents: Sequence[ModelGraph], seed: int = 0, *, by: str = "auto", rate: float | None = None, **settings: Any
) -> MergePlan:
    """A plan for these parents: both stages train as the first parent did, but for their length and rate.

    The joint recipe takes half as many epochs for the concatenated network and one and a half times as many for the
    cut one, at `rate` times its learning rate: 2.5 where there is BatchNorm and SGD, else 1. `distil`, which has one
    network, trains it for the epochs of both. The paper's recipe takes as many for each; the gates close at 0.3 times
    its rate, held constant. All three cost two trainings of a parent.

    Args:
        parents: whose lineage tells how they were trained; else the plan has the defaults of `TrainingPlan`.
        seed: of everything that is drawn.
        by: see `MergePlan`; where a `budget` is set, `auto` is `joint`, as no other way but `gates` has one.
        rate: instead of that factor; of the paper's recipe it is 1.
        settings: other fields of `MergePlan`.

    Raises:
        SurgeryError: the lineage is damaged, or as for `MergePlan`.
    """
    if by == "auto" and settings.get("budget", 1) != 1:
        by = "joint"
    record = training_record(parents[0])
    trained = TrainingPlan(epochs=20, lr=0.03) if record is None else recorded_plan(record)
    if by == "gates":
        trained = trained if rate is None else replace(trained, lr=rate * trained.lr)
        wide = replace(trained, lr=0.3 * trained.lr, schedule="constant", warmup=0.0, keep_best=False)
        imitation = Imitation("kl", temperature=2.0, labels=1.0)
        return MergePlan(by, wide, trained, **{"imitation": imitation, "seed": seed, **settings})
    lr = (rate_for(parents[0], trained) if rate is None else rate) * trained.lr
    wide = _lasting(replace(trained, lr=lr, keep_best=False), JOINT)
    fine_tuning = _lasting(replace(trained, lr=lr), DISTILLED)
    imitation = Imitation("kl", temperature=2.0, labels=LABELS, mixed=by in ("auto", "distil"))
    return MergePlan(by, wide, fine_tuning, **{"imitation": imitation, "seed": seed, **settings})


@dataclass(frozen=True)
class MergeWishes(Execution):
    """What changes in the default plan of some parents.

    Attributes:
        by: how: distil lets the best parent, of those as large as the first, learn from all of them on mixtures of
            examples; joint trains the parents side by side, cuts the whole, and distils it into the rest; gates is the
            paper's recipe; average aligns channels and averages weights, soup averages them as they are, both without
            training; auto tries soup, average and distil (of a regression joint), and takes what is best on validation
            data, a parent if need be; with a budget it is joint.
        wide_epochs: epochs of the parents side by side: jointly, or while gates close.
        epochs: epochs of fine-tuning after the cut; distil, which cuts nothing, has those of both.
        rate: what the parents' learning rate is multiplied by; by default 2.5 with BatchNorm and SGD, else 1 (gates:
            1).
        lr: learning rate of both stages, instead; while gates close it is 0.3 times this.
        labels: weight of the labels beside what networks say, 0 to 1; 0 needs no labels. By default 0.5 (gates: 1).
        parent_epochs: how long each parent was trained; by default their files say.
        budget: size of every space of the result, as a multiple of the first parent's.
        classes: of parents that were trained on other classes, or on the same in another order, the class of each
            output; one list for each parent, between slashes, such as all/0-4,6-9.
        heads: one answers for all, or both are kept, of parents that were trained for different tasks; the data of the
            others are in tasks.
        tasks: with both heads, the data of every parent but the first, with spaces between.
        gate_lr: learning rate of the gates.
        controls: which controls are trained too, to compare with, separated by commas.
        control: train controls; without any it takes a fraction of the time, and nothing says whether it paid.
        optimizer: sgd, adam or adamw.
        batch_size: examples of one optimizer step.
        weight_decay: of all trainable parameters with two axes or more.
    """

    by: Literal["auto", "distil", "joint", "gates", "average", "soup"] = "auto"
    wide_epochs: int | None = None
    epochs: int | None = None
    rate: float | None = None
    lr: float | None = None
    labels: float | None = None
    parent_epochs: float | None = None
    budget: float = 1.0
    classes: str = ""
    heads: Literal["one", "both"] = "one"
    tasks: str = ""
    gate_lr: float | None = None
    controls: str = ",".join(CONTROLS)
    control: bool = True
    optimizer: str | None = None
    batch_size: int | None = None
    weight_decay: float | None = None

    def further_tasks(self, parents: int) -> list[str]:
        """The data of every parent but the first, where all heads are kept; else none.

        Raises:
            SurgeryError: there are not so many, or there are some and one head.
        """
        found = self.tasks.split()
        if self.heads == "one" and found:
            raise SurgeryError("--tasks: only with --heads both has every parent data of its own")
        if self.heads == "both" and len(found) != parents - 1:
            raise SurgeryError(
                f"--tasks: {len(found)} for {parents} parents; --data is the first parent's, give those of the others"
            )
        if self.heads == "both" and self.by not in ("auto", "joint"):
            raise SurgeryError(f"--heads both trains the parents together; --by {self.by} keeps one head, use joint")
        return found

    def plan(self, parents: Sequence[ModelGraph], seed: int) -> MergePlan:
        """The default plan of these parents with these changes.

        Raises:
            SurgeryError: as for `default_plan`.
        """
        controls = tuple(name.strip() for name in self.controls.split(",")) if self.control else ()
        settings = {"budget": self.budget, "controls": controls, "parent_epochs": self.parent_epochs}
        by = "joint" if self.heads == "both" else self.by
        plan = default_plan(parents, seed, by=by, rate=self.rate, **settings)
        imitation = replace(plan.imitation, **_given(labels=self.labels))
        wide_lr = None if self.lr is None else (0.3 if by == "gates" else 1) * self.lr
        names = ("optimizer", "batch_size", "weight_decay")
        both = {**self.execution(), **{name: getattr(self, name) for name in names}}
        wide = replace(plan.wide, **_given(**both, lr=wide_lr, epochs=self.wide_epochs))
        fine_tuning = replace(plan.fine_tuning, **_given(**both, lr=self.lr, epochs=self.epochs))
        changed = _given(gate_lr=self.gate_lr)
        return replace(plan, wide=wide, fine_tuning=fine_tuning, imitation=imitation, **changed)


def _given(**settings: Any) -> dict[str, Any]:
    """The settings that say something."""
    return {name: value for name, value in settings.items() if value is not None}


def rate_for(parent: ModelGraph, trained: TrainingPlan) -> float:
    """The factor on the learning rate of the parents."""
    from torch.nn.modules.batchnorm import _BatchNorm  # so that a command shows its help without torch

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
