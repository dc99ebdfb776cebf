"""`graphsurgery grow`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Dataset, Model
from graphsurgery.cli.growing import DEEPENING, WIDENING, Deepening, Widening, show_growth, show_places
from graphsurgery.cli.options import OPENING, Opening, Output, Seed
from graphsurgery.cli.session import TRAINING, Training, TrainingSession
from graphsurgery.training.loop.plan import Execution


@Parameter(name="*", group="Training")
@dataclass(frozen=True)
class Continuing(Execution):
    """How the grown network and its controls train: as the teacher did, at a tenth of its rate."""

    epochs: int = 5
    """Epochs of each."""
    lr: float | None = None
    """Learning rate of all but the new network, which has the teacher's."""
    control: Annotated[bool, Parameter(negative="--no-control")] = True
    """Also train the same architecture from scratch and with random padding, and the teacher for as long."""

    def settings(self) -> dict[str, Any]:
        """What changes in the plan that the teacher was trained with."""
        found = {**self.execution(), "epochs": self.epochs}
        return found if self.lr is None else {**found, "lr": self.lr}


_CONTINUING = Continuing()


def grow(
    teacher: Model,
    /,
    *,
    data: Dataset,
    output: Output,
    report: Path | None = None,
    widening: Widening = WIDENING,
    deepening: Deepening = DEEPENING,
    training: Continuing = _CONTINUING,
    seed: Seed = 0,
    asked: Training = TRAINING,
    opening: Opening = OPENING,
) -> None:
    """Widen and deepen a trained network, train it on, and compare it with what it must beat.

    Parameters
    ----------
    teacher
        A trained checkpoint, an .onnx file, or a state_dict (.pt or .safetensors) with --arch.
    data
        What it was trained on.
    report
        Also write an HTML report.
    """
    reads = [teacher, data, widening.like, opening.arch]
    session = TrainingSession.of(asked, network=output, report=report, reads=reads)
    from graphsurgery.recipes.grow import CONTROLS, Growth, default_plan, grown
    from graphsurgery.recipes.grow import grow as recipe

    examples = opening.data(data, teacher, seed=seed)
    growth = Growth(**widening.options(opening, examples.input_shape), **deepening.options(), seed=seed)
    graph = opening.fitting(teacher, examples)
    plan = default_plan(graph, growth, controls=CONTROLS if training.control else (), **training.settings())
    session.document |= {"teacher": teacher, "data": data, "growth": growth.as_dict()}
    if asked.dry_run:
        if growth.after == ("auto",):
            show_places(session.screen, graph)
        session.document |= show_growth(session.screen, graph, grown(graph, growth))
        networks = 1 + len(plan.controls)
        session.would(f"train {networks} networks for {plan.training.epochs} epochs and write {output}")
        return
    books = session.begin("grow", {**session.document, **plan.settings()}, "the controls" if plan.controls else "")
    result = recipe(graph, examples, plan, **books, made=session.keep)
    session.document |= show_growth(session.screen, graph, result.graph)
    session.end(result)
