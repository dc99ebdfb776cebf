"""`graphsurgery grow`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from graphsurgery.cli.growing import DEEPENING, WIDENING, Deepening, Widening, show_growth, show_places
from graphsurgery.cli.options import (
    OPENING,
    SHOWN,
    WRITING,
    DryRun,
    Opening,
    Output,
    Seed,
    Shown,
    Writing,
    without_dry_run,
)
from graphsurgery.cli.running import RUNNING, Running

if TYPE_CHECKING:
    pass


@Parameter(name="*", group="Training")
@dataclass(frozen=True)
class Continuing:
    """How the grown network and its controls train: as the teacher did, at a tenth of its rate."""

    epochs: int = 5
    """Epochs of each."""
    lr: float | None = None
    """Learning rate of all but the new network, which has the teacher's."""
    control: Annotated[bool, Parameter(negative="--no-control")] = True
    """Also train the same architecture from scratch and with random padding, and the teacher for as long."""
    device: str = "auto"
    """auto, cpu, cuda or any torch device."""

    def settings(self) -> dict[str, Any]:
        """What changes in the plan that the teacher was trained with."""
        found = {"epochs": self.epochs, "device": self.device}
        return found if self.lr is None else {**found, "lr": self.lr}


_CONTINUING = Continuing()


def grow(
    teacher: str,
    /,
    *,
    data: str,
    output: Output,
    report: Path | None = None,
    widening: Widening = WIDENING,
    deepening: Deepening = DEEPENING,
    training: Continuing = _CONTINUING,
    run: Running = RUNNING,
    seed: Seed = 0,
    dry_run: DryRun = False,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    shown: Shown = SHOWN,
) -> None:
    """Widen and deepen a trained network, train it on, and compare it with what it must beat.

    Parameters
    ----------
    teacher
        A trained checkpoint, or a state_dict with --arch.
    data
        What it was trained on.
    report
        Also write an HTML report.
    """
    writing.allow(network=output, report=report, reads=[teacher, data, widening.like, opening.arch])
    from graphsurgery.cli.output import Screen
    from graphsurgery.cli.session import Session
    from graphsurgery.recipes.grow import CONTROLS, Growth, default_plan, grown
    from graphsurgery.recipes.grow import grow as recipe
    from graphsurgery.training.data.loading import check_fits

    screen = Screen(shown)
    examples = opening.data(data, teacher, seed=seed)
    growth = Growth(**widening.options(opening, examples.input_shape), **deepening.options(), seed=seed)
    graph = opening.graph(teacher, examples.input_shape)
    check_fits(examples, graph.module, name=teacher)
    plan = default_plan(graph, growth, controls=CONTROLS if training.control else (), **training.settings())
    document: dict[str, Any] = {"teacher": teacher, "data": data, "growth": growth.as_dict()}
    if dry_run:
        if growth.after == ("auto",):
            show_places(screen, graph)
        document |= show_growth(screen, graph, grown(graph, growth))
        networks = 1 + len(plan.controls)
        screen.line("dry run", f"would train {networks} networks for {plan.training.epochs} epochs and write {output}")
        screen.finish(document, *without_dry_run())
        return
    settings = {
        "command": "grow",
        **document,
        "training": plan.training.what_fixes_the_result(),
        "scratch": plan.scratch.what_fixes_the_result(),
        "controls": list(plan.controls),
    }
    folder = run.open(screen, settings)

    controls = "the controls" if plan.controls else ""
    session = Session(screen, document, output, controls=controls, report=report)
    result = recipe(graph, examples, plan, run=folder, reporter=screen.reporter(), made=session.keep)
    document |= show_growth(screen, graph, result.graph)
    outcome = session.saved(result)
    session.report(outcome)
    session.show(outcome)
    session.finish(outcome, "export", output, "-o", output.with_suffix(".onnx"))
