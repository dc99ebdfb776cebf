"""Bring a cut network back without labels: by what it said before the cut, about examples that nobody has labelled.

Source: Ba & Caruana, "Do deep nets really need to be deep?", arXiv:1312.6184, for the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from graphsurgery.errors import SpecError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.naming import named_outputs
from graphsurgery.recipes.compression.shrink import bring_back
from graphsurgery.recipes.experiment import Effort, Experiment
from graphsurgery.recipes.outcome import Outcome, Result, Row
from graphsurgery.training.data.calibration import Calibration
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.data.transfer import answered
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives.agreement import Agreement
from graphsurgery.training.objectives.several_outputs import SeveralOutputs, reading_of, vectors_of
from graphsurgery.training.objectives.tasks import objective_for
from graphsurgery.training.objectives.teachers import Teachers, logits_of

STEPS = 2000
"""Optimizer steps where no number of epochs is asked for."""


def label_free_plan(calibration: Calibration, epochs: int | None = None, **settings: Any) -> TrainingPlan:
    """How recovery trains: Adam, which suits networks with and without norms, for some two thousand steps."""
    plan = TrainingPlan(optimizer="adam", lr=1e-3, clip=1.0, keep_best=True)
    steps = math.ceil(len(calibration.train) / plan.batch_size)  # type: ignore[arg-type]
    return replace(plan, epochs=math.ceil(STEPS / steps) if epochs is None else epochs, **settings)


def check_calibration(calibration: Calibration, graph: ModelGraph) -> Agreement:
    """Check that a network takes the examples and gives numbers for each; one forward pass of some examples.

    Returns:
        What is learnt: logits where the network gives one output `[batch, classes]`; else all that it gives.

    Raises:
        SpecError: it does not.
    """
    if calibration.packed is None:
        _check_shape(calibration, graph)
    output, count = calibration.first_outputs(graph.module)
    named = named_outputs(output)
    only = next(iter(named.values())) if len(named) == 1 and calibration.packed is None else None
    if only is not None and only.dim() == 2 and len(only) == count and only.is_floating_point():
        return Agreement(int(only.shape[1]))
    return SeveralOutputs(reading_of(output, count), calibration.run)


def _check_shape(calibration: Calibration, graph: ModelGraph) -> None:
    """Raise SpecError for examples that are no inputs of the network."""
    if len(graph.inputs) != 1:
        names = ", ".join(spec.name for spec in graph.inputs)
        raise SpecError(
            f"{calibration.name}: has single inputs, the network takes {len(graph.inputs)} ({names}); give a folder of "
            ".npz files with an array for each"
        )
    x = torch.as_tensor(calibration.train[0][0])
    taken = list(graph.inputs[0].shape[1:])
    if list(x.shape) != taken:
        raise SpecError(f"{calibration.name}: has inputs {list(x.shape)}, the network takes {taken}")


def _answers(graph: ModelGraph, objective: Agreement, parts: Sequence[Dataset[Any]], device: str) -> list[Dataset[Any]]:
    """The examples with what the network says about each beside them."""
    if not isinstance(objective, SeveralOutputs):
        teachers = Teachers([graph.copy().module])
        return [answered(part, logits_of(teachers, part, device=device)) for part in parts]
    module = graph.copy().module
    return [answered(part, vectors_of(module, objective, part, device)) for part in parts]


def recover_without_labels(
    graph: ModelGraph,
    small: ModelGraph,
    calibration: Calibration,
    training: TrainingPlan,
    *,
    data: Data | None = None,
    run: Run | None = None,
    reporter: Reporter | None = None,
) -> Result[Outcome]:
    """Recalibrate BatchNorm and learn what the network said before the cut; every step is measured.

    Args:
        graph: the network before; it is not modified.
        small: the network that was cut from it; it is changed.
        calibration: examples; the held-out part is measured on, and chooses the weights.
        training: 0 epochs leave the learning out.
        data: labelled examples to measure on besides; nothing is learnt from them.
        run: folder for metrics and states.
        reporter: told about progress.

    Returns:
        The network, and by row how far it agrees with the one before (with `data` its score, agreement in the notes).

    Raises:
        SpecError: the examples do not fit.
        SurgeryError: training fails.
    """
    objective = check_calibration(calibration, graph)
    train, held = _answers(graph, objective, (calibration.train, calibration.held), training.device)
    shape = tuple(graph.inputs[0].shape[1:])
    examples = Data(train, held, held, shape, objective.classes, calibration.name, calibration.preprocessing)
    books = _Agreeing(examples, objective, data, device=training.device, run=run, reporter=reporter)
    bring_back(books, graph, small, training, source=" on what the original says, no labels")
    if training.epochs:
        record = {"pass": "fine-tune", "data": calibration.name, "recover": "mimic", "plan": asdict(training)}
        small = replace(small, lineage=(*small.lineage, record))
    config = {"training": asdict(training), "calibration": calibration.name}
    outcome = books.outcome(f"compressed, recovered on {calibration.name} without labels", "", config)
    if data is None:
        metric = "agreement" if objective.classes else "deviation"
        return Result(small, replace(outcome, metric=metric, higher_is_better=metric == "agreement"))
    task = objective_for(data)
    return Result(small, replace(outcome, metric=task.score, higher_is_better=task.higher_is_better))


class _Agreeing(Experiment):
    """Books in which a network is measured by how far it agrees; with labelled data by its score too."""

    def __init__(
        self,
        examples: Data,
        objective: Agreement,
        labelled: Data | None,
        *,
        device: str,
        run: Run | None,
        reporter: Reporter | None,
    ) -> None:
        super().__init__(examples, device=device, run=run, reporter=reporter, objective=objective)
        self.labelled = None if labelled is None else Experiment(labelled, device=device)

    def measured(self, name: str, network: ModelGraph | nn.Module, effort: Effort | None = None, note: str = "") -> Row:
        row = super().measured(name, network, effort)
        words = [note] if note else []
        if self.labelled is not None and "agreement" in row.test:
            words.append(f"agrees on {row.test['agreement']:.1%}")
        words.append(f"outputs deviate by {row.test['deviation']:.1%}")
        # The held-out part chooses the weights: it is no test.
        shown = replace(row, test={}) if self.labelled is None else self.labelled.measured(name, network, effort)
        return replace(shown, note="; ".join(words))
