"""How long a network takes in ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.onnx.checking import open_session

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Latency:
    """Times of one run of a network, in milliseconds.

    Attributes:
        median: half of the runs took at most this long.
        spread: the interquartile range: third quartile less first quartile.
        runs: how many runs were timed.
        batch: examples in one run.
        threads: threads that an operator may use.
    """

    median: float
    spread: float
    runs: int
    batch: int
    threads: int


def measure_latency(
    paths: Mapping[str, Path | str], *, batch: int = 1, threads: int = 1, warmup: int = 5, runs: int = 50
) -> dict[str, Latency]:
    """Time several `.onnx` files in one process, in turn, so that whatever else the machine does meets all alike.

    Args:
        paths: the files, by any name.
        batch: examples in one run; the inputs are random.
        threads: threads that an operator may use.
        warmup: untimed runs of each file.
        runs: timed runs of each file, at least 1.

    Returns:
        The times by the same names.

    Raises:
        SurgeryError: a file cannot be opened or run, is fixed at another batch, or has free axes other than the batch.
    """
    if runs < 1 or batch < 1:
        raise SurgeryError(f"latency: found {runs} runs of batch {batch}, expected at least 1 of each")
    sessions = {name: open_session(path, threads=threads) for name, path in paths.items()}
    feeds = {name: _feed(session, batch, str(paths[name])) for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(warmup + runs):
        for name, session in sessions.items():
            try:
                started = time.perf_counter()
                session.run(None, feeds[name])
                elapsed = time.perf_counter() - started
            except Exception as cause:  # ONNX Runtime's errors have no public base class
                raise SurgeryError(f"{paths[name]}: ONNX Runtime cannot run it: {one_line(cause)}") from cause
            if turn >= warmup:
                times[name].append(1e3 * elapsed)
    return {name: _summary(measured, batch, threads) for name, measured in times.items()}


def _summary(milliseconds: list[float], batch: int, threads: int) -> Latency:
    first, median, third = np.percentile(milliseconds, (25, 50, 75))
    return Latency(float(median), float(third - first), len(milliseconds), batch, threads)


def _feed(session: onnxruntime.InferenceSession, batch: int, path: str) -> dict[str, Any]:
    """Random inputs of the shapes that a file declares."""
    generator = np.random.default_rng(0)
    feed = {}
    for value in session.get_inputs():
        free = [size for size in value.shape[1:] if not isinstance(size, int)]
        if free or value.type not in _DTYPES:
            raise SurgeryError(
                f"{path}: input {value.name} has shape {value.shape} and type {value.type}; "
                f"only the batch may be free, and tensors of numbers are timed"
            )
        if value.shape and value.shape[0] != batch and isinstance(value.shape[0], int):
            raise SurgeryError(f"{path}: input {value.name} is fixed at a batch of {value.shape[0]}, asked for {batch}")
        shape = (batch, *value.shape[1:]) if value.shape else ()
        dtype = _DTYPES[value.type]
        real = np.issubdtype(dtype, np.floating)
        feed[value.name] = generator.standard_normal(shape).astype(dtype) if real else np.zeros(shape, dtype)
    return feed
