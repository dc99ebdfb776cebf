"""Lottery tickets: train, prune, start again, round after round, next to controls and over several seeds.

Every round keeps `density ** (1 / rounds)` of the weights that live, so that the last one has the density that is asked
for; in one shot every density is cut from the dense network at once. What is chosen is chosen on validation data.

Source: Frankle & Carbin, "The Lottery Ticket Hypothesis", arXiv:1803.03635, section 2; rewinding to an early step:
Frankle et al., arXiv:1903.01611; learning rate rewinding, the default: Renda et al., arXiv:2003.02389.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from graphsurgery.checkpoint.files import load, save
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.spec_text import anchored
from graphsurgery.recipes.compression.shrink import with_gradients
from graphsurgery.recipes.experiment import Experiment
from graphsurgery.recipes.lottery.plans import LotteryPlan
from graphsurgery.recipes.lottery.tickets import TICKET, Lottery, Point, mean_and_deviation
from graphsurgery.recipes.outcome import Check, Result, Row, required
from graphsurgery.recipes.train import fresh
from graphsurgery.surgery.gates import has_gates
from graphsurgery.surgery.growth.fresh_weights import reinitialized
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable
from graphsurgery.surgery.masks.plans import CONTROLS, Restart
from graphsurgery.surgery.masks.restarts import Start, put, restart
from graphsurgery.surgery.masks.selection import WEIGHT_CRITERIA, select
from graphsurgery.surgery.masks.training import masked
from graphsurgery.training.data.batches import mixed_seed
from graphsurgery.training.data.dataset import Data, size_of
from graphsurgery.training.data.loading import check_fits, recorded
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.loop.snapshots import LossReadings, Snapshot
from graphsurgery.training.objectives.tasks import Objective, rank_of

_CONTRACT = "dead weights = what the mask makes of them"


def lottery(
    spec: str,
    data: Data,
    plan: LotteryPlan,
    *,
    start: ModelGraph | None = None,
    run: Run | None = None,
    folder: Path | None = None,
    reporter: Reporter | None = None,
) -> Result[Lottery]:
    """Draw tickets from the network of a spec, or from one that is there.

    Args:
        spec: which network, such as `paper/lenet_300_100`; with `start`, what it is called.
        data: what it learns; only measured on `data.test`.
        plan: how.
        start: a network whose weights stand for those that a seed draws, and that tickets go back to; then seeds differ
            in the order of the examples, and new draws for controls are by the rule of each layer. It is not modified.
        run: folder for metrics and states; an interrupted run goes on from it, between rounds and within them.
        folder: gets the ticket of every round, trained, with its masks in the metadata: `seed-0/round-03.pt`.
        reporter: told about progress.

    Returns:
        The chosen ticket of the first network, trained (the last one, where none is as good as the dense network), and
        everything that was found out. Without a folder the tickets of the first network stay in memory until then.

    Raises:
        SurgeryError: a density that empties a tensor, a step to go back to that training does not reach, the data do
            not fit, a start with gates, or training fails.
        CheckFailedError: the dead weights of a ticket are not what its mask makes of them; it is not written.
    """
    if start is not None:
        check_fits(data, start.module, name=spec)
        if has_gates(start):
            raise SurgeryError(f"lottery: {spec} has gates; fold or compress it first")
    books = Experiment(data, device=plan.training.device, run=run, reporter=reporter)
    seeds = [_Seed(spec, plan, number, start, folder, books) for number in range(plan.seeds)]
    for one in seeds:
        one.go()
    books.require(max((one.check for one in seeds), key=lambda check: check.measured))
    config = {"spec": spec, "data": data.name, "plan": asdict(plan)}
    found = Lottery(
        **books.findings(f"tickets of {spec} on {data.name}", "", config),
        points=tuple(point for one in seeds for point in one.points),
        masks={(number, index): masks for number, one in enumerate(seeds) for index, masks in one.masks.items()},
    )
    found = replace(found, rows=tuple(_rows(found)), verdict=_verdict(found))
    return Result(seeds[0].ticket(found.delivered), found)


def _rows(found: Lottery) -> Iterator[Row]:
    """The means over the seeds: of the dense network, and of the ticket and the controls of every round."""
    for number in found.rounds:
        for name in dict.fromkeys(point.name for point in found.points if point.round == number):
            points = found.of(number, name)
            called = f"{name} of round {number}" if number else "dense"
            means = _means([point.test for point in points]), _means([point.validation for point in points])
            yield Row(called, *means, note=f"{points[0].density:.2%} of the weights live")


def _means(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric."""
    return {name: mean_and_deviation([metrics[name] for metrics in measured])[0] for name in measured[0]}


def _verdict(found: Lottery) -> str:
    """Which round is best, by what."""
    if found.chosen is None:
        return f"no round: by validation {found.metric} all are worse than the dense network"
    return f"round {found.chosen}, the last whose mean validation {found.metric} is not worse than the dense network's"


def _moved(weights: Mapping[str, Tensor], start: Start) -> float:
    """How far dead weights are from their constants, at most."""
    apart = [0.0]
    for name, living in start.masks.items():
        weight = weights[name].detach().cpu()
        constant = start.dead[name].to(weight) if name in start.dead else torch.zeros_like(weight)
        apart.append(float((weight - constant)[~living].abs().max()) if not bool(living.all()) else 0.0)
    return max(apart)


class _Seed:
    """The rounds of one network."""

    def __init__(
        self,
        spec: str,
        plan: LotteryPlan,
        number: int,
        start: ModelGraph | None,
        folder: Path | None,
        books: Experiment,
    ) -> None:
        self.spec, self.plan, self.number, self.start, self.folder = spec, plan, number, start, folder
        self.books, self.data = books, books.data
        self.training = replace(plan.training, seed=plan.training.seed + number)
        self.steps = math.ceil(size_of(self.data.train) / plan.training.batch_size)
        self.points: list[Point] = []
        self.masks: dict[int, MaskSet] = {}
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.check = Check(_CONTRACT, 0.0, 0.0)

    def go(self) -> None:
        """The dense network, then every round."""
        plan = self.plan
        self.graph = self._begun()
        self.first = self._values()
        self.gradients = self._gradients()
        everything = self.masks[0] = MaskSet.ones(self.graph)
        self.early = self._dense()
        dense = trained = self._values()
        for number in range(1, plan.rounds + 1):
            before = everything if plan.one_shot else self.masks[number - 1]
            put(self.graph, dense if plan.one_shot else trained)
            masks = self.masks[number] = self._selected(before, plan.keep(number))
            starts = {TICKET: plan.restart}
            if number in (plan.control_rounds or range(1, plan.rounds + 1)):
                starts |= {name: CONTROLS[name] for name in plan.controls}
            last = self._values()
            for name, how in starts.items():
                put(self.graph, last)
                start = self._start(number, name, how, masks, before)
                self._train(number, name, start)
                if name == TICKET:
                    trained = self._values()
                    self._check(start)
                    self._keep(number, masks)

    def _begun(self) -> ModelGraph:
        """The network before any training."""
        if self.start is None:
            return fresh(self.spec, self.data, self.training.seed)
        return replace(self.start.copy(), origin=None)

    def _redrawn(self, seed: int) -> dict[str, Tensor]:
        """The values of such a network whose weights are new."""
        new = fresh(self.spec, self.data, seed) if self.start is None else reinitialized(self.start, seed)
        return new.tensors()

    def _values(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.graph.tensors().items()}

    def _gradients(self) -> dict[str, Tensor] | None:
        """Of the loss at the first weights, where the criterion wants them."""
        if "gradient" not in inspect.signature(WEIGHT_CRITERIA[self.plan.selection.criterion]).parameters:
            return None
        found = maskable(with_gradients(self.graph, self.data))
        return {name: weight.grad for name, weight in found.items() if weight.grad is not None}

    def _selected(self, before: MaskSet, keep: float) -> MaskSet:
        chosen = replace(self.plan.selection, seed=mixed_seed(self.plan.selection.seed, self.training.seed))
        return select(self.graph, before, keep, chosen, initial=self.first, gradients=self.gradients)

    def _start(self, number: int, name: str, how: Restart, masks: MaskSet, before: MaskSet) -> Start:
        """Where a training begins."""
        draw = mixed_seed(self.training.seed, number, *name.encode())
        new = self._redrawn(draw) if how.kept == "reinit" else None
        return restart(self.graph, masks, how, self.early, before=before, fresh=new, seed=draw)

    def _dense(self) -> dict[str, Tensor]:
        """Train the dense network; its weights at the step to go back to."""
        watched = Snapshot(self.books.objective, self.graph.module, self.plan.rewind_to)
        self._fit(0, TICKET, self.masks[0], watched)
        if watched.values is None:
            raise SurgeryError(
                f"lottery: rewind_to is step {self.plan.rewind_to}, training has {watched.done}; give one of them"
            )
        return watched.values

    def _train(self, number: int, name: str, start: Start) -> None:
        put(self.graph, start.values)
        with masked(self.graph, start.masks, start.dead):
            self._fit(number, name, start.masks, self.books.objective)

    def _fit(self, number: int, name: str, masks: MaskSet, objective: Objective) -> None:
        """Train the module as it is, and measure it."""
        readings = LossReadings(objective, self.graph.module, self.data.validation, self.plan.stop_every)
        stage = f"seed-{self.number}.round-{number:02d}.{re.sub(r'[^a-z0-9]+', '-', name)}"
        history = self.books.fit(self.graph.module, self.training, stage, objective=readings)
        measured = self.books.scored(self.graph.module)
        losses = readings.losses | {self.steps * r.epoch: r.validation["loss"] for r in history.records}
        stop = max(losses, key=lambda step: rank_of(losses[step], higher_is_better=False), default=0)
        self.points.append(Point(self.number, number, name, masks.density, **measured, stop=stop))

    def _check(self, start: Start) -> None:
        """What was trained has dead weights that are 0, or the constants that the plan makes of them."""
        found = required(Check(_CONTRACT, _moved(maskable(self.graph), start), 0.0))
        self.check = max(self.check, found, key=lambda check: check.measured)

    def _keep(self, number: int, masks: MaskSet) -> None:
        """Write the ticket of a round; without a folder those of the first network are kept, to be given out."""
        place = self._place(number)
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            save(self._recorded(number), place, masks=masks.as_dict(), metrics=asdict(self.points[-1]))
        elif self.number == 0:
            self.kept[number] = self._values()

    def _place(self, number: int) -> Path | None:
        return None if self.folder is None else self.folder / f"seed-{self.number}" / f"round-{number:02d}.pt"

    def ticket(self, number: int) -> ModelGraph:
        """The trained ticket of a round."""
        place = self._place(number)
        if place is not None:
            return load(place)
        put(self.graph, self.kept[number])
        return self._recorded(number)

    def _recorded(self, number: int) -> ModelGraph:
        """The network with a record of its round."""
        record = {
            "pass": "lottery",
            "spec": anchored(self.spec),
            **recorded(self.data),
            "round": number,
            "density": self.masks[number].density,
            "plan": asdict(self.training),
        }
        return replace(self.graph, lineage=(*self.graph.lineage, record))
