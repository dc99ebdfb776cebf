"""`graphsurgery mimic`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Examples, Model, there
from graphsurgery.cli.options import OPENING, Opening, Output
from graphsurgery.cli.session import TRAINING, Training, TrainingSession, show_sizes
from graphsurgery.errors import SurgeryError
from graphsurgery.recipes.mimicking.plan import MimicPlan
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.loop.plan import TrainingPlan

if TYPE_CHECKING:
    from torch import nn

    from graphsurgery.graph import ModelGraph
    from graphsurgery.training.data.dataset import Data


@Parameter(name="*", group="Training")
@dataclass(frozen=True)
class StudentLearning(TrainingPlan):
    """How the student is trained; what the command line leaves out comes from here, and not from `TrainingPlan`."""

    lr: float = 0.05


@Parameter(name="*")
@dataclass(frozen=True)
class Imitating(Imitation):
    """The loss, as it is spelled on a command line."""

    loss: Literal["logits", "probabilities", "kl", "dkd", "dist"] = "logits"
    """Squared distance of logits or of probabilities, divergence at a temperature, its decoupled form, correlations."""
    alpha: Annotated[float, Parameter(parse=False)] = 1.0
    beta: Annotated[float, Parameter(parse=False)] = 1.0
    mixed: Annotated[bool, Parameter(parse=False)] = False


_LEARNING, _IMITATING = StudentLearning(), Imitating()


@Parameter(name="*", group="Mimicking")
@dataclass(frozen=True)
class Mimicking(MimicPlan):
    """The plan, as it is spelled on a command line."""

    training: StudentLearning = _LEARNING
    imitation: Imitating = _IMITATING
    standardise: Annotated[bool, Parameter(negative="")] = False
    keep_bottleneck: Annotated[bool, Parameter(negative="")] = False


_MIMICKING = Mimicking()


def mimic(
    *,
    teacher: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True, validator=there)],
    student: Model,
    output: Output,
    data: Annotated[str | None, Parameter(validator=there)] = None,
    calib: Examples = None,
    report: Path | None = None,
    cache: Path | None = None,
    transfer: Annotated[str | None, Parameter(group="Mimicking", validator=there)] = None,
    plan: Mimicking = _MIMICKING,
    asked: Training = TRAINING,
    opening: Opening = OPENING,
) -> None:
    """Train a student on what teachers say, and compare it with the same student on labels.

    Parameters
    ----------
    teacher
        Checkpoints, .onnx files, state_dicts (.pt or .safetensors) with --arch, or model specs; the logits of
        several are averaged.
    student
        A model spec such as paper/mlp?hidden=8000, fitted to the data, or an untrained checkpoint.
    data
        What the teachers were trained on.
    calib
        Examples without labels instead, for teachers with any outputs (boxes, maps, several): a folder of images, of
        .npy arrays, or of .npz files with an array for each input. All that the teachers give is learnt.
    report
        Also write an HTML report.
    cache
        Folder in which the teachers' logits are kept, to be found again by teachers and data.
    transfer
        More data, whose labels are not looked at.
    """
    reads = [*teacher, student, data, calib, transfer, opening.arch]
    session = TrainingSession.of(asked, network=output, report=report, reads=reads)
    if (data is None) == (calib is None):
        raise SurgeryError("mimic: give --data with labels, or --calib without")
    if calib is not None:
        if transfer is not None or cache is not None:
            raise SurgeryError("mimic: --transfer and --cache are of logits; leave them out beside --calib")
        _all_outputs(session, teacher, student, calib, plan, asked, opening)
        return
    assert data is not None
    from graphsurgery.recipes.mimicking.mimic import mimic as recipe
    from graphsurgery.training.data.loading import check_fits

    seed = plan.training.seed
    examples = opening.data(data, *teacher, student, seed=seed)
    more = opening.data(transfer, *teacher, student, seed=seed) if transfer else None
    teachers = {name: _teacher(name, opening, examples.input_shape) for name in teacher}
    graph = _student(student, opening, examples, seed)
    for name, module in {student: graph.module, **teachers}.items():
        check_fits(examples, module, name=name)
    session.document |= {"teachers": list(teachers), "student": student, "data": data, "plan": asdict(plan)}
    if asked.dry_run:
        show_sizes(session.screen, [(student, graph)])
        what = f"{plan.training.epochs} epochs on the answers of {len(teachers)} teachers"
        session.would(f"train {what} and write {output}")
        return
    settings = {**session.document, "plan": plan.what_fixes_the_result()}
    books = session.begin("mimic", settings, "the control" if plan.control else "")
    logits = cache or (None if asked.run.run is None else asked.run.run / "logits")
    unlabelled = None if more is None else more.train
    session.end(recipe(graph, teachers, examples, plan, transfer=unlabelled, cache=logits, **books, made=session.keep))


def _all_outputs(
    session: TrainingSession,
    teacher: Sequence[str],
    student: str,
    calib: str,
    plan: Mimicking,
    asked: Training,
    opening: Opening,
) -> None:
    """Train a student on all outputs of its teachers, on examples without labels."""
    from graphsurgery.recipes.mimicking.any_outputs import mimic_outputs
    from graphsurgery.training.objectives.teachers import OnnxOutputs

    graph = replace(opening, arch=None).graph(student, to_train=True)
    examples = opening.examples(calib, student, graph.inputs, seed=plan.training.seed)
    teachers: dict[str, nn.Module] = {
        name: OnnxOutputs(name) if name.endswith(".onnx") else opening.graph(name).module for name in teacher
    }
    session.document |= {"teachers": list(teachers), "student": student, "calib": calib, "plan": asdict(plan)}
    if asked.dry_run:
        show_sizes(session.screen, [(student, graph)])
        session.would(f"train {plan.training.epochs} epochs on all outputs of {len(teachers)} teachers")
        return
    books = session.begin("mimic", {**session.document, "plan": plan.what_fixes_the_result()})
    session.end(mimic_outputs(graph, teachers, examples, plan, **books, made=session.keep))


def _student(spec: str, opening: Opening, data: Data, seed: int) -> ModelGraph:
    """The student, whose weights the seed draws where a spec names it."""
    import torch

    from graphsurgery.models.specs import fitted

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        spec = fitted(spec, data.input_shape, data.classes)
        return replace(opening, arch=None).graph(spec, data.input_shape, to_train=True)


def _teacher(name: str, opening: Opening, shape: tuple[int, ...]) -> nn.Module:
    """A teacher from a checkpoint, a spec or an `.onnx` file."""
    from graphsurgery.training.objectives.teachers import OnnxTeacher

    return OnnxTeacher(name, opening.answer) if name.endswith(".onnx") else opening.graph(name, shape).module
