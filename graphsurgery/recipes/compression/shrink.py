"""Shrink: cut one network and bring its accuracy back, with a row for every step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.spec_text import parse_value
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.passes.compress import EVERY, compress
from graphsurgery.progress import phase
from graphsurgery.recipes.experiment import Experiment
from graphsurgery.recipes.outcome import Outcome, Result
from graphsurgery.surgery.channels.choice import Scored
from graphsurgery.surgery.channels.planning import Price
from graphsurgery.surgery.channels.targets import Target
from graphsurgery.training.data.batches import Examples, in_order
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.data.loading import check_fits, recorded
from graphsurgery.training.devices import device_of
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.loop.evaluation import RECALIBRATING, recalibrate
from graphsurgery.training.loop.plan import TrainingPlan, recorded_plan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives.imitation import Mimicry
from graphsurgery.training.objectives.tasks import Objective, objective_for
from graphsurgery.training.objectives.teachers import Teachers

RECOVERIES = ("labels", "mimic")


@dataclass(frozen=True)
class Cut:
    """What to cut.

    Attributes:
        keep: share of every outer space, between 0 and 1; None cuts only what `target` or `spaces` ask for.
        target: what the network may cost at most; it and `keep` exclude each other.
        spaces: channels (int) or share (float) to keep of single spaces, by name; they prevail.
        within: how spaces in groups are cut: `groups`, `same`, `each` or `best` (see `compress`).
        importance: which channels stay; `taylor` needs data.
        round_to: numbers of channels become multiples of this.
        seed: of `random`.
    """

    keep: float | None = None
    target: Target | None = None
    spaces: Mapping[str, float | int] = field(default_factory=dict)
    within: str = "groups"
    importance: str = "l2"
    round_to: int = 1
    seed: int = 0


def parse_spaces(requests: Sequence[str]) -> dict[str, float | int]:
    """The requests `NAME=8` (channels) and `NAME=0.25` (share) by name.

    Raises:
        SurgeryError: one of them is neither.
    """
    spaces: dict[str, float | int] = {}
    for request in requests:
        name, _, text = request.rpartition("=")
        value = parse_value(text)
        if not name or isinstance(value, bool) or not isinstance(value, int | float):
            raise SurgeryError(f"compress: keep-space {request!r}; expected NAME=8 channels or NAME=0.25, a share")
        spaces[name] = value
    return spaces


@phase("choosing and cutting channels")
def cut(
    graph: ModelGraph,
    plan: Cut,
    data: Data | None = None,
    price: Price | None = None,
    scores: Scored | None = None,
) -> ModelGraph:
    """The network without the channels that matter least; it is not modified. A latency needs a price (see `compress`).

    Scores may be given where they are known; they are those of the plan's importance.

    Raises:
        SurgeryError: nothing or everything would be removed, an unknown space or criterion, a target that cannot be
            reached, or `taylor` without data.
    """
    if plan.keep is None and plan.target is None and not plan.spaces:
        raise SurgeryError(
            "compress: nothing says what to keep; give --keep SHARE, --target params=0.5x or --keep-space NAME=N"
        )
    keep = {**plan.spaces, **({} if plan.keep is None else {EVERY: plan.keep})}
    if plan.importance == "taylor" and scores is None:
        if data is None:
            raise SurgeryError("compress: importance taylor needs gradients, and gradients need data; give --data")
        graph = with_gradients(graph, data)
    small = compress(
        graph,
        keep,
        target=plan.target,
        within=plan.within,
        importance=plan.importance if scores is None else scores,
        round_to=plan.round_to,
        seed=plan.seed,
        price=price,
    )
    record = removal(small)
    if not record["folded"] and all(before == after for before, after in record["sizes"].values()):
        raise SurgeryError(f"compress: 0 channels removed: {', '.join(record['sizes'])} would keep all that they have")
    return small


def removal(graph: ModelGraph) -> Mapping[str, Any]:
    """What the last cut of a network recorded: sizes of the spaces before and after, and the target, if any."""
    return next(record for record in reversed(graph.lineage) if record.get("pass") == "compress")


def shrink(
    graph: ModelGraph,
    plan: Cut,
    data: Data,
    training: TrainingPlan,
    *,
    recover: str = "labels",
    small: ModelGraph | None = None,
    run: Run | None = None,
    reporter: Reporter | None = None,
) -> Result[Outcome]:
    """Cut, recalibrate BatchNorm and fine-tune with a fresh optimizer; every step is measured.

    Args:
        graph: a trained network; it is not modified.
        plan: what to cut.
        data: what it was trained on; only measured on `data.test`.
        training: the fine-tuning; 0 epochs leave it out.
        recover: what it learns from: `labels`, or `mimic`, what the network said before the cut, without labels.
        small: what the plan makes of the network, where that is known; it is changed.
        run: folder for metrics and states.
        reporter: told about progress.

    Raises:
        SurgeryError: as for `cut`, the data do not fit, or training fails.
    """
    check_fits(data, graph.module)
    books = Experiment(data, device=training.device, run=run, reporter=reporter)
    learnt = recovery(recover, data, [graph])
    small = cut(graph, plan, data) if small is None else small
    source = "" if recover == "labels" else ", on what the original says"
    bring_back(books, graph, small, training, objective=learnt, source=source)
    if training.epochs:
        record = {"pass": "fine-tune", **recorded(data), "recover": recover, "plan": asdict(training)}
        small = replace(small, lineage=(*small.lineage, record))
    config = {"cut": asdict(plan), "target": removal(small).get("target"), "training": asdict(training)}
    return Result(small, books.outcome(f"compressed on {data.name}", "", config))


def bring_back(
    books: Experiment,
    graph: ModelGraph,
    small: ModelGraph,
    training: TrainingPlan,
    *,
    objective: Objective | None = None,
    source: str = "",
) -> None:
    """Recalibrate BatchNorm and fine-tune with a fresh optimizer, in place; every step is measured.

    Args:
        books: where the steps are written, with the data.
        graph: the network before the cut.
        small: the one that is brought back.
        training: 0 epochs leave the fine-tuning out.
        objective: what is learnt, where it is not what is measured.
        source: what the row says on that.
    """
    books.measure("original", graph)
    books.measure("cut", small, note="expected to be low: not yet recovered")
    run = books.objective.run
    norms = recalibrate(small.module, books.data.train, seed=training.seed, device=training.device, run=run)
    if norms:
        examples = min(RECALIBRATING, len(books.data.train))  # type: ignore[arg-type]
        books.measure("recalibrated", small, note=f"{norms} BatchNorms, {examples:,} examples")
    if training.epochs:
        _, effort = books.train(small, training, "fine-tune", objective=objective)
        books.measure("fine-tuned", small, effort, f"{training.epochs} epochs{source}")


def recovery(recover: str, data: Data, originals: Sequence[ModelGraph]) -> Objective:
    """What a fine-tuning learns from: labels, or what the original networks say together, without labels.

    Raises:
        SurgeryError: neither is asked for.
    """
    if recover == "labels":
        return objective_for(data)
    if recover != "mimic":
        raise SurgeryError(f"recover is {recover!r}; choose from {', '.join(RECOVERIES)}")
    teachers = Teachers([original.copy().module for original in originals])
    return Mimicry(data.classes, Imitation(), teacher=teachers)


def fine_tuning(graph: ModelGraph, **settings: Any) -> TrainingPlan:
    """The plan that a network was last trained by, at a tenth of its learning rate, with these settings instead.

    A network whose training is unknown gets the default plan at a learning rate of 0.01.
    """
    record = next((r for r in reversed(graph.lineage) if r.get("pass") == "train"), None)
    plan = TrainingPlan(lr=0.1) if record is None else recorded_plan(record)
    return replace(plan, **{"lr": 0.1 * plan.lr, "epochs": 0, "keep_best": True, **settings})


def with_gradients(graph: ModelGraph, data: Data, images: int = 512) -> ModelGraph:
    """A copy whose parameters have the gradient of the mean loss on a few training examples."""
    module = copy.deepcopy(graph.module)
    module.zero_grad()
    frozen = [p for p in module.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    objective = objective_for(data)
    examples = Examples(data.train, device_of(module))
    count = min(images, len(examples))
    with evaluating(module), torch.enable_grad():
        for batch in examples.batches(in_order(count, 64)):
            loss = objective.loss(module, batch)["total"] * (len(batch[0]) / count)
            loss.backward()
    for parameter in frozen:
        parameter.requires_grad_(False)
    return replace(graph, module=module)
