"""Bring a cut network back without labels: by what it said before the cut, about examples that nobody has labelled.

Source: Ba & Caruana, "Do deep nets really need to be deep?", arXiv:1312.6184, for the loss.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, replace
from typing import Any

import torch

from graphsurgery.errors import SpecError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs import one_output
from graphsurgery.recipes.outcome import Outcome, Row
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.training.data.batches import Examples
from graphsurgery.training.data.calibration import Calibration
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.data.transfer import answered
from graphsurgery.training.devices import device_of, evaluating
from graphsurgery.training.loop.evaluation import evaluate, recalibrate
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import EpochRecord, Run
from graphsurgery.training.objectives.agreement import Agreement
from graphsurgery.training.objectives.tasks import objective_for
from graphsurgery.training.objectives.teachers import Teachers, logits_of

STEPS = 2000
"""Optimizer steps where no number of epochs is asked for."""


def label_free_plan(calibration: Calibration, epochs: int | None = None, **settings: Any) -> TrainingPlan:
    """How recovery trains: Adam, which suits networks with and without norms, for some two thousand steps."""
    plan = TrainingPlan(optimizer="adam", lr=1e-3, clip=1.0, keep_best=True)
    steps = math.ceil(len(calibration.train) / plan.batch_size)  # type: ignore[arg-type]
    return replace(plan, epochs=math.ceil(STEPS / steps) if epochs is None else epochs, **settings)


def check_calibration(calibration: Calibration, graph: ModelGraph) -> int:
    """Check that a network takes the examples and gives numbers for each; one forward pass of two examples.

    Returns:
        How many numbers.

    Raises:
        SpecError: it does not.
    """
    if len(graph.inputs) != 1:
        raise SpecError(f"{calibration.name}: has single inputs, the network takes {len(graph.inputs)}")
    examples = Examples(calibration.train, device_of(graph.module))
    x = next(examples.batches([torch.arange(2) % len(examples)]))[0]
    taken = list(graph.inputs[0].shape[1:])
    if list(x.shape[1:]) != taken:
        raise SpecError(f"{calibration.name}: has inputs {list(x.shape[1:])}, the network takes {taken}")
    with evaluating(graph.module), torch.no_grad():
        output = one_output(graph.module(x), "--calib: the network")
    if output.dim() != 2:
        raise SpecError(f"--calib: mimicry needs one output [batch, classes], the network gives {list(output.shape)}")
    return int(output.shape[1])


def recover_without_labels(
    graph: ModelGraph,
    small: ModelGraph,
    calibration: Calibration,
    training: TrainingPlan,
    *,
    data: Data | None = None,
    run: Run | None = None,
    reporter: Reporter | None = None,
) -> tuple[ModelGraph, Outcome]:
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
    began = time.perf_counter()
    objective = Agreement(check_calibration(calibration, graph))
    teachers = Teachers([copy.deepcopy(graph.module)])
    parts = (calibration.train, calibration.held)
    train, held = (answered(part, logits_of(teachers, part, device=training.device)) for part in parts)
    shown = objective if data is None else objective_for(data)
    rows: list[Row] = []
    curves: tuple[EpochRecord, ...] = ()

    def measure(name: str, network: ModelGraph, note: str = "") -> None:
        size = cost(network)
        found = evaluate(network.module, held, objective, device=training.device)
        words = [note] if note else []
        words += [f"agrees on {found['agreement']:.1%}"] if data is not None and "agreement" in found else []
        words += [f"outputs deviate by {found['deviation']:.1%}"]
        test, validation = found, {}
        if data is not None:
            test = evaluate(network.module, data.test, shown, device=training.device)
            validation = evaluate(network.module, data.validation, shown, device=training.device)
        rows.append(Row(name, test, validation, size.parameters, size.macs, note="; ".join(words)))

    measure("original", graph)
    measure("cut", small, "expected to be low: not yet recovered")
    norms = recalibrate(small.module, calibration.train, seed=training.seed, device=training.device)
    if norms:
        measure("recalibrated", small, f"{norms} BatchNorms, 1,000 examples")
    if training.epochs:
        history = fit(
            small.module,
            train,
            training,
            objective=objective,
            validation=held,
            run=run,
            stage="mimic",
            reporter=reporter,
        )
        curves = history.records
        measure("mimicked", small, f"{training.epochs} epochs on what the original says, no labels")
        record = {"pass": "fine-tune", "data": calibration.name, "recover": "mimic", "plan": asdict(training)}
        small = replace(small, lineage=(*small.lineage, record))
    metric = ("agreement" if objective.classes else "deviation") if data is None else shown.score
    outcome = Outcome(
        title=f"compressed, recovered on {calibration.name} without labels",
        rows=tuple(rows),
        metric=metric,
        higher_is_better=metric == "agreement" if data is None else shown.higher_is_better,
        curves=curves,
        config={"training": asdict(training), "calibration": calibration.name},
        seconds=time.perf_counter() - began,
    )
    return small, outcome
