"""Merge: one network, of the size of one parent, out of several trained ones; next to it what it has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.passes.deepen import as_deep
from graphsurgery.recipes.contracts.edit_checks import unchanged
from graphsurgery.recipes.delivery.deliver import deliver
from graphsurgery.recipes.experiment import Experiment
from graphsurgery.recipes.merging.averaging import by_average, by_soup, unlike_sizes
from graphsurgery.recipes.merging.closing_gates import by_gates
from graphsurgery.recipes.merging.controls import controls
from graphsurgery.recipes.merging.distilling import by_distilling
from graphsurgery.recipes.merging.joint import by_joint
from graphsurgery.recipes.merging.plan import CONTROL, PARENT, MergePlan, default_plan
from graphsurgery.recipes.merging.work import GUESSES, Merging
from graphsurgery.recipes.outcome import Check, Outcome, Result, Row, comparison
from graphsurgery.recipes.train import curves_of
from graphsurgery.surgery.merging.averages import average
from graphsurgery.surgery.merging.matching import match_nodes
from graphsurgery.training.data.dataset import Data, size_of
from graphsurgery.training.data.loading import check_fits
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives.tasks import Objective, rank_of

_WAYS = {"distil": by_distilling, "joint": by_joint, "gates": by_gates, "average": by_average, "soup": by_soup}


def merge(
    parents: Sequence[ModelGraph],
    data: Data,
    plan: MergePlan | None = None,
    *,
    run: Run | None = None,
    reporter: Reporter | None = None,
    made: Callable[[ModelGraph], None] | None = None,
) -> Result[Outcome]:
    """Merge trained networks of one topology into one.

    Args:
        parents: two or more typed networks; widths may differ. They are not modified. Where one has more blocks than
            another of its family, the shallower is deepened first; its outputs stay.
        data: selection looks at `data.validation`; `data.test` is only measured.
        plan: how; by default `default_plan` of the parents.
        run: folder for metrics and states; an interrupted merge goes on from it.
        reporter: told about progress.
        made: given the merged network as soon as it is there, before the controls are trained.

    Raises:
        SurgeryError: the parents do not fit together or do not fit the data, a control cannot be built, or training
            fails.
        CheckFailedError: a pass does not hold its contract on these networks: the deepened parents, the aligned ones,
            the concatenated network, the gated or the cut one; what comes after it is not trained. Gates that do not
            close to the budget are a row of the outcome.
    """
    plan = plan or default_plan(parents)
    deep = as_deep(parents)
    checks, parents = deepened(parents, deep), deep
    _check(parents, data, plan)
    books = Experiment(data, device=plan.fine_tuning.device, run=run, reporter=reporter)
    for check in checks:
        books.require(check)
    for number, parent in enumerate(parents, 1):
        books.curves.extend(curves_of(parent, f"{PARENT}{number}"))
    work = Merging(parents, plan, books)
    compared = controls(work)  # what cannot be built is found before anything is trained
    work.measure_parents()
    _measure_plain_average(work)
    graph = _best(work) if plan.by == "auto" else _WAYS[plan.by](work)
    if plan.by != "auto":
        books.measure("merged", graph, work.spent, _note(work))
    if made is not None:
        made(graph)
    for control in compared:
        control()
    outcome = books.outcome(
        f"{len(parents)} networks merged on {data.name}",
        verdict(books.rows, books.objective),
        asdict(plan),
        gates=tuple(work.gate_epochs),
        origins=work.origins,
    )
    return Result(graph, outcome)


def check_parents(parents: Sequence[ModelGraph], data: Data, names: Sequence[str]) -> None:
    """Check that all take the data, and have the topology of the first.

    Raises:
        SurgeryError: one does not.
    """
    for position, (name, parent) in enumerate(zip(names, parents, strict=True), 1):
        check_fits(data, parent.module, name=name)
        if position > 1:
            match_nodes(parents[0], parent, position)


def with_latency(outcome: Outcome, graph: ModelGraph, parent: ModelGraph, path: Path, *, rtol: float) -> Outcome:
    """Write the merged network as an ONNX file; the outcome with the proof, its latency and that of parent 1."""
    return deliver(graph, path, name="merged", against={"parent 1": parent}, rtol=rtol).recorded(outcome)


def _check(parents: Sequence[ModelGraph], data: Data, plan: MergePlan) -> None:
    """Find what does not fit together before anything is measured."""
    check_parents(parents, data, [f"parent {position}" for position, _ in enumerate(parents, 1)])
    unlike = unlike_sizes(parents)
    if unlike is not None and not plan.trains:
        raise SurgeryError(
            f"merge: parents 1 and {unlike} have spaces of unlike sizes, whose weights have no average; "
            f"--by {plan.by} needs equal ones, --by joint does not"
        )


def deepened(before: Sequence[ModelGraph], after: Sequence[ModelGraph]) -> list[Check]:
    """The contract of each parent that has become deeper."""
    pairs = zip(before, after, strict=True)
    return [
        unchanged(f"deepened = original, parent {position}", old, new)
        for position, (old, new) in enumerate(pairs, 1)
        if new is not old
    ]


def _note(work: Merging) -> str:
    """What the row of a network that was trained says."""
    networks = {"joint": "what the joint network says"} | dict.fromkeys(("distil", "gates"), "what the parents say")
    if work.way not in networks:
        return ""
    imitation = work.plan.imitation
    labels = ["labels"] if imitation.labels > 0 else []
    learnt = [networks[work.way]] if imitation.labels < 1 else []
    mixed = ", of mixtures of examples" if work.mixes else ""
    return f"fine-tuned on {' and '.join(labels + learnt)}{mixed}"


def _best(work: Merging) -> ModelGraph:
    """What is best on validation data: a parent, a soup, the aligned average, or what has been trained."""
    books = work.books
    best = work.best_parent()
    rows = [row for row in books.rows if row.name == f"{PARENT}{best + 1}"]
    found: list[tuple[Row, ModelGraph]] = [(rows[0], work.lineage(work.parents[best], chosen=rows[0].name))]
    cheap = (by_soup, by_average) if unlike_sizes(work.parents) is None else ()
    for way in cheap:
        graph = way(work)
        found.append((books.rows[-1], graph))
    graph = _WAYS[work.way](work)
    trained = (books.measure("distilled", graph, work.spent, _note(work)), graph)
    # Of equal scores no loss decides: softened answers make a network less sure, and no worse.
    row, graph = max([trained, *found], key=lambda pair: books.rank(pair[0])[0])
    note = f"{row.name}: the best of {len(found) + 1} on validation data"
    open_ = "" if row is trained[0] else _left_open(row, trained[0], work)
    books.rows.append(replace(row, name="merged", note=f"{note}{open_}"))
    return graph


def _left_open(best: Row, trained: Row, work: Merging) -> str:
    """What is said where so few examples do not tell that what was trained is worse: to one standard error.

    Source: Agresti and Coull, "Approximate is better than 'exact' for interval estimation of binomial proportions",
    1998, which adds two examples of either kind.
    """
    metric, count = work.books.objective.score, size_of(work.books.data.validation)
    if metric != "accuracy":
        return ""
    share = (best.validation[metric] * count + 2) / (count + 4)
    error = math.sqrt(share * (1 - share) / (count + 4))
    if best.validation[metric] - trained.validation[metric] > error:
        return ""
    return f", whose {count} examples tell ±{100 * error:.1f} points; --by {work.way} takes what has learnt"


def _measure_plain_average(work: Merging) -> None:
    """The average of weights as they come, where the parents have such."""
    try:
        mean = average(work.parents)
    except SurgeryError:
        return
    work.books.measure("weight average", mean, work.all_parents, "no alignment of channels")


def verdict(rows: Sequence[Row], objective: Objective) -> str:
    """One plain sentence on whether merging paid, by the test metric: the best parent, and the strongest control."""
    metric = objective.score

    def score(row: Row) -> float:
        return rank_of(row.test[metric], higher_is_better=objective.higher_is_better)

    def strongest(kind: str) -> Row | None:
        return max((row for row in rows if row.name.startswith(kind)), key=score, default=None)

    merged = next(row for row in rows if row.name == "merged")
    parent, control = strongest(PARENT), strongest(CONTROL)
    against = {} if parent is None else {"the best parent": parent.test[metric]}
    if control is not None:
        against[f"the strongest control ({control.name.removeprefix(CONTROL)})"] = control.test[metric]
    sentence = comparison("the merged network", merged.test[metric], against, objective)
    return f"{sentence}{_warning([row.name for row in rows if row.note == GUESSES])}"


def _warning(guessing: Sequence[str]) -> str:
    """A sentence on parents that have nothing to give; empty where all have."""
    if not guessing:
        return ""
    names = " and ".join(guessing)
    return f" Warning: {names} {'is' if len(guessing) == 1 else 'are'} no better than guessing on this data."
