"""Cut a network to a latency: widths by a measured table, and the promise by timing the two files in turn."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from graphsurgery.errors import CheckFailedError, SurgeryError
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.exporting.exporter import export_onnx
from graphsurgery.onnx.runtime.latency import Pair, Timing, measure_pair
from graphsurgery.progress import phase
from graphsurgery.recipes.compression.bracket import NEAR, Bracket, Trial
from graphsurgery.recipes.compression.cost_table import (
    STEPS,
    CostTable,
    CutBench,
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

ATTEMPTS = 10
_MORE = 4
_ABOVE = 1 + 1e-6
"""What a rounding error may take from the least share."""


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
        self._inputs = graph.inputs
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
        return self.timed_file(path, timing)

    def timed_file(self, path: Path, timing: Timing) -> Pair:
        """The original and a file of a network that was cut from it, in turn."""
        return measure_pair(self.original, path, timing, [spec.sizes(timing.batch) for spec in self._inputs])


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

    @property
    def spare(self) -> float:
        """The share of what is allowed that the whole interval leaves; more than five percent are a failed search."""
        return 1 - self.reached(self.pair.high, self.pair.after.high)

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
        return {"asked": str(self.target), "kept": self.kept, "spare": self.spare, **asdict(self.pair)}


def measure_promise(target: Target, timed: Callable[[Timing], Pair], timing: Timing) -> Promise:
    """Time the original and the result in turn; where that decides nothing, once more with four times the runs.

    Args:
        target: what was asked for.
        timed: times both.
        timing: how.
    """
    with phase("measuring the promise"):
        promise = Promise(target, timed(timing))
    if promise.undecided:
        promise = Promise(target, timed(replace(timing, runs=_MORE * timing.runs)))
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

    @property
    def missed(self) -> str:
        """By how much the search has missed the target, in words; empty where it is within five percent below it."""
        if self.promise.spare <= 1 - NEAR + 1e-9:
            return ""
        return (
            f"the search failed by {self.promise.spare:.0%}: so much of {self.promise.target} is left, as none of "
            f"{len(self.attempts)} cuts came closer from below"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form."""
        return {
            "promise": self.promise.as_dict(),
            "missed": self.missed,
            "round_to": self.plan.round_to,
            "steps": None if self.steps is None else self.steps.as_dict(),
            "attempts": [{"predicted": predicted, "measured": measured} for predicted, measured in self.attempts],
            "table": self.table.as_dict(),
        }


def rewarded_step(graph: ModelGraph, bench: CutBench) -> Steps:
    """The step that the runtime rewards in the most expensive spaces of a network."""
    spaces = _cuttable(graph)
    return find_step(bench, costly(graph, spaces), largest=largest_step([space.size for space in spaces]))


class Timed(NamedTuple):
    """What the runtime takes for a network at any widths, and the step of widths that it rewards."""

    table: CostTable
    steps: Steps


def timed(graph: ModelGraph, files: Files, timing: Timing) -> Timed:
    """Time the operators of a network with each of its spaces cut.

    Raises:
        SurgeryError: no space can be measured.
    """
    bench = FileBench(files.original, graph, timing)
    steps = rewarded_step(graph, bench)
    spaces = {space.name: space.size for space in graph.spaces if not space.positions}
    return Timed(measure_table(bench, spaces, steps.step), steps)


def cut_to_latency(
    graph: ModelGraph,
    plan: Cut,
    files: Files,
    timing: Timing,
    *,
    auto_step: bool = True,
    data: Data | None = None,
    bench: Callable[[], CutBench] | None = None,
) -> tuple[ModelGraph, LatencyCut]:
    """Cut a network so that the runtime takes as long as a target allows, and measure that it does.

    The widths are searched in the table, between those at which whole files are known to be too slow and those at which
    they are fast enough. What is slower than the original is too slow and says no more. Of what keeps the promise with
    two percent to spare, that which keeps most is taken; what is within five percent ends the search.

    Args:
        graph: the network; it is not modified.
        plan: what to cut; its target is a latency.
        files: the network as files.
        timing: how times are taken.
        auto_step: find the step that the runtime rewards, instead of the plan's; where the target cannot be reached in
            such steps, or nothing near it, the next smaller one is tried.
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
    search = _Search(graph, plan, files, timing, data)
    table = None
    sizes = (plan.round_to,) if steps is None else _smaller(steps.step)
    for step in sizes:
        table = measure_table(measuring, spaces, step, table)
        search.in_steps(step, table, last=step == sizes[-1])
        if search.done:
            break
    if search.best is None:
        raise search.failure()
    best = search.best
    assert table is not None
    return best.small, LatencyCut(best.plan, table, steps, best.promise, tuple(search.attempts))


def _smaller(step: int) -> tuple[int, ...]:
    """A step and those below it: small spaces have few multiples of a large one, or none near what is asked."""
    return (step, *(other for other in STEPS if other < step), *((1,) if step > 1 else ()))


@dataclass(frozen=True)
class _Found:
    """A cut that was measured, with what the table predicts of it."""

    small: ModelGraph
    promise: Promise
    plan: Cut
    predicted: float

    @property
    def part(self) -> float:
        """What it takes at most, over what is allowed."""
        return self.promise.reached(self.promise.pair.high, self.promise.pair.after.high)

    @property
    def trial(self) -> Trial:
        return Trial(self.predicted, self.part)


class _Search:
    """The search for widths: the table says what to try, and whole files decide."""

    def __init__(self, graph: ModelGraph, plan: Cut, files: Files, timing: Timing, data: Data | None) -> None:
        assert plan.target is not None
        self.graph, self.plan, self.target = graph, plan, plan.target
        self.files, self.timing, self.data = files, timing, data
        self.attempts: list[tuple[float, float]] = []
        self.best: _Found | None = None
        self._nearest: Promise | None = None
        self._trials: list[Trial] = []
        self._known: dict[tuple[int, ...], float] = {}
        """The part that was measured, by the sizes."""

    @property
    def done(self) -> bool:
        """Whether a cut is near what the target allows, or all attempts are spent."""
        return (self.best is not None and self.best.part >= NEAR) or len(self.attempts) >= ATTEMPTS

    def in_steps(self, step: int, table: CostTable, *, last: bool) -> None:
        """Try cuts whose sizes are multiples of a step.

        Raises:
            SurgeryError: the target asks for nothing to go.
        """
        self.plan, self.table = replace(self.plan, round_to=step), table
        self.whole = table.microseconds({})
        self._now = round(1e3 * self.whole)
        self.allowed = self.target.amount
        if not self.target.relative:
            self.allowed *= NANOSECONDS / self._now
        if self.allowed >= 1:
            raise SurgeryError(f"compress: {self.target} removes nothing, the network takes {self.whole / 1e3:.4g} ms")
        self.least = 1.0
        try:
            self.cut(self.allowed)
        except SurgeryError:
            if self.least == 1.0:  # it is not about the target
                raise
        if self.least <= self.allowed or last:  # by the table; where nothing smaller is left, whole files decide
            self._run()

    def cut(self, share: float) -> ModelGraph:
        """The network at the widths that leave at most a share of the time by the table.

        Raises:
            SurgeryError: no widths do, or all channels would stay.
        """
        self.share = share
        return cut(self.graph, self.plan, self.data, self.price)

    def price(self, sizes: Mapping[str, int]) -> int:
        """Nanoseconds of a run by the table, bent so that the share that is tried is what the target allows."""
        ratio = self.table.microseconds(sizes) / self.whole
        self.least = min(self.least, ratio)
        below = self.allowed * ratio / self.share
        above = self.allowed + (1 - self.allowed) * (ratio - self.share) / max(1e-9, 1 - self.share)
        return math.floor(self._now * (below if ratio <= self.share else above))

    def _run(self) -> None:
        """Try cuts until one is near what the target allows, or none is left to try."""
        bracket = Bracket(1 / self.allowed, self.least * _ABOVE, list(self._trials))
        for share in bracket.shares():
            try:
                small = self.cut(share)
            except SurgeryError:  # all channels stay
                bracket.trials.append(Trial(share, bracket.whole))
                continue
            sizes = tuple(after for _, after in removal(small)["sizes"].values())
            if sizes not in self._known:
                if self.done:
                    break
                found = self._measured(small)
                self._known[sizes] = found.part
                self._trials.append(found.trial)
                bracket.whole = found.promise.reached(1.0, found.promise.pair.before.median)
            bracket.trials.append(Trial(share, self._known[sizes]))

    def _measured(self, small: ModelGraph) -> _Found:
        """A cut that whole files have timed; of those that are fast enough the one that keeps most is the best."""
        sizes = {name: after for name, (_, after) in removal(small)["sizes"].items()}
        with phase(f"trying cut {len(self.attempts) + 1} of at most {ATTEMPTS}"):
            promise = Promise(self.target, self.files.timed(small, self.timing))
        found = _Found(small, promise, self.plan, self.table.microseconds(sizes) / self.whole)
        self.attempts.append((found.predicted, promise.pair.ratio))
        if found.trial.fast and (self.best is None or found.predicted > self.best.predicted):
            self.best = found
        if self._nearest is None or promise.pair.ratio < self._nearest.pair.ratio:
            self._nearest = promise
        return found

    def failure(self) -> CheckFailedError:
        """That no cut keeps the promise."""
        outside = self.table.other / self.whole
        fixed = f" ({outside:.0%} of the time is spent outside operators and cannot be cut)" if outside > 0.1 else ""
        return CheckFailedError(
            f"compress: of {len(self.attempts)} cuts none keeps the promise, the fastest: {self._nearest}{fixed}; ask "
            "for less, or measure on a quiet machine"
        )


def _cuttable(graph: ModelGraph, plan: Cut | None = None) -> list[Space]:
    """The spaces that a search may cut: outer ones, those inside where the plan cuts in groups, and named ones.

    Positions are cut only where they are named.
    """
    inside = plan is not None and plan.within != "groups"
    named = () if plan is None else plan.spaces
    free = [space for space in graph.spaces if not space.positions and (space.outer or inside)]
    return [space for space in graph.spaces if space in free or space.name in named]
