"""How long a network takes in ONNX Runtime."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.onnx.runtime.sessions import fixed_batch, open_session
from graphsurgery.progress import phase

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


Shapes = Sequence[Sequence[int]] | Mapping[str, Sequence[int]]
"""Of one example of each input, in order; or whole ones, by name."""

_TRIES, _PAUSE = 6, 1e-3
_WAITED, _CLOCK = 0.05, 2e-5


class _Run(NamedTuple):
    """A timed run, and whether something else had the processor in it."""

    milliseconds: float
    interrupted: bool


@dataclass(frozen=True)
class Timing:
    """How times are taken: always one process, in turn, after a warm-up.

    Attributes:
        threads: threads that an operator may use.
        batch: examples in one run.
        warmup: untimed runs of each file.
        runs: timed runs of each file.
    """

    threads: int = 1
    batch: int = 1
    warmup: int = 5
    runs: int = 50

    def __post_init__(self) -> None:
        if self.runs < 1 or self.batch < 1:
            raise SurgeryError(f"latency: found {self.runs} runs of batch {self.batch}, expected at least 1 of each")
        if self.threads < 1 or self.warmup < 0:
            raise SurgeryError(
                f"latency: found {self.threads} threads and {self.warmup} runs to warm up, expected at least 1 and 0"
            )

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{threads}, batch {self.batch}, {self.warmup} runs to warm up, {self.runs} timed in turn"


@dataclass(frozen=True)
class Latency:
    """Times of one run of a network, in milliseconds.

    Attributes:
        median: half of the runs took at most this long.
        spread: the interquartile range: third quartile less first quartile.
        runs: how many runs were timed.
        batch: examples in one run.
        threads: threads that an operator may use.
        low, high: the interval that holds the true median with 95 % confidence.
        warmup: untimed runs before.
        interrupted: timed runs in which something else had the processor, though they were repeated.
    """

    median: float
    spread: float
    runs: int
    batch: int
    threads: int
    low: float = math.nan
    high: float = math.nan
    warmup: int = 0
    interrupted: int = 0


@dataclass(frozen=True)
class Pair:
    """Two networks that were timed in turn.

    Attributes:
        before, after: their times.
        ratio: the median over the turns of the time of `after` over that of `before`.
        low, high: the interval that holds the true median of these ratios with 95 % confidence.
    """

    before: Latency
    after: Latency
    ratio: float
    low: float
    high: float


def measure_latency(
    paths: Mapping[str, Path | str],
    *,
    batch: int = 1,
    threads: int = 1,
    warmup: int = 5,
    runs: int = 50,
    shapes: Shapes = (),
) -> dict[str, Latency]:
    """Time several `.onnx` files in one process, in turn, so that whatever else the machine does meets all alike.

    On one thread a run in which something else had the processor is repeated, up to five times.

    Args:
        paths: the files, by any name.
        batch: examples in one run; the inputs are random.
        threads: threads that an operator may use.
        warmup: untimed runs of each file.
        runs: timed runs of each file, at least 1.
        shapes: where a file leaves them open: of each input, without the batch or whole; or whole ones, by name.

    Returns:
        The times by the same names.

    Raises:
        SurgeryError: a file cannot be opened or run, is fixed at another batch, or has free axes that `shapes` does not
            fill.
    """
    timing = Timing(threads, batch, warmup, runs)
    times = _in_turn(paths, timing, shapes)
    return {name: _summary(measured, timing) for name, measured in times.items()}


def measure_pair(before: Path | str, after: Path | str, timing: Timing, shapes: Shapes = ()) -> Pair:
    """Time two files in turn, and the second against the first in every turn; see `measure_latency`."""
    times = _in_turn({"before": before, "after": after}, timing, shapes)
    turns = zip(times["before"], times["after"], strict=True)
    ratios = [after.milliseconds / before.milliseconds for before, after in turns]
    return Pair(
        _summary(times["before"], timing),
        _summary(times["after"], timing),
        statistics.median(ratios),
        *interval(ratios),
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The values between which the true median lies with 95 % confidence, whatever the distribution.

    The ranks are those of the binomial distribution in its normal approximation; a handful of values give the smallest
    and the largest.
    """
    ordered, half = sorted(values), 1.96 * math.sqrt(len(values)) / 2
    first = max(1, math.floor(len(values) / 2 - half))
    last = min(len(values), math.ceil(1 + len(values) / 2 + half))
    return ordered[first - 1], ordered[last - 1]


def _in_turn(paths: Mapping[str, Path | str], timing: Timing, shapes: Shapes) -> dict[str, list[_Run]]:
    """Every timed run; every other turn goes through the files backwards."""
    sessions = {name: open_session(path, threads=timing.threads) for name, path in paths.items()}
    feeds = {name: random_feed(session, timing.batch, str(paths[name]), shapes) for name, session in sessions.items()}
    times: dict[str, list[_Run]] = {name: [] for name in paths}
    turns = timing.warmup + timing.runs
    with phase("timing in ONNX Runtime, runs", turns, still=True) as at:
        for turn in range(turns):
            for name in list(sessions)[:: -1 if turn % 2 else 1]:
                tries = 1 if turn < timing.warmup else _TRIES
                try:
                    run = _undisturbed(sessions[name], feeds[name], tries, timing.threads)
                except Exception as cause:  # ONNX Runtime's errors have no public base class
                    raise SurgeryError(f"{paths[name]}: ONNX Runtime cannot run it: {one_line(cause)}") from cause
                if turn >= timing.warmup:
                    times[name].append(run)
            at.step()
    return times


def _undisturbed(session: onnxruntime.InferenceSession, feed: Mapping[str, Any], tries: int, threads: int) -> _Run:
    """A run; with one thread, it is repeated while it spends more time than its thread has the processor."""
    for left in reversed(range(tries)):
        started, working = time.perf_counter(), time.thread_time()
        session.run(None, feed)
        worked, elapsed = time.thread_time() - working, time.perf_counter() - started
        # Other threads have clocks of their own, and a clock may be coarse.
        waited = threads == 1 and worked > 0 and elapsed - worked > _WAITED * elapsed + _CLOCK
        if not waited or not left:
            break
        time.sleep(_PAUSE)
    return _Run(1e3 * elapsed, waited)


def _summary(runs: Sequence[_Run], timing: Timing) -> Latency:
    milliseconds = [run.milliseconds for run in runs]
    first, median, third = np.percentile(milliseconds, (25, 50, 75))
    return Latency(
        float(median),
        float(third - first),
        len(milliseconds),
        timing.batch,
        timing.threads,
        *interval(milliseconds),
        timing.warmup,
        sum(run.interrupted for run in runs),
    )


def random_feed(session: onnxruntime.InferenceSession, batch: int, path: str, shapes: Shapes = ()) -> dict[str, Any]:
    """Random inputs of the shapes that a file declares; axes that it leaves open are those of `shapes`.

    Raises:
        SurgeryError: the file is fixed at another batch, has other free axes, or takes what is no tensor of numbers.
    """
    generator = np.random.default_rng(0)
    feed = {}
    fixed = fixed_batch(session)
    by_name = _by_name(session, batch, shapes)
    for value in session.get_inputs():
        shape = by_name[value.name]
        if not all(isinstance(size, int) for size in shape[1:]) or value.type not in _DTYPES:
            raise SurgeryError(
                f"{path}: input {value.name} has shape {value.shape} and type {value.type}; "
                f"only the batch may be free, and tensors of numbers are timed"
            )
        if fixed not in (None, batch) and value.shape:
            raise SurgeryError(f"{path}: input {value.name} is fixed at a batch of {value.shape[0]}, asked for {batch}")
        dtype = _DTYPES[value.type]
        real = np.issubdtype(dtype, np.floating)
        feed[value.name] = generator.standard_normal(shape).astype(dtype) if real else np.zeros(shape, dtype)
    return feed


def _by_name(session: onnxruntime.InferenceSession, batch: int, shapes: Shapes) -> dict[str, tuple[Any, ...]]:
    """The shape of each input by its name; what nobody says is what the file calls it."""
    found: dict[str, tuple[Any, ...]] = {}
    inputs = session.get_inputs()
    if isinstance(shapes, Mapping):
        pairs = [(free, size) for v in inputs for free, size in zip(v.shape, shapes.get(v.name, ()), strict=False)]
        sizes = {free: size for free, size in pairs if isinstance(free, str)}
        for value in inputs:
            own = [sizes.get(size, size) for size in value.shape] if value.name not in shapes else shapes[value.name]
            first = [batch if own and not isinstance(own[0], int) else size for size in own[:1]]
            found[value.name] = (*first, *own[1:])
        return found
    for number, value in enumerate(inputs):
        given = tuple(shapes[number]) if number < len(shapes) else ()
        wholes = [whole for whole in (given, (batch, *given)) if len(whole) == len(value.shape)]
        whole = wholes[0] if wholes else (batch, *value.shape[1:])
        found[value.name] = tuple(
            size if isinstance(size, int) else known for size, known in zip(value.shape, whole, strict=False)
        )
    return found
