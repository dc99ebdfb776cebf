"""`graphsurgery slim`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from graphsurgery.cli.options import OPENING, SHOWN, WRITING, DryRun, Opening, Output, Shown, Writing, without_dry_run
from graphsurgery.cli.running import RUNNING, Running
from graphsurgery.training.loop.plan import TrainingPlan

if TYPE_CHECKING:
    from graphsurgery.recipes.slimming.slimmable import SlimPlan


@Parameter(name="*", group="Slimming")
@dataclass(frozen=True)
class Slimming:
    """Which widths are trained, and how."""

    min_width: float = 0.25
    """The smallest share of every space."""
    round_to: int = 1
    """Numbers of channels become multiples of this."""
    widths: int = 4
    """How many widths each step trains."""
    rule: Literal["sandwich", "random", "widest"] = "sandwich"
    """The widest, the narrowest and random ones; or, as controls, random ones or only the widest."""
    distil: Annotated[bool, Parameter(negative="--no-distil")] = True
    """Narrow networks learn what the widest says in the same step."""
    distil_after: float = 0.5
    """Fraction of the training in which they learn labels before."""
    sort: Annotated[bool, Parameter(negative="--no-sort")] = True
    """Important channels first."""
    switchable: Annotated[tuple[float, ...], Parameter(negative="", consume_multiple=True)] = ()
    """Only these widths and the whole, each with BatchNorms of its own, and all trained in every step."""

    def plan(self, training: TrainingPlan) -> SlimPlan:
        """The plan of the recipe."""
        from graphsurgery.recipes.slimming.slimmable import SlimPlan

        return SlimPlan(
            training,
            min_width=self.min_width,
            round_to=self.round_to,
            widths=self.widths,
            rule=self.rule,
            distil=self.distil,
            warmup=self.distil_after,
            sort=self.sort,
            switchable=self.switchable,
        )


_SLIMMING, _TRAINING = Slimming(), TrainingPlan()


def slim(
    model: str,
    /,
    *,
    data: str,
    output: Output,
    report: Path | None = None,
    slimming: Slimming = _SLIMMING,
    training: Annotated[TrainingPlan, Parameter(name="*", group="Training")] = _TRAINING,
    run: Running = RUNNING,
    dry_run: DryRun = False,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    shown: Shown = SHOWN,
) -> None:
    """Train one set of weights that works at every width.

    Parameters
    ----------
    model
        A model spec, or a trained checkpoint.
    data
        What it learns.
    report
        Also write an HTML report.
    """
    writing.allow(network=output, report=report, reads=[model, data, opening.arch])
    from dataclasses import asdict

    from graphsurgery.cli.output import Screen
    from graphsurgery.cli.session import Session, show_sizes
    from graphsurgery.recipes.slimming.slimmable import save_slimmable, train_slimmable, usual_widths
    from graphsurgery.surgery.channels.slimming import Slimmable
    from graphsurgery.training.data.loading import check_fits

    screen = Screen(shown)
    examples = opening.data(data, model, seed=training.seed)
    graph = opening.graph(model, examples.input_shape, to_train=True)
    check_fits(examples, graph.module, name=model)
    plan = slimming.plan(training)
    document: dict[str, Any] = {"model": model, "data": data, "plan": asdict(plan)}
    if dry_run:
        slimmable = Slimmable(graph, min_width=plan.min_width, round_to=plan.round_to, switchable=plan.switchable)
        show_sizes(screen, [(f"{width:g}", slimmable.extract(width)) for width in usual_widths(slimmable)], "width")
        trained = len(slimmable.switchable) or plan.widths
        screen.line("dry run", f"would train {training.epochs} epochs of {trained} widths and write {output}")
        screen.finish(document, *without_dry_run())
        return
    settings = {"command": "slim", **document, "plan": {**asdict(plan), "training": training.what_fixes_the_result()}}
    folder = run.open(screen, settings)
    found = train_slimmable(graph, examples, plan, run=folder, reporter=screen.reporter()).outcome
    session = Session(screen, document, output, report=report)
    outcome = session.with_files(found)
    save_slimmable(found.statistics, output, **document, metrics=[asdict(row) for row in outcome.rows])
    session.report(outcome)
    session.show(outcome)
    narrow = f"{outcome.widths[len(outcome.widths) // 2]:g}"
    session.finish(outcome, "export", output, "--width", narrow, "-o", output.with_suffix(".onnx"))
