"""Grow: a wider or deeper network that starts as the teacher, trained on at a tenth of its learning rate.

Next to it stand the controls of the paper: the same architecture from scratch, the teacher's weights padded with fresh
ones, and the teacher trained on. Every network gets as many epochs, and every step is measured.

Source: Chen, Goodfellow, Shlens, "Net2Net", arXiv:1511.05641, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.spec_text import parse_value
from graphsurgery.passes.deepen import deepen
from graphsurgery.passes.widen import EXACT, widen
from graphsurgery.progress import phase
from graphsurgery.recipes.compression.shrink import fine_tuning
from graphsurgery.recipes.contracts.edit_checks import unchanged
from graphsurgery.recipes.experiment import Experiment
from graphsurgery.recipes.outcome import Check, Outcome, Result, comparison
from graphsurgery.surgery.growth.fresh_weights import reinitialized
from graphsurgery.training.data.batches import Examples
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.data.loading import check_fits, recorded
from graphsurgery.training.devices import device_of
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run

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

    def __post_init__(self) -> None:
        if "auto" in self.after and len(self.after) > 1:
            raise SurgeryError("deepen: --after auto takes every place; give no other beside it")
        if not self.after and (self.count, self.block) != (Growth.count, Growth.block):
            raise SurgeryError(
                "grow: --count and --block are of what comes in; say where with --after, or leave them out"
            )

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


@phase("growing the network")
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

    def settings(self) -> dict[str, Any]:
        """What fixes the result beside the growth, so that an interrupted run can go on."""
        trainings = {"training": self.training, "scratch": self.scratch}
        found = {name: plan.what_fixes_the_result() for name, plan in trainings.items()}
        return {**found, "controls": list(self.controls)}


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
    run: Run | None = None,
    reporter: Reporter | None = None,
    made: Callable[[ModelGraph], None] | None = None,
) -> Result[Outcome]:
    """Widen and deepen a trained network and train it on, next to its controls.

    Args:
        teacher: a trained network; it is not modified.
        data: what it was trained on; only measured on `data.test`.
        plan: how.
        run: folder for metrics and states; an interrupted run goes on from it.
        reporter: told about progress.
        made: given the grown and trained network as soon as it is there, before the controls are trained.

    Raises:
        SurgeryError: as for `grown`, an unknown control, the data do not fit, or training fails.
        CheckFailedError: what has grown does not give what the teacher gives; nothing is trained then.
    """
    unknown = [name for name in plan.controls if name not in CONTROLS]
    if unknown:
        raise SurgeryError(f"grow: unknown control {unknown[0]!r}; choose from {', '.join(CONTROLS)}")
    check_fits(data, teacher.module)
    books = Experiment(data, device=plan.training.device, run=run, reporter=reporter)
    growth = plan.growth
    books.measure("teacher", teacher)
    start = grown(teacher, growth, data)
    held = check(teacher, start, growth)
    books.require(held)
    books.measure("grown, untrained", start, note="" if held else f"{growth.init} changes the outputs")
    compared = _controls(teacher, start, plan, books)  # what cannot be built is found before anything is trained
    _trained(books, "grown", start, plan.training)
    record = {"pass": "grow", **recorded(data), "plan": asdict(plan.training)}
    result = replace(start, lineage=(*start.lineage, record))
    if made is not None:
        made(result)
    for control in compared:
        control()
    config = {
        "growth": growth.as_dict(),
        "training": asdict(plan.training),
        "scratch": asdict(plan.scratch),
        "controls": list(plan.controls),
    }
    return Result(result, books.outcome(f"grown on {data.name}", _verdict(books), config))


def _controls(teacher: ModelGraph, start: ModelGraph, plan: GrowPlan, books: Experiment) -> list[Callable[[], None]]:
    """The controls of a plan, ready to be trained."""
    growth, found = plan.growth, list[Callable[[], None]]()
    if "random-pad" in plan.controls and growth.widens:
        padded = grown(teacher, replace(growth, init="random-pad"), books.data)
        found.append(lambda: _padded(books, padded, plan))
    if "scratch" in plan.controls:
        fresh = reinitialized(start, growth.seed + 1)
        note = "the same architecture, at the full rate"
        found.append(lambda: _trained(books, "from scratch", fresh, plan.scratch, note))
    if "teacher continued" in plan.controls:
        again = teacher.copy()
        found.append(lambda: _trained(books, "teacher continued", again, plan.training))
    return found


def _padded(books: Experiment, padded: ModelGraph, plan: GrowPlan) -> None:
    books.measure("random padding, untrained", padded)
    _trained(books, "random padding", padded, plan.training)


def _trained(books: Experiment, name: str, graph: ModelGraph, plan: TrainingPlan, note: str = "") -> None:
    """Train a network in place, and write its row."""
    books.train(graph, plan, name.replace(" ", "-"))
    epochs = "1 epoch" if plan.epochs == 1 else f"{plan.epochs} epochs"
    books.measure(name, graph, note=note or f"{epochs} at {plan.lr:g}")


def _verdict(books: Experiment) -> str:
    """One sentence on whether growing paid, by the test metric."""
    scores = books.scores()
    names = {
        "teacher": "the teacher",
        "teacher continued": "the teacher trained as long",
        "random padding": "random padding",
        "from scratch": "the same architecture from scratch",
    }
    others = {shown: scores[name] for name, shown in names.items() if name in scores}
    return comparison("the grown network", scores["grown"], others, books.objective)
