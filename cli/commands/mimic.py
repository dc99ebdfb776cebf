"""`graphsurgery mimic`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from graphsurgery.cli.options import OPENING, SHOWN, WRITING, DryRun, Opening, Output, Shown, Writing, without_dry_run
from graphsurgery.cli.running import RUNNING, Running
from graphsurgery.training.loop.plan import TrainingPlan

if TYPE_CHECKING:
    from torch import nn

    from graphsurgery.recipes.mimic import MimicPlan


@Parameter(name="*", group="Mimicking")
@dataclass(frozen=True)
class Mimicking:
    """What the student learns, and from what."""

    loss: Literal["logits", "probabilities", "kl", "dkd", "dist"] = "logits"
    """Squared distance of logits or of probabilities, divergence at a temperature, its decoupled form, correlations."""
    temperature: float = 4.0
    """Of kl, dkd and dist."""
    labels: float = 0.0
    """Weight of the labels beside the teachers' answers, between 0 and 1."""
    standardise: Annotated[bool, Parameter(negative="")] = False
    """Divide the logits of each class by their deviation."""
    bottleneck: int | None = None
    """Channels between two factors of the student's largest linear layer while it trains."""
    keep_bottleneck: Annotated[bool, Parameter(negative="")] = False
    """Write the two factors instead of their product."""
    transfer: str | None = None
    """More data, whose labels are not looked at."""
    copies: int = 0
    """Shifted and noisy copies of each training example, without labels."""
    control: Annotated[bool, Parameter(negative="--no-control")] = True
    """Also train the same student on labels, to compare with."""
    margin: float = 0.0
    """By how much the teachers must beat that student on validation data."""

    def plan(self, training: TrainingPlan) -> MimicPlan:
        """The plan of the recipe."""
        from graphsurgery.recipes.mimic import MimicPlan
        from graphsurgery.training.objectives.imitation import Imitation

        return MimicPlan(
            training=training,
            imitation=Imitation(self.loss, self.temperature, labels=self.labels),
            standardise=self.standardise,
            bottleneck=self.bottleneck,
            keep_bottleneck=self.keep_bottleneck,
            copies=self.copies,
            control=self.control,
            margin=self.margin,
        )


@dataclass(frozen=True)
class Training(TrainingPlan):
    """How the student is trained; what the command line leaves out comes from here, and not from `TrainingPlan`."""

    lr: float = 0.05


_MIMICKING, _TRAINING = Mimicking(), Training()


def mimic(
    *,
    teacher: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)],
    student: str,
    data: str,
    output: Output,
    report: Path | None = None,
    cache: Path | None = None,
    mimicking: Mimicking = _MIMICKING,
    training: Annotated[Training, Parameter(name="*", group="Training")] = _TRAINING,
    run: Running = RUNNING,
    dry_run: DryRun = False,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    shown: Shown = SHOWN,
) -> None:
    """Train a student on what teachers say, and compare it with the same student on labels.

    Parameters
    ----------
    teacher
        Checkpoints, model specs or .onnx files; the logits of several are averaged.
    student
        A model spec such as paper/mlp?hidden=8000, fitted to the data, or an untrained checkpoint.
    data
        What the teachers were trained on.
    report
        Also write an HTML report.
    cache
        Folder in which the teachers' logits are kept, to be found again by teachers and data.
    """
    reads = [*teacher, student, data, mimicking.transfer, opening.arch]
    writing.allow(network=output, report=report, reads=reads)
    from dataclasses import asdict, replace

    import torch

    from graphsurgery.cli.output import Screen
    from graphsurgery.cli.session import Session, show_sizes
    from graphsurgery.models.specs import fitted
    from graphsurgery.recipes.mimic import mimic as recipe
    from graphsurgery.training.data.loading import check_fits

    screen = Screen(shown)
    examples = opening.data(data, *teacher, student, seed=training.seed)
    more = opening.data(mimicking.transfer, *teacher, student, seed=training.seed) if mimicking.transfer else None
    teachers = {name: _teacher(name, opening, examples.input_shape) for name in teacher}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        spec = fitted(student, examples.input_shape, examples.classes)
        graph = replace(opening, arch=None).graph(spec, examples.input_shape, to_train=True)
    for name, module in {student: graph.module, **teachers}.items():
        check_fits(examples, module, name=name)
    plan = mimicking.plan(training)
    document: dict[str, Any] = {"teachers": list(teachers), "student": student, "data": data, "plan": asdict(plan)}
    if dry_run:
        show_sizes(screen, [(student, graph)])
        what = f"{training.epochs} epochs on the answers of {len(teachers)} teachers"
        screen.line("dry run", f"would train {what} and write {output}")
        screen.finish(document, *without_dry_run())
        return
    settings = {"command": "mimic", **document, "plan": {**asdict(plan), "training": training.what_fixes_the_result()}}
    folder = run.open(screen, settings)
    logits = cache if cache is not None else (None if run.run is None else run.run / "logits")

    controls = "the control" if plan.control else ""
    session = Session(screen, document, output, controls=controls, report=report)
    result = recipe(
        graph,
        teachers,
        examples,
        plan,
        transfer=None if more is None else more.train,
        cache=logits,
        run=folder,
        reporter=screen.reporter(),
        made=session.keep,
    )
    outcome = session.saved(result)
    session.report(outcome)
    session.show(outcome)
    session.finish(outcome, "export", output, "-o", output.with_suffix(".onnx"))


def _teacher(name: str, opening: Opening, shape: tuple[int, ...]) -> nn.Module:
    """A teacher from a checkpoint, a spec or an `.onnx` file."""
    from graphsurgery.training.objectives.teachers import OnnxTeacher

    return OnnxTeacher(name, opening.answer) if name.endswith(".onnx") else opening.graph(name, shape).module
