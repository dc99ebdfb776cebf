"""`graphsurgery slim`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Dataset, Model
from graphsurgery.cli.options import OPENING, Opening, Output
from graphsurgery.cli.session import TRAINING, Training, TrainingSession, show_sizes
from graphsurgery.recipes.slimming.plan import SlimPlan
from graphsurgery.training.loop.plan import TrainingPlan

_TRAINING = TrainingPlan()


@Parameter(name="*", group="Slimming")
@dataclass(frozen=True)
class Slimming(SlimPlan):
    """The plan, as it is spelled on a command line."""

    training: Annotated[TrainingPlan, Parameter(name="*", group="Training")] = _TRAINING
    rule: Literal["sandwich", "random", "widest"] = "sandwich"
    warmup: Annotated[float, Parameter(name="--distil-after")] = 0.5
    switchable: Annotated[tuple[float, ...], Parameter(negative="", consume_multiple=True)] = ()


_SLIMMING = Slimming()


def slim(
    model: Model,
    /,
    *,
    data: Dataset,
    output: Output,
    report: Path | None = None,
    plan: Slimming = _SLIMMING,
    asked: Training = TRAINING,
    opening: Opening = OPENING,
) -> None:
    """Train one set of weights that works at every width.

    Parameters
    ----------
    model
        A model spec, or what is trained on: a checkpoint, an .onnx file, or a state_dict (.pt or .safetensors) with
        --arch.
    data
        What it learns.
    report
        Also write an HTML report.
    """
    session = TrainingSession.of(asked, network=output, report=report, reads=[model, data, opening.arch])
    from graphsurgery.recipes.slimming.slimmable import save_slimmable, train_slimmable, usual_widths
    from graphsurgery.surgery.channels.slimming import Slimmable

    examples = opening.data(data, model, seed=plan.training.seed)
    graph = opening.fitting(model, examples, to_train=True)
    session.document |= {"model": model, "data": data, "plan": asdict(plan)}
    if asked.dry_run:
        slimmable = Slimmable(graph, min_width=plan.min_width, round_to=plan.round_to, switchable=plan.switchable)
        sizes = [(f"{width:g}", slimmable.extract(width)) for width in usual_widths(slimmable)]
        show_sizes(session.screen, sizes, "width")
        trained = len(slimmable.switchable) or plan.widths
        session.would(f"train {plan.training.epochs} epochs of {trained} widths and write {output}")
        return
    books = session.begin("slim", {**session.document, "plan": plan.what_fixes_the_result()})
    result = train_slimmable(graph, examples, plan, **books)
    widths = result.outcome.widths
    narrow = session.export("--width", f"{widths[len(widths) // 2]:g}")
    session.end(result, *narrow, write=partial(save_slimmable, result.outcome.statistics))
