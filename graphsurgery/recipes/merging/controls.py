"""What a merged network has to beat: the same epochs spent otherwise. Each is built before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.spec_text import is_function_spec, parse_spec
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.recipes.merging.plan import CONTROL, CONTROLS, LABELS, PARENT, training_record
from graphsurgery.recipes.merging.work import Merging
from graphsurgery.recipes.train import fresh
from graphsurgery.surgery.growth.fresh_weights import reinitialized
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.loop.plan import TrainingPlan, recorded_plan

Control = Callable[[], None]
"""Trains a network and writes its row."""


def controls(work: Merging) -> list[Control]:
    """The controls of a plan, ready to be trained.

    Raises:
        SurgeryError: one cannot be built as the first parent was.
    """
    makers = dict(zip(CONTROLS, (_longer, _faster, _another, _distilled, _wide, _mixed), strict=True))
    made = [makers[name](work) for name in work.plan.controls]
    return [control for control in made if control is not None]


def _longer(work: Merging) -> Control:
    graph, plan, note = _new(work, 1000)

    def train() -> None:
        _, effort = work.books.train(graph, _as_long(work, plan), "control-longer")
        work.books.measure(f"{CONTROL}longer", graph, effort, note)

    return train


def _faster(work: Merging) -> Control | None:
    """Nothing where the merge has the parents' rate."""
    graph, plan, _ = _new(work, 1000)
    rate = work.plan.fine_tuning.lr
    if not work.plan.trains or rate == plan.lr:
        return None

    def train() -> None:
        _, effort = work.books.train(graph, _as_long(work, replace(plan, lr=rate)), "control-faster")
        work.books.measure(f"{CONTROL}faster", graph, effort, f"the same at the merge's rate, {rate:g}")

    return train


def _another(work: Merging) -> Control:
    graph, plan, _ = _new(work, 2000)

    def train() -> None:
        books = work.books
        _, effort = books.train(graph, plan, "control-another")
        parents = [row for row in books.rows if row.name.startswith(PARENT)]
        best = max([*parents, books.measured("another", graph)], key=books.rank)
        total = work.all_parents + effort
        books.rows.append(
            replace(
                best,
                name=f"{CONTROL}best of {len(parents) + 1}",
                epochs=total.epochs,
                training_macs=total.macs,
                seconds=total.seconds,
                note="the parents and one more; the best on validation data",
            )
        )

    return train


def _distilled(work: Merging) -> Control | None:
    """Nothing where the merge trains nothing, whose epochs it could have."""
    if not work.plan.trains:
        return None
    graph = work.parents[0].copy()

    def train() -> None:
        plan = work.plan
        objective, examples = work.taught(work.parents, _usual(work))
        training = replace(plan.fine_tuning, epochs=plan.epochs, seed=plan.seed + 3000)
        _, effort = work.books.train(graph, training, "control-distilled", objective=objective, dataset=examples)
        note = "parent 1, learning from the ensemble for the epochs of the merge"
        work.books.measure(f"{CONTROL}distilled", graph, work.all_parents + effort, note)

    return train


def _wide(work: Merging) -> Control | None:
    """Nothing where the merge trains nothing."""
    if not work.plan.trains:
        return None
    wide = reinitialized(concatenate(work.parents), work.plan.seed + 4000)

    def train() -> None:
        books, plan = work.books, work.plan
        before = round(work.all_parents.epochs or 0) + plan.epochs - plan.fine_tuning.epochs
        _, effort = books.train(wide, replace(_plan(work, 4000), epochs=before), "control-wide")
        small = compress(wide, work.targets(wide))
        work.recalibrate(small)
        objective, examples = work.taught([wide], _usual(work))
        training = replace(plan.fine_tuning, seed=plan.seed + 4000)
        _, more = books.train(small, training, "control-wide-cut", objective=objective, dataset=examples)
        note = "new, as wide as the parents together; trained, cut and distilled in the same epochs"
        books.measure(f"{CONTROL}wide", small, effort + more, note)

    return train


def _mixed(work: Merging) -> Control | None:
    """Nothing where the merge learns from no mixtures."""
    if not work.mixes:
        return None
    graph, plan, note = _new(work, 5000)

    def train() -> None:
        objective, examples = work.taught((), replace(work.plan.imitation, labels=1.0))
        _, effort = work.books.train(
            graph, _as_long(work, plan), "control-mixed", objective=objective, dataset=examples
        )
        work.books.measure(f"{CONTROL}mixed", graph, effort, f"{note}, on mixtures of examples and of their labels")

    return train


def _usual(work: Merging) -> Imitation:
    """Distillation as everybody does it: on the examples as they are, and from more than labels."""
    imitation = work.plan.imitation
    return replace(imitation, labels=min(imitation.labels, LABELS), mixed=False)


def _as_long(work: Merging, plan: TrainingPlan) -> TrainingPlan:
    """A plan for as many epochs as everything together took."""
    return replace(plan, epochs=round(work.spent.epochs or plan.epochs))


def _new(work: Merging, offset: int) -> tuple[ModelGraph, TrainingPlan, str]:
    """One new network, how it is trained but for the epochs, and what its row says."""
    first, seed = work.parents[0], work.plan.seed + offset
    plan, record = _plan(work, offset), training_record(first)
    if record is None or work.all_parents.epochs is None:
        note = "the parents' training is unknown; trained as the fine-tuning, parents counted as 0 epochs"
        return reinitialized(first, seed), plan, note
    spec = str(record.get("spec"))
    note = "one network, trained as long as everything together"
    if is_function_spec(parse_spec(spec).name):
        # A checkpoint must not choose which Python file is executed.
        return reinitialized(first, seed), plan, f"{note}, from new weights of the first parent"
    try:
        return fresh(spec, work.books.data, seed), plan, note
    except SurgeryError as cause:
        raise type(cause)(
            f"merge: the control cannot be built as the first parent was: {cause}; or leave it out: --no-control"
        ) from cause


def _plan(work: Merging, offset: int) -> TrainingPlan:
    """How the first parent was trained, with a seed of its own."""
    record, seed = training_record(work.parents[0]), work.plan.seed + offset
    if record is None or work.all_parents.epochs is None:
        return replace(work.plan.fine_tuning, seed=seed)
    return recorded_plan(record, **work.plan.fine_tuning.execution(), seed=seed)
