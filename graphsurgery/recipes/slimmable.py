"""Slimmable: train one set of weights for every width, and deliver any of them.

Source: Yu & Huang, "Universally slimmable networks and improved training techniques", ICCV 2019, arXiv:1903.05134; the
search is the greedy one of Yu & Huang, "AutoSlim", arXiv:1903.11728.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphsurgery.checkpoint import load, read_metadata, save
from graphsurgery.cost import cost
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.maps import Widths
from graphsurgery.passes.slim import slim
from graphsurgery.planned_cost import PlannedCost
from graphsurgery.recipes.outcome import Outcome, Row
from graphsurgery.slimming import Slimmable, Width, key_of, pack_statistics, unpack_statistics
from graphsurgery.targets import Target
from graphsurgery.training.batches import Examples
from graphsurgery.training.data import Data, check_fits
from graphsurgery.training.devices import device_of
from graphsurgery.training.evaluation import evaluate, recalibrate
from graphsurgery.training.loop import fit
from graphsurgery.training.objectives import objective_for
from graphsurgery.training.plan import TrainingPlan
from graphsurgery.training.progress import Reporter
from graphsurgery.training.run import EpochRecord, Run
from graphsurgery.training.sandwich import Sandwich

SHOWN = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class SlimPlan:
    """How a network is trained for every width.

    Attributes:
        training: the training.
        minimum: the smallest width.
        divisor: numbers of channels become multiples of this.
        widths: how many each step trains.
        rule: `sandwich`, or as controls `random` and `widest`.
        distil: whether narrow networks learn what the widest says.
        warmup: fraction of the training in which they learn labels.
        sort: put important channels first, where the network is trained already.
    """

    training: TrainingPlan
    minimum: float = 0.25
    divisor: int = 1
    widths: int = 4
    rule: str = "sandwich"
    distil: bool = True
    warmup: float = 0.2
    sort: bool = True


def train_slimmable(
    graph: ModelGraph, data: Data, plan: SlimPlan, *, run: Run | None = None, reporter: Reporter | None = None
) -> tuple[Slimmable, tuple[EpochRecord, ...]]:
    """Train a network for every width.

    Args:
        graph: a network, trained or not; it is not modified.
        data: what it learns.
        plan: how.
        run: folder for metrics and states; an interrupted run goes on from it.
        reporter: told about progress.

    Returns:
        The trained network, and every epoch.

    Raises:
        SurgeryError: the data do not fit, nothing can be slimmed, or training fails.
    """
    check_fits(data, graph.module)
    sorted_first = slim(graph) if plan.sort else slim(graph, importance="random", seed=plan.training.seed)
    slimmable = Slimmable(sorted_first, minimum=plan.minimum, divisor=plan.divisor)
    objective = Sandwich(
        slimmable,
        objective_for(data),
        widths=plan.widths,
        rule=plan.rule,
        distil=plan.distil,
        warmup=plan.warmup,
    )
    history = fit(
        sorted_first.module,
        data.train,
        replace(plan.training, keep_best=False),
        objective=objective,
        validation=data.validation,
        run=run,
        stage="slim",
        reporter=reporter,
    )
    record = {"pass": "slimmable", "data": data.name, "plan": asdict(plan)}
    trained = replace(sorted_first, lineage=(*sorted_first.lineage, record))
    return Slimmable(trained, minimum=plan.minimum, divisor=plan.divisor), history.records


class Statistics:
    """The BatchNorm statistics of widths, found on demand and kept by configuration.

    Args:
        slimmable: the network.
        known: those that are known, by `key_of` their sizes.
    """

    def __init__(self, slimmable: Slimmable, known: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.slimmable = slimmable
        self.known: dict[str, Mapping[str, str]] = dict(known or {})

    def network(self, width: Width, data: Data | None = None, *, images: int = 1000, seed: int = 0) -> ModelGraph:
        """The network at a width, with weights and statistics of its own.

        Args:
            width: a share of every space, or sizes of single ones.
            data: its training examples give statistics that are not known.
            images: how many of them.
            seed: draws them.

        Raises:
            SurgeryError: the statistics are unknown and there are no data.
        """
        graph = self.slimmable.extract(width)
        if not any(isinstance(part, _BatchNorm) for part in graph.module.modules()):
            return graph
        key = key_of(self.slimmable.sizes(width))
        if key in self.known:
            unpack_statistics(graph.module, self.known[key])
            return graph
        if data is None:
            shown = f"{width:g}" if isinstance(width, int | float) else key
            raise SurgeryError(f"slim: the statistics of width {shown} are not known; give --data to find them")
        recalibrate(graph.module, data.train, images=images, seed=seed)
        self.known[key] = pack_statistics(graph.module)
        return graph


def save_slimmable(statistics: Statistics, path: Path, **metadata: Any) -> None:
    """Write a slimmable network with all known statistics."""
    slimmable = statistics.slimmable
    settings = {"minimum": slimmable.minimum, "divisor": slimmable.divisor}
    save(slimmable.graph, path, **{**metadata, "slim": settings, "statistics": statistics.known})


def load_slimmable(path: Path | str) -> tuple[Statistics, dict[str, Any]]:
    """Open what `save_slimmable` wrote, and what else was stored with it.

    Raises:
        SurgeryError: the file is no slimmable network.
    """
    metadata = read_metadata(path)
    settings = metadata.get("slim")
    if not isinstance(settings, dict):
        raise SurgeryError(f"{path}: is no slimmable network; make one with graphsurgery slim")
    slimmable = Slimmable(load(path), minimum=settings["minimum"], divisor=settings["divisor"])
    return Statistics(slimmable, metadata.get("statistics")), metadata


def measure_widths(
    statistics: Statistics, data: Data, widths: Sequence[float] = SHOWN, *, curves: tuple[EpochRecord, ...] = ()
) -> Outcome:
    """What the network does at several widths, each with statistics of its own."""
    began = time.perf_counter()
    objective = objective_for(data)
    rows = []
    for width in sorted(widths, reverse=True):
        graph = statistics.network(width, data)
        size = cost(graph)
        rows.append(
            Row(
                f"width {width:g}",
                test=evaluate(graph.module, data.test, objective),
                validation=evaluate(graph.module, data.validation, objective),
                parameters=size.parameters,
                macs=size.macs,
            )
        )
    return Outcome(
        title=f"every width on {data.name}",
        rows=tuple(rows),
        metric=objective.score,
        higher_is_better=objective.higher_is_better,
        curves=curves,
        verdict=f"One set of weights at {len(rows)} widths, each with its own statistics.",
        seconds=time.perf_counter() - began,
    )


def width_for(slimmable: Slimmable, target: Target) -> float:
    """The largest width, in steps of a hundredth, that costs no more than a target.

    Raises:
        SurgeryError: no width does; the message has the closest.
    """
    count = _counter(slimmable, target.quantity)
    limit = target.goal(count(1.0))
    steps = [1 - step / 100 for step in range(round(100 * (1 - slimmable.minimum)) + 1)]
    found = next((width for width in steps if count(max(width, slimmable.minimum)) <= limit), None)
    if found is None:
        least = count(slimmable.minimum)
        raise SurgeryError(f"slim: {target} is {limit:,}; the narrowest network has {least:,}")
    return max(found, slimmable.minimum)


def _counter(slimmable: Slimmable, quantity: str) -> Any:
    planned = PlannedCost(slimmable.graph)
    counts = {"params": planned.parameters, "macs": planned.macs, "size": planned.bytes}
    if quantity not in counts:
        raise SurgeryError(f"slim: a target of {quantity} is not possible; use {', '.join(counts)}")

    def count(width: Width) -> int:
        sizes = slimmable.sizes(width)
        return counts[quantity](Widths({slimmable.spaces[name].dim: size for name, size in sizes.items()}))

    return count


@dataclass(frozen=True)
class Found:
    """A configuration on the way of the search: sizes, cost, and the score on held-out data."""

    sizes: Mapping[str, int]
    cost: int
    score: float


def search(
    slimmable: Slimmable, data: Data, target: Target, *, step: float = 0.1, images: int = 512, seed: int = 0
) -> list[Found]:
    """Remove channels from the space where that hurts least, again and again, until a target is met.

    Args:
        slimmable: a trained slimmable network.
        data: held-out examples are the first ones of a shuffle of its validation data.
        target: what the result may cost at most.
        step: share of a space that is removed at a time.
        images: how many examples score a configuration, with their own batch statistics.
        seed: of the shuffle.

    Returns:
        Every configuration on the way, the whole network first: the frontier.

    Raises:
        SurgeryError: the target cannot be met, or a setting is out of range.

    Source: Yu & Huang, "AutoSlim", arXiv:1903.11728, section 3.
    """
    if not 0 < step < 1:
        raise SurgeryError(f"slim: step is {step:g}, expected a share between 0 and 1")
    count = _counter(slimmable, target.quantity)
    examples = Examples(data.validation, device_of(slimmable.graph.module))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:images]
    batch = next(iter(examples.batches([order])))
    objective = objective_for(data)
    sizes = slimmable.sizes(1.0)
    least = slimmable.sizes(slimmable.minimum)
    whole = slimmable.graph.module
    limit = target.goal(count(sizes))
    modes = {part: part.training for part in whole.modules()}
    try:
        path = [Found(dict(sizes), count(sizes), _score(slimmable, sizes, batch, objective))]
        while path[-1].cost > limit:
            tried = []
            for name, size in sizes.items():
                fewer = max(least[name], size - max(slimmable.divisor, round(step * slimmable.spaces[name].size)))
                if fewer < size:
                    candidate = {**sizes, name: fewer}
                    found = Found(candidate, count(candidate), _score(slimmable, candidate, batch, objective))
                    tried.append(found)
            if not tried:
                raise SurgeryError(f"slim: {target} is {limit:,}; the search ends at {path[-1].cost:,}")
            best = max(tried, key=lambda f: f.score)
            sizes = dict(best.sizes)
            path.append(best)
    finally:
        for part, mode in modes.items():
            part.training = mode
    return path


def _score(slimmable: Slimmable, sizes: Mapping[str, int], batch: Sequence[Any], objective: Any) -> float:
    """The negative loss of a configuration on one batch, with its statistics."""
    slimmable.graph.module.train()
    with torch.no_grad():
        return -float(objective.loss(_Runs(slimmable, sizes), batch)["total"])


class _Runs(nn.Module):
    """A configuration as a module."""

    def __init__(self, slimmable: Slimmable, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.__dict__["narrow"] = slimmable.at(sizes)

    def forward(self, x: Any) -> Any:
        return self.__dict__["narrow"](x)
