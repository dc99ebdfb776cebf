"""`graphsurgery merge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from graphsurgery.cli.options import (
    OPENING,
    PROOF,
    SHOWN,
    WRITING,
    DryRun,
    Opening,
    Output,
    Proof,
    Seed,
    Shown,
    Writing,
    without_dry_run,
)
from graphsurgery.cli.running import RUNNING, Running
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.recipes.merging.plan import MergePlan
    from graphsurgery.recipes.outcome import Outcome


@Parameter(name="*", group="Merging")
@dataclass(frozen=True)
class Merging:
    """What changes in the default plan: both stages train as the first parent did."""

    by: Literal["auto", "joint", "gates", "average", "soup"] = "joint"
    """How: joint trains the parents side by side, cuts the whole, and distils it into the rest; gates is the paper's
    recipe; average aligns channels and averages weights, soup averages them as they are, both without training; auto
    tries all but the gates, and takes what is best on validation data, a parent if need be."""
    wide_epochs: int | None = None
    """Epochs of the parents side by side: jointly, or while gates close."""
    epochs: int | None = None
    """Epochs of fine-tuning after the cut."""
    rate: float | None = None
    """What the parents' learning rate is multiplied by; by default 2.5 with BatchNorm and SGD, else 1 (gates: 1)."""
    lr: float | None = None
    """Learning rate of both stages, instead; while gates close it is 0.3 times this."""
    labels: float | None = None
    """Weight of the labels beside what networks say, 0 to 1; 0 needs no labels. By default 0.5 (gates: 1)."""
    parent_epochs: float | None = None
    """How long each parent was trained; by default their files say."""
    budget: float = 1.0
    """Size of every space of the result, as a multiple of the first parent's."""
    gate_lr: float | None = None
    """Learning rate of the gates."""
    controls: str = "longer,faster,another,distilled,wide"
    """Which controls are trained too, to compare with, separated by commas."""
    control: Annotated[bool, Parameter(negative="--no-control")] = True
    """Train controls; without any it takes a fraction of the time, and nothing says whether it paid."""
    optimizer: str | None = None
    """sgd, adam or adamw."""
    batch_size: int | None = None
    """Examples of one optimizer step."""
    weight_decay: float | None = None
    """Of all trainable parameters with two axes or more."""
    mixed_precision: str | None = None
    """no, bf16 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda or any torch device."""

    def plan(self, parents: Sequence[ModelGraph], seed: int) -> MergePlan:
        """The default plan of these parents with these changes."""
        from dataclasses import replace

        from graphsurgery.recipes.merging.plan import default_plan

        controls = tuple(name.strip() for name in self.controls.split(",")) if self.control else ()
        settings = {"budget": self.budget, "controls": controls, "parent_epochs": self.parent_epochs}
        plan = default_plan(parents, seed, by=self.by, rate=self.rate, **settings)
        if self.gate_lr is not None:
            plan = replace(plan, gate_lr=self.gate_lr)
        if self.labels is not None:
            plan = replace(plan, imitation=replace(plan.imitation, labels=self.labels))
        names = ("optimizer", "batch_size", "weight_decay", "mixed_precision", "device")
        both = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        wide, fine_tuning = dict(both), dict(both)
        if self.lr is not None:
            wide["lr"], fine_tuning["lr"] = (0.3 if self.by == "gates" else 1) * self.lr, self.lr
        if self.wide_epochs is not None:
            wide["epochs"] = self.wide_epochs
        if self.epochs is not None:
            fine_tuning["epochs"] = self.epochs
        return replace(plan, wide=replace(plan.wide, **wide), fine_tuning=replace(plan.fine_tuning, **fine_tuning))


_MERGING = Merging()


def merge(
    first: str,
    second: str,
    /,
    *more: str,
    data: str,
    output: Output,
    onnx: Path | None = None,
    report: Path | None = None,
    merging: Merging = _MERGING,
    run: Running = RUNNING,
    seed: Seed = 0,
    dry_run: DryRun = False,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    proof: Proof = PROOF,
    shown: Shown = SHOWN,
) -> None:
    """Merge trained networks of one topology into one of the size of the first, and compare it with what it must beat.

    Parameters
    ----------
    first
        The parent whose size the result gets: a checkpoint, or a state_dict with --arch.
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
    writing.allow(network=output, onnx=onnx, report=report, reads=reads)
    if proof != PROOF and onnx is None:
        raise SurgeryError("merge: --rtol says how an .onnx file is proved; give --onnx merged.onnx")
    from dataclasses import asdict

    from graphsurgery.cli.output import Screen
    from graphsurgery.cli.session import Session, show_sizes
    from graphsurgery.passes.concatenate import concatenate
    from graphsurgery.recipes.merging.merge import merge as recipe
    from graphsurgery.surgery.merging.matching import match_nodes
    from graphsurgery.training.data.loading import check_fits
    from graphsurgery.training.devices import end_processes

    screen = Screen(shown)
    examples = opening.data(data, first, second, *more, seed=seed)
    sources = (first, second, *more)
    parents = [opening.graph(source, examples.input_shape) for source in sources]
    parents = _as_deep(screen, sources, parents)
    plan = merging.plan(parents, seed)
    document: dict[str, Any] = {"parents": sources, "data": data, "plan": asdict(plan)}
    # Before the run folder is made.
    for position, (source, parent) in enumerate(zip(sources, parents, strict=True), 1):
        check_fits(examples, parent.module, name=source)
        match_nodes(parents[0], parent, position)
    if dry_run:
        show_sizes(screen, [*zip(sources, parents, strict=True), ("concatenated", concatenate(parents))])
        epochs = f"train {plan.wide.epochs} + {plan.fine_tuning.epochs} epochs" if plan.trains else "average"
        screen.line("dry run", f"would {epochs} at {plan.budget:g} times the first parent and write {output}")
        screen.finish(document, *without_dry_run())
        return
    settings = {"command": "merge", "parents": sources, "data": data, "plan": _comparable(asdict(plan))}
    controls = "the controls" if plan.controls else ""
    session = Session(screen, document, output, controls=controls, onnx=onnx, report=report)
    folder = run.open(screen, settings)
    merged = recipe(parents, examples, plan, run=folder, reporter=screen.reporter(), made=session.keep)
    end_processes()
    outcome = session.saved(merged)
    try:
        if onnx is not None and session.is_first:
            outcome = _delivered(merged.graph, parents[0], onnx, outcome, proof)
        session.report(outcome)
    finally:  # what was found out is shown, whatever else goes wrong
        session.show(outcome)
        for row in outcome.rows:
            if row.name.startswith("parent") and row.note:
                screen.line("warning", f"{row.name}: {row.note}", "yellow")
    session.finish(outcome, *(("inspect", output) if onnx else ("export", output, "-o", output.with_suffix(".onnx"))))
    _fail_where_a_check_fails(outcome.checks)


def _delivered(graph: ModelGraph, parent: ModelGraph, path: Path, outcome: Outcome, proof: Proof) -> Outcome:
    """What was found out, with the latency of the merged network and of the first parent."""
    from dataclasses import replace

    from graphsurgery.recipes.delivery.deliver import deliver

    latency = deliver(graph, path, name="merged", against={"parent 1": parent}, rtol=proof.rtol).latency
    timed = {name: found.median for name, found in latency.items()}
    return replace(outcome, rows=tuple(replace(row, latency=timed.get(row.name, row.latency)) for row in outcome.rows))


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


def _comparable(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan without what a resumed merge may change."""
    return {key: _comparable(part) if isinstance(part, dict) else part for key, part in plan.items() if key != "device"}


def _fail_where_a_check_fails(checks: Any) -> None:
    from graphsurgery.errors import CheckFailedError

    failing = [check.name for check in checks if not check.holds]
    if failing:
        raise CheckFailedError(f"merge: {len(failing)} checks fail: {', '.join(failing)}; see the lines above")
