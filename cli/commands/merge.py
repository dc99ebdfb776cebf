"""`graphsurgery merge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Dataset, Model
from graphsurgery.cli.options import OPENING, PROOF, Opening, Output, Proof, Seed
from graphsurgery.cli.session import TRAINING, Training, TrainingSession, show_sizes
from graphsurgery.errors import SurgeryError
from graphsurgery.recipes.merging.plan import MergeWishes

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.recipes.outcome import Outcome, Result

_WISHES = MergeWishes()


def merge(
    first: Model,
    second: Model,
    /,
    *more: Model,
    data: Dataset,
    output: Output,
    onnx: Path | None = None,
    report: Path | None = None,
    wishes: Annotated[MergeWishes, Parameter(name="*", group="Merging")] = _WISHES,
    seed: Seed = 0,
    asked: Training = TRAINING,
    opening: Opening = OPENING,
    proof: Proof = PROOF,
) -> None:
    """Merge trained networks of one topology into one of the size of the first, and compare it with what it must beat.

    Parameters
    ----------
    first
        The parent whose size the result gets: a checkpoint, an .onnx file, or a state_dict (.pt or .safetensors)
        with --arch.
    second
        Another parent.
    more
        Further parents.
    data
        What they were trained on.
    onnx
        Also write the result as an ONNX file, compared and timed.
    report
        Also write an HTML report.
    """
    reads = [first, second, *more, data, opening.arch]
    if proof != PROOF and onnx is None:
        raise SurgeryError("merge: --rtol says how an .onnx file is proved; give --onnx merged.onnx")
    session = TrainingSession.of(asked, network=output, onnx=onnx, report=report, reads=reads)
    from graphsurgery.passes.concatenate import concatenate, side_by_side
    from graphsurgery.recipes.merging.classes import answering
    from graphsurgery.recipes.merging.heads import check_tasks, merge_tasks
    from graphsurgery.training.devices import end_processes

    screen, sources = session.screen, (first, second, *more)
    examples = opening.data(data, *sources, seed=seed)
    parents = [opening.graph(source, examples.input_shape) for source in sources]
    parents = answering(parents, wishes.classes, examples.classes)
    parents = _as_deep(screen, sources, parents)
    plan = wishes.plan(parents, seed)
    session.document |= {"parents": sources, "data": data, "plan": asdict(plan)}
    tasks = [examples, *(opening.data(spec, *sources, seed=seed) for spec in wishes.further_tasks(len(sources)))]
    session.document |= {"tasks": wishes.tasks} if len(tasks) > 1 else {}
    check_tasks(parents, tasks, sources)  # before the run folder is made
    if asked.dry_run:
        whole = side_by_side(parents) if len(tasks) > 1 else concatenate(parents)
        show_sizes(screen, [*zip(sources, parents, strict=True), ("concatenated", whole)])
        epochs = f"train {plan.epochs} epochs" if plan.trains else "average"
        session.would(f"{epochs} at {plan.budget:g} times the first parent and write {output}")
        return
    settings = {**session.document, "plan": plan.what_fixes_the_result()}
    books = session.begin("merge", settings, "the controls" if plan.controls else "")
    merged = merge_tasks(parents, tasks, plan, **books, made=session.keep)
    end_processes()
    _finish(session, merged, parents[0], onnx, proof)


def _finish(
    session: TrainingSession, merged: Result[Outcome], parent: ModelGraph, onnx: Path | None, proof: Proof
) -> None:
    """Write what was asked for, and show what was found out, whatever else goes wrong."""
    from graphsurgery.recipes.merging.merge import with_latency
    from graphsurgery.recipes.merging.work import GUESSES

    outcome = session.saved(merged)
    try:
        if onnx is not None and session.is_first:
            outcome = with_latency(outcome, merged.graph, parent, onnx, rtol=proof.rtol)
        session.report(outcome)
    finally:
        session.show(outcome)
        for row in outcome.rows:
            if row.note == GUESSES:
                session.screen.line("warning", f"{row.name}: {row.note}", "yellow")
    session.finish(outcome, *(("inspect", session.files["network"]) if onnx else ()))
    outcome.require("merge")


def _as_deep(screen: Screen, sources: Sequence[str], parents: Sequence[ModelGraph]) -> list[ModelGraph]:
    """The parents, the shallower ones deepened."""
    from graphsurgery.passes.deepen import as_deep
    from graphsurgery.recipes.merging.merge import deepened

    deep = as_deep(parents)
    screen.require(*deepened(parents, deep))
    for source, before, after in zip(sources, parents, deep, strict=True):
        added = len(after.lineage) - len(before.lineage)
        if added:
            screen.line("deeper", f"{source}: {added} parts repeated as the identity, to be as deep as the deepest")
    return deep
