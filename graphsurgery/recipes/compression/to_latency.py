"""Cut a network to a latency: widths by a measured table, and the promise by timing the two files in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from graphsurgery.errors import CheckFailedError, SurgeryError
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.exporting.exporter import export_onnx
from graphsurgery.onnx.runtime.latency import Pair, Timing, measure_pair
from graphsurgery.recipes.compression.cost_table import (
    STEPS,
    Bench,
    CostTable,
    FileBench,
    Steps,
    costly,
    find_step,
    largest_step,
    measure_table,
)
from graphsurgery.recipes.compression.shrink import Cut, cut, removal
from graphsurgery.surgery.channels.targets import NANOSECONDS, Target
from graphsurgery.training.data.dataset import Data

ATTEMPTS = 6
_AIM, _NEAR = 0.98, 0.92
"""The search leaves two percent to what varies between measurements, and is content with what comes near that."""
_MORE = 4


class Files(Protocol):
    """A network before and after, as files that the runtime runs."""

    @property
    def original(self) -> Path: ...

    def timed(self, small: ModelGraph, timing: Timing) -> Pair:
        """The original and a network that was cut from it, in turn."""


class NetworkFiles:
    """The files of a network: the `.onnx` file that it came from and rewritten copies of it, or exports.

    Args:
        graph: the network.
        folder: for the files.
        source: the file that it came from, where the result is written back into one.
    """

    def __init__(self, graph: ModelGraph, folder: Path, source: Path | str | None = None) -> None:
        self._folder, self._source = folder, source
        self._shapes = [spec.shape[1:] for spec in graph.inputs]
        if source is None:
            self.original = folder / "original.onnx"
            export_onnx(graph, self.original, check=False)
        else:
            self.original = Path(source)

    def timed(self, small: ModelGraph, timing: Timing) -> Pair:
        """The original and a network that was cut from it, in turn."""
        path = self._folder / "small.onnx"
        if self._source is None:
            export_onnx(small, path, check=False)
        else:
            rewrite_onnx(self._source, small, path)
        return measure_pair(self.original, path, timing, self._shapes)


@contextmanager
def network_files(graph: ModelGraph, source: Path | str | None = None) -> Iterator[NetworkFiles]:
    """`NetworkFiles` in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield NetworkFiles(graph, Path(folder), source)


@dataclass(frozen=True)
class Promise:
    """A latency that was asked for, and what was measured.

    Attributes:
        target: what was asked for.
        pair: the times before and after.
    """

    target: Target
    pair: Pair

    @property
    def kept(self) -> bool:
        """Whether the whole interval of the median is within the target."""
        return self.reached(self.pair.high, self.pair.after.high) <= 1

    @property
    def undecided(self) -> bool:
        """Whether the target lies within the interval."""
        return not self.kept and self.reached(self.pair.low, self.pair.after.low) <= 1

    def reached(self, ratio: float, milliseconds: float) -> float:
        """A ratio, or a time, over what was asked for."""
        return (ratio if self.target.relative else milliseconds) / self.target.amount

    def __str__(self) -> str:
        pair, verdict = self.pair, "kept" if self.kept else "not kept"
        return (
            f"{self.target} {verdict}: {pair.after.median:.4g} ms [{pair.after.low:.4g}, {pair.after.high:.4g}] after "
            f"{pair.before.median:.4g} ms [{pair.before.low:.4g}, {pair.before.high:.4g}], {pair.ratio:.3f}x "
            f"[{pair.low:.3f}, {pair.high:.3f}]"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form."""
        return {"asked": str(self.target), "kept": self.kept, **asdict(self.pair)}


def measure_promise(target: Target, files: Files, small: ModelGraph, timing: Timing) -> Promise:
    """Time the original and the result in turn; where that decides nothing, once more with four times the runs."""
    promise = Promise(target, files.timed(small, timing))
    if promise.undecided:
        promise = Promise(target, files.timed(small, replace(timing, runs=_MORE * timing.runs)))
    return promise


def require_kept(promise: Promise) -> None:
    """Raise CheckFailedError for a promise that is not kept."""
    if not promise.kept:
        raise CheckFailedError(f"compress: {promise}; nothing is written; ask for less, or measure on a quiet machine")


@dataclass(frozen=True)
class LatencyCut:
    """How a network was cut to a latency.

    Attributes:
        plan: the cut, with the step that sizes are multiples of.
        table: what was measured of its operators.
        steps: how that step was found; None where it was given.
        promise: of the cut network, before any training.
        attempts: predicted and measured ratios of what was tried.
    """

    plan: Cut
    table: CostTable
    steps: Steps | None
    promise: Promise
    attempts: tuple[tuple[float, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form."""
        return {
            "promise": self.promise.as_dict(),
            "round_to": self.plan.round_to,
            "steps": None if self.steps is None else self.steps.as_dict(),
            "attempts": [{"predicted": predicted, "measured": measured} for predicted, measured in self.attempts],
            "table": self.table.as_dict(),
        }


def rewarded_step(graph: ModelGraph, bench: Bench) -> Steps:
    """The step that the runtime rewards in the most expensive spaces of a network."""
    spaces = _cuttable(graph)
    return find_step(bench, costly(graph, spaces), largest=largest_step([space.size for space in spaces]))


def cut_to_latency(
    graph: ModelGraph,
    plan: Cut,
    files: Files,
    timing: Timing,
    *,
    auto_step: bool = True,
    data: Data | None = None,
    bench: Callable[[], Bench] | None = None,
) -> tuple[ModelGraph, LatencyCut]:
    """Cut a network so that the runtime takes as long as a target allows, and measure that it does.

    The widths are searched in the table; after each measurement of whole files the table's savings are corrected by
    what was really saved. Of what keeps the promise with two percent to spare, the slowest is taken.

    Args:
        graph: the network; it is not modified.
        plan: what to cut; its target is a latency.
        files: the network as files.
        timing: how times are taken.
        auto_step: find the step that the runtime rewards, instead of the plan's; where the target cannot be reached in
            such steps, the next smaller one is tried.
        data: for an importance that needs it.
        bench: where operators are measured; by default the original file is.

    Raises:
        SurgeryError: the target cannot be reached by the table, or nothing can be measured.
        CheckFailedError: no cut that was tried kept the promise.
    """
    target = plan.target
    if target is None or target.quantity != "latency":
        raise SurgeryError(f"latency: the target is {target}; give one such as latency=0.5x")
    spaces = {space.name: space.size for space in _cuttable(graph, plan)}
    for name in plan.spaces:
        graph.space(name)
    measuring = FileBench(files.original, graph, timing) if bench is None else bench()
    steps = rewarded_step(graph, measuring) if auto_step else None
    plan = plan if steps is None else replace(plan, round_to=steps.step)
    table = None
    while True:
        table = measure_table(measuring, spaces, plan.round_to, table)
        search = _Search(graph, plan, target, table, files, timing, data)
        if target.goal(search.price({})) >= search.price({}):
            raise SurgeryError(f"compress: {target} removes nothing, the network takes {search.whole / 1e3:.4g} ms")
        try:
            first = search.cut()
            break
        except SurgeryError:
            if steps is None or plan.round_to == 1:
                first = search.smallest()
                break
            # Small spaces have few multiples of a large step, or none.
            plan = replace(plan, round_to=max((step for step in STEPS if step < plan.round_to), default=1))
    small, promise = search.run(first)
    return small, LatencyCut(plan, table, steps, promise, tuple(search.attempts))


class _Search:
    """The search for widths, corrected by what whole files take."""

    def __init__(
        self,
        graph: ModelGraph,
        plan: Cut,
        target: Target,
        table: CostTable,
        files: Files,
        timing: Timing,
        data: Data | None,
    ) -> None:
        self.graph, self.plan, self.target, self.table = graph, plan, target, table
        self.files, self.timing, self.data = files, timing, data
        self.whole = table.microseconds({})
        self.correction = 1.0
        self.scale = 1.0
        self.least = 1.0
        self.attempts: list[tuple[float, float]] = []

    def cut(self) -> ModelGraph:
        """The network at the widths that the table, corrected, allows."""
        return cut(self.graph, self.plan, self.data, self.price)

    def smallest(self) -> ModelGraph:
        """The least that can stay: where the table says that it is too slow, whole files decide."""
        if not self.least < 1:
            return self.cut()
        goal = self.target.goal(self.price({})) / self.price({})
        self.correction = (1 - 0.999 * goal) / (1 - self.least)
        return self.cut()

    def run(self, small: ModelGraph) -> tuple[ModelGraph, Promise]:
        """The slowest cut that keeps the promise, starting with this one."""
        best: tuple[ModelGraph, Promise] | None = None
        nearest: Promise | None = None
        tried: list[Mapping[str, Any]] = []
        for _ in range(ATTEMPTS):
            sizes = removal(small)["sizes"]
            if sizes in tried:
                break
            tried.append(sizes)
            promise = Promise(self.target, self.files.timed(small, self.timing))
            part = promise.reached(promise.pair.high, promise.pair.after.high)
            self._learn({name: after for name, (_, after) in sizes.items()}, promise)
            if part <= _AIM and (best is None or promise.pair.ratio > best[1].pair.ratio):
                best = small, promise
            nearest = promise if nearest is None or promise.pair.ratio < nearest.pair.ratio else nearest
            if _NEAR <= part <= _AIM:
                break
            try:
                small = self.cut()
            except SurgeryError:
                break
        if best is None:
            outside = self.table.other / self.whole
            fixed = (
                f" ({outside:.0%} of the time is spent outside operators and cannot be cut)" if outside > 0.1 else ""
            )
            raise CheckFailedError(
                f"compress: of {len(tried)} cuts none keeps the promise, the fastest: {nearest}{fixed}; ask for less, "
                "or measure on a quiet machine"
            )
        return best

    def price(self, sizes: Mapping[str, int]) -> int:
        """Nanoseconds of a run, by the table and what was measured since."""
        ratio = self.table.microseconds(sizes) / self.whole
        self.least = min(self.least, ratio)
        return round(1e3 * self.whole * self.scale * (1 - self.correction * (1 - ratio)))

    def _learn(self, sizes: Mapping[str, int], promise: Promise) -> None:
        """Correct what is saved by what was saved, two percent aside."""
        predicted = self.table.microseconds(sizes) / self.whole
        self.attempts.append((predicted, promise.pair.ratio))
        self.correction = (1 - promise.pair.high / _AIM) / max(1e-6, 1 - predicted)
        if not self.target.relative:
            self.scale = promise.pair.before.high * NANOSECONDS / (1e3 * self.whole)


def _cuttable(graph: ModelGraph, plan: Cut | None = None) -> list[Space]:
    """The spaces that a search may cut: outer ones, those inside where the plan cuts in groups, and named ones.

    Positions are cut only where they are named.
    """
    inside = plan is not None and plan.within != "groups"
    named = () if plan is None else plan.spaces
    free = [space for space in graph.spaces if not space.positions and (space.outer or inside)]
    return [space for space in graph.spaces if space in free or space.name in named]
