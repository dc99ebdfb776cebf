"""Grow: a wider or deeper network that starts as the teacher, trained on at a tenth of its learning rate.

Next to it stand the controls of the paper: the same architecture from scratch, the teacher's weights padded with fresh
ones, and the teacher trained on. Every network gets as many epochs, and every step is measured.

Source: Chen, Goodfellow, Shlens, "Net2Net", arXiv:1511.05641, sections 2 and 3.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.spec_text import parse_value
from graphsurgery.passes.deepen import deepen
from graphsurgery.passes.widen import EXACT, widen
from graphsurgery.recipes.compression.shrink import fine_tuning
from graphsurgery.recipes.contracts.edit_checks import unchanged
from graphsurgery.recipes.outcome import Check, Outcome, Row, comparison, required
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.growth.fresh_weights import reinitialized
from graphsurgery.training.data.batches import Examples
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.data.loading import check_fits, recorded
from graphsurgery.training.devices import device_of
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import EpochRecord, Run
from graphsurgery.training.objectives.tasks import objective_for

CONTROLS = ("random-pad", "scratch", "teacher continued")


@dataclass(frozen=True)
class Growth:
    """How a network grows: wider, deeper, or wider and then deeper.

    Attributes:
        by: factor on the size of every space; None leaves those that `to` does not name.
        to: new size (int) or factor (float) of single spaces, by name.
        like: instead of both, a network that has the sizes.
        init: what new channels are; see `widen`.
        noise: of `equal+noise`.
        round_to: sizes that follow from a factor become multiples of this.
        after: places for more layers; `auto` is what is proposed; none makes it no deeper.
        count: how many at each place.
        block: what comes in; see `deepen`.
        seed: of what is drawn.
    """

    by: float | None = None
    to: Mapping[str, int | float] = field(default_factory=dict)
    like: ModelGraph | None = None
    init: str = "unequal"
    noise: float = 0.05
    round_to: int = 1
    after: tuple[str, ...] = ()
    count: int = 1
    block: str = "auto"
    seed: int = 0

    @property
    def widens(self) -> bool:
        """Whether spaces grow."""
        return self.by is not None or bool(self.to) or self.like is not None

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form; the pattern is only said to be there."""
        return {**asdict(replace(self, like=None)), "like": self.like is not None}


def parse_factor(text: str) -> float:
    """`1.5x` or `1.5` as a number.

    Raises:
        SurgeryError: it is no number.
    """
    value = parse_value(text.removesuffix("x"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SurgeryError(f"widen: {text!r} is no factor; expected a number as in 1.5x")
    return float(value)


def parse_sizes(requests: Sequence[str]) -> dict[str, int | float]:
    """The requests `conv1=96,fc=1.5x` by name: channels, or a factor where they end in x or have a fraction.

    Raises:
        SurgeryError: one of them is neither.
    """
    sizes: dict[str, int | float] = {}
    for request in (part for text in requests for part in text.split(",")):
        name, _, text = request.rpartition("=")
        value = parse_value(text.removesuffix("x"))
        if not name or isinstance(value, bool) or not isinstance(value, int | float):
            raise SurgeryError(f"widen: {request!r}; expected NAME=96 channels or NAME=1.5x, a factor")
        sizes[name] = float(value) if text.endswith("x") else value
    return sizes


def grown(graph: ModelGraph, growth: Growth, data: Data | None = None) -> ModelGraph:
    """A wider and deeper network; with data, norms that stand before identity layers get the statistics that arrive.

    Raises:
        SurgeryError: as for `widen` and `deepen`, or nothing to do.
    """
    if not (growth.widens or growth.after):
        raise SurgeryError("grow: nothing says how; give --by, --to or --like to widen, --after to deepen")
    if growth.widens:
        options: dict[str, Any] = {"like": growth.like} if growth.like else {"by": growth.by, "to": growth.to}
        options |= {"init": growth.init, "noise": growth.noise, "round_to": growth.round_to, "seed": growth.seed}
        graph = widen(graph, **options)
    if growth.after:
        examples = None if data is None else _examples(data, graph)
        after = growth.after[0] if len(growth.after) == 1 else growth.after
        graph = deepen(graph, after, growth.count, block=growth.block, examples=examples, seed=growth.seed)
    return graph


def _examples(data: Data, graph: ModelGraph, images: int = 1000) -> list[torch.Tensor]:
    """Training inputs for statistics."""
    examples = Examples(data.train, device_of(graph.module))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:images]
    x = next(iter(examples.batches([order])))[0]
    return [x.to(next(graph.module.parameters())) if x.is_floating_point() else x]


def check(before: ModelGraph, after: ModelGraph, growth: Growth) -> Check | None:
    """The contract of growth; None where an init promises nothing."""
    if growth.widens and growth.init not in EXACT:
        return None
    return unchanged("grown = original", before, after, growth.seed)


@dataclass(frozen=True)
class GrowPlan:
    """How to grow and how to compare.

    Attributes:
        growth: what becomes wider or deeper.
        training: of the grown network, of the padded one and of the teacher; usually a tenth of the teacher's rate.
        scratch: of the new network; usually as the teacher was trained, for as many epochs.
        controls: which of `CONTROLS` are trained too.
    """

    growth: Growth
    training: TrainingPlan
    scratch: TrainingPlan
    controls: tuple[str, ...] = CONTROLS


def default_plan(
    teacher: ModelGraph, growth: Growth, *, controls: tuple[str, ...] = CONTROLS, **settings: Any
) -> GrowPlan:
    """A plan with the teacher's training at a tenth of its rate; these settings change all trainings."""
    settings = {"epochs": 5, "seed": growth.seed, "keep_best": False, **settings}
    training = fine_tuning(teacher, **settings)
    full = 10 * fine_tuning(teacher).lr
    return GrowPlan(growth, training, replace(training, lr=full), controls)


def grow(
    teacher: ModelGraph,
    data: Data,
    plan: GrowPlan,
    *,
    folder: Run | None = None,
    reporter: Reporter | None = None,
    made: Callable[[ModelGraph], None] | None = None,
) -> tuple[ModelGraph, Outcome]:
    """Widen and deepen a trained network and train it on, next to its controls.

    Args:
        teacher: a trained network; it is not modified.
        data: what it was trained on; only measured on `data.test`.
        plan: how.
        folder: for metrics and states; an interrupted run goes on from it.
        reporter: told about progress.
        made: given the grown and trained network as soon as it is there, before the controls are trained.

    Raises:
        SurgeryError: as for `grown`, an unknown control, the data do not fit, or training fails.
        CheckFailedError: what has grown does not give what the teacher gives; nothing is trained then.
    """
    unknown = [name for name in plan.controls if name not in CONTROLS]
    if unknown:
        raise SurgeryError(f"grow: unknown control {unknown[0]!r}; choose from {', '.join(CONTROLS)}")
    began = time.perf_counter()
    check_fits(data, teacher.module)
    work = _Growing(teacher, data, plan, folder, reporter, made)
    graph = work.go()
    return graph, replace(work.outcome(), seconds=time.perf_counter() - began)


class _Growing:
    """One growth in progress."""

    def __init__(
        self,
        teacher: ModelGraph,
        data: Data,
        plan: GrowPlan,
        folder: Run | None,
        reporter: Reporter | None,
        made: Callable[[ModelGraph], None] | None,
    ) -> None:
        self.made = made
        self.teacher, self.data, self.plan, self.folder, self.reporter = teacher, data, plan, folder, reporter
        self.objective = objective_for(data)
        self.rows: list[Row] = []
        self.curves: list[EpochRecord] = []
        self.checks: list[Check] = []

    def go(self) -> ModelGraph:
        """All steps, in order."""
        growth = self.plan.growth
        self._row("teacher", self.teacher)
        start = grown(self.teacher, growth, self.data)
        held = check(self.teacher, start, growth)
        self.checks += [] if held is None else [required(held)]
        self._row("grown, untrained", start, note="" if held else f"{growth.init} changes the outputs")
        # What cannot be built is found before anything is trained.
        padded = again = fresh = None
        if "random-pad" in self.plan.controls and growth.widens:
            padded = grown(self.teacher, replace(growth, init="random-pad"), self.data)
        if "scratch" in self.plan.controls:
            fresh = reinitialized(start, growth.seed + 1)
        if "teacher continued" in self.plan.controls:
            again = self.teacher.copy()
        result = self._trained("grown", start, self.plan.training)
        record = {"pass": "grow", **recorded(self.data), "plan": asdict(self.plan.training)}
        result = replace(result, lineage=(*result.lineage, record))
        if self.made is not None:
            self.made(result)
        if padded is not None:
            self._row("random padding, untrained", padded)
            self._trained("random padding", padded, self.plan.training)
        if fresh is not None:
            self._trained("from scratch", fresh, self.plan.scratch, note="the same architecture, at the full rate")
        if again is not None:
            self._trained("teacher continued", again, self.plan.training)
        return result

    def _trained(self, name: str, graph: ModelGraph, plan: TrainingPlan, note: str = "") -> ModelGraph:
        history = fit(
            graph.module,
            self.data.train,
            plan,
            objective=self.objective,
            validation=self.data.validation,
            run=self.folder,
            stage=name.replace(" ", "-"),
            reporter=self.reporter,
        )
        self.curves.extend(history.records)
        epochs = "1 epoch" if plan.epochs == 1 else f"{plan.epochs} epochs"
        self._row(name, graph, note=note or f"{epochs} at {plan.lr:g}")
        return graph

    def _row(self, name: str, graph: ModelGraph, note: str = "") -> None:
        size, device = cost(graph), self.plan.training.device
        test = evaluate(graph.module, self.data.test, self.objective, device=device)
        validation = evaluate(graph.module, self.data.validation, self.objective, device=device)
        self.rows.append(Row(name, test, validation, size.parameters, size.macs, note=note))

    def outcome(self) -> Outcome:
        """What was found out."""
        score, higher = self.objective.score, self.objective.higher_is_better
        return Outcome(
            title=f"grown on {self.data.name}",
            rows=tuple(self.rows),
            metric=score,
            higher_is_better=higher,
            curves=tuple(self.curves),
            checks=tuple(self.checks),
            verdict=_verdict(self.rows, score, higher),
            config={
                "growth": self.plan.growth.as_dict(),
                "training": asdict(self.plan.training),
                "scratch": asdict(self.plan.scratch),
                "controls": list(self.plan.controls),
            },
        )


def _verdict(rows: Sequence[Row], metric: str, higher: bool) -> str:
    """One sentence on whether growing paid, by the test metric."""
    scores = {row.name: row.test[metric] for row in rows}
    names = {
        "teacher": "the teacher",
        "teacher continued": "the teacher trained as long",
        "random padding": "random padding",
        "from scratch": "the same architecture from scratch",
    }
    others = {shown: scores[name] for name, shown in names.items() if name in scores}
    return comparison("the grown network", scores["grown"], others, metric, higher)
