"""Mimic networks whose outputs are no classes: boxes, maps, several of them; by regression on every output.

Nobody needs to know a label. Every output counts alike, measured by what it varies by from example to example.

Source: Ba & Caruana, "Do deep nets really need to be deep?", arXiv:1312.6184, for the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from graphsurgery.errors import SpecError, SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.naming import named_outputs
from graphsurgery.recipes.experiment import Experiment
from graphsurgery.recipes.mimicking.plan import MimicPlan
from graphsurgery.recipes.outcome import Outcome, Result
from graphsurgery.training.data.calibration import Calibration
from graphsurgery.training.data.dataset import Data, size_of
from graphsurgery.training.data.transfer import answered
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives.several_outputs import SeveralOutputs, reading_of, vectors_of


def mimic_outputs(
    student: ModelGraph,
    teachers: Mapping[str, nn.Module],
    calibration: Calibration,
    plan: MimicPlan,
    *,
    run: Run | None = None,
    reporter: Reporter | None = None,
    made: Callable[[ModelGraph], None] | None = None,
) -> Result[Outcome]:
    """Train a student on all that its teachers give, without labels.

    Args:
        student: gives as many outputs as the teachers, of the same shapes and in the same order; it is not modified.
        teachers: one or more by name; what several say is averaged.
        calibration: the examples; what is held out chooses the weights, and is measured on.
        plan: how; what is said of logits and labels has no meaning here, and is refused.
        run: folder for metrics and states; an interrupted run goes on from it.
        reporter: told about progress.
        made: given the trained student as soon as it is there.

    Returns:
        The student, and how far it and each teacher lie from what was learnt, as a share of what outputs vary by.

    Raises:
        SpecError: the student's outputs are not the teachers', or no output varies.
        SurgeryError: no teacher, a plan for logits, or training fails.
    """
    if not teachers:
        raise SurgeryError("mimic: no teacher; give one or more")
    _check_plan(plan)
    outputs = {name: _outputs(teacher, calibration) for name, teacher in teachers.items()}
    first = next(iter(outputs.values()))
    for name, found in {**outputs, "the student": _outputs(student.module, calibration)}.items():
        _check_alike(name, found, next(iter(outputs)), first)
    objective = SeveralOutputs(
        reading_of(first, len(first[next(iter(first))]), seed=plan.training.seed), calibration.run
    )
    train, held = (_answered(teachers, objective, part, plan) for part in (calibration.train, calibration.held))
    data = Data(train, held, held, (), None, calibration.name, calibration.preprocessing)
    books = Experiment(data, device=plan.training.device, run=run, reporter=reporter, objective=objective)
    for name, teacher in teachers.items():
        books.measure(name, teacher)
    books.measure("student", student, note="before it learns")
    graph = student.copy()
    _, effort = books.train(graph, plan.training, "mimic")
    books.measure("mimic", graph, effort, note=f"{size_of(train):,} answered examples, {len(first)} outputs")
    record = {"pass": "mimic", "teachers": list(teachers), "data": calibration.name, "plan": asdict(plan)}
    graph = replace(graph, lineage=(*graph.lineage, record))
    if made is not None:
        made(graph)
    left = books.scores()["mimic"]
    verdict = f"The mimic lies {left:.1%} of what their outputs vary by from its teachers, on examples it did not see."
    config = {"teachers": list(teachers), **asdict(plan)}
    return Result(graph, books.outcome(f"all outputs mimicked on {calibration.name}", verdict, config))


def _check_plan(plan: MimicPlan) -> None:
    """Refuse what is said of logits and labels."""
    plan.check_not_of_classes("--calib gives examples without labels")
    named = {"--labels": plan.imitation.labels, "--copies": plan.copies, "--bottleneck": plan.bottleneck is not None}
    if asked := [option for option, value in named.items() if value]:
        raise SurgeryError(f"mimic: {asked[0]} is of logits with labels; leave it out beside --calib")


def _outputs(module: nn.Module, calibration: Calibration) -> Mapping[str, Tensor]:
    """What a network gives for some examples, by name."""
    try:
        return named_outputs(calibration.first_outputs(module)[0])
    except SurgeryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise SpecError(f"{calibration.name}: a network does not take these examples ({reason})") from error


def _check_alike(name: str, found: Mapping[str, Tensor], other: str, wanted: Mapping[str, Tensor]) -> None:
    shapes = [[list(tensor.shape[1:]) for tensor in each.values()] for each in (found, wanted)]
    if shapes[0] != shapes[1]:
        words = [", ".join(map(str, each)) for each in shapes]
        raise SpecError(
            f"{name}: gives outputs {words[0]}, {other} gives {words[1]}; a mimic gives what its teachers give"
        )


def _answered(
    teachers: Mapping[str, nn.Module], objective: SeveralOutputs, part: Dataset[Any], plan: MimicPlan
) -> Dataset[Any]:
    """Examples with the mean of what the teachers say beside them."""
    vectors = [vectors_of(teacher, objective, part, plan.training.device) for teacher in teachers.values()]
    return answered(part, torch.stack(vectors).mean(0))
