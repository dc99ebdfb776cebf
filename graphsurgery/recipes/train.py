"""Train one network from a model spec: the parents of everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import torch

from graphsurgery.graph import ModelGraph
from graphsurgery.models import build
from graphsurgery.models.answers import with_output
from graphsurgery.models.spec_text import anchored
from graphsurgery.network.outputs.randomness import seeded
from graphsurgery.recipes.experiment import Experiment
from graphsurgery.recipes.outcome import Outcome, Result
from graphsurgery.tracing.trace import trace
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.data.loading import check_fits, recorded
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import EpochRecord, History, Run


def fresh(spec: str, data: Data, seed: int, answer: str | None = None) -> ModelGraph:
    """The network of a model spec with new weights drawn by `seed`, traced on the data's input shape.

    Args:
        spec: which network.
        data: what it takes.
        seed: draws the weights.
        answer: which of several outputs it gives.

    Raises:
        SpecError: unknown spec, or the network does not take the data.
        TraceError: the network cannot be followed.
        SurgeryError: it has no such output.
    """
    with seeded(seed):
        model = build(spec)
    if answer is None:
        check_fits(data, model, name=spec)
        return trace(model, torch.zeros(2, *data.input_shape))
    graph = with_output(trace(model, torch.zeros(2, *data.input_shape)), answer)
    check_fits(data, graph.module, name=spec)
    return graph


def train(
    spec: str,
    data: Data,
    plan: TrainingPlan,
    *,
    answer: str | None = None,
    run: Run | None = None,
    stage: str = "train",
    reporter: Reporter | None = None,
) -> Result[Outcome]:
    """Train the network of a spec; its lineage says how, so that a merge can keep its books.

    Args:
        spec: which network, such as `paper/resnet20?in_channels=1`.
        data: what it learns; the weights of the best validation epoch are kept if `plan.keep_best`.
        plan: how it is trained; its seed draws the weights too.
        answer: which of several outputs counts; the others go.
        run: folder for metrics and resumable state.
        stage: name of the stage in that folder.
        reporter: told about progress.

    Returns:
        The network, and its row, `trained`, which has the metrics on the training data too.

    Raises:
        SurgeryError: as for `fresh`, or training fails.
    """
    graph = fresh(spec, data, plan.seed, answer)
    books = Experiment(data, device=plan.device, run=run, reporter=reporter)
    history, effort = books.train(graph, plan, stage)
    on_train = evaluate(graph.module, data.train, books.objective, device=plan.device)
    books.rows.append(replace(books.measured("trained", graph, effort), train=on_train))
    named = {"spec": anchored(spec), **recorded(data)}
    record = {"pass": "train", **named, "plan": asdict(plan), "best_epoch": history.best_epoch}
    graph = replace(graph, lineage=(*graph.lineage, record | {"curve": _curve(history)}))
    return Result(graph, books.outcome(f"{spec} trained on {data.name}", "", record))


def _curve(history: History) -> dict[str, dict[str, list[float]]]:
    """Losses and validation metrics, epoch by epoch, to five digits."""
    found: dict[str, dict[str, list[float]]] = {"train": {}, "validation": {}}
    for record in history.records:
        for part, values in (("train", record.train), ("validation", record.validation)):
            for name, value in values.items():
                found[part].setdefault(name, []).append(float(f"{value:.5g}"))
    return found


def curves_of(graph: ModelGraph, stage: str) -> tuple[EpochRecord, ...]:
    """The epochs of a network's last training, as far as its lineage has them, by another name of the stage."""
    curve = next((r.get("curve") for r in reversed(graph.lineage) if r.get("pass") == "train"), None)
    parts = {name: _numbers(curve, name) for name in ("train", "validation")}
    epochs = max((len(values) for part in parts.values() for values in part.values()), default=0)

    def at(part: str, epoch: int) -> dict[str, float]:
        return {name: values[epoch] for name, values in parts[part].items() if epoch < len(values)}

    return tuple(EpochRecord(stage, n + 1, at("train", n), at("validation", n)) for n in range(epochs))


def _numbers(curve: object, part: str) -> dict[str, list[float]]:
    """The curves of a part that are numbers; a file may say anything."""
    found = curve.get(part) if isinstance(curve, Mapping) else None
    named = found.items() if isinstance(found, Mapping) else ()
    return {
        str(name): list(values)
        for name, values in named
        if isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    }
