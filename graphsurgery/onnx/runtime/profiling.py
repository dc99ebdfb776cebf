"""How long every operator of a network takes in ONNX Runtime, by the runtime's own clock."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.onnx.runtime.latency import Timing, random_feed
from graphsurgery.onnx.runtime.sessions import open_session
from graphsurgery.progress import phase

_NODE, _BLOCKED, _REORDERS = "_kernel_time", "_nchwc", "Reorder"
_FEWEST, _MOST = 12, 40


@dataclass(frozen=True)
class TimedOperator:
    """An operator as the runtime runs it, alone or fused with what follows.

    Attributes:
        microseconds: of one run of the network; the mean of the quickest quarter of all runs, since whatever else the
            machine does can only add to it.
        shapes: of its inputs and outputs, as the runtime notes them.
    """

    microseconds: float
    shapes: str


Profile = Mapping[str, TimedOperator]
"""The operators of a network by name; a layout that the runtime chooses for one does not change its name."""


def profile(
    models: Sequence[onnx.ModelProto], timing: Timing, shapes: Sequence[Sequence[int]] = (), seconds: float = 0.15
) -> list[Profile]:
    """Run several networks in turn, and say how long each of their operators takes.

    Args:
        models: the networks.
        timing: threads, batch and warm-up; the number of runs follows from `seconds`.
        shapes: of one example of each input, where the networks leave them open.
        seconds: how long all runs of the first network may take, roughly.

    Raises:
        SurgeryError: ONNX Runtime does not run one of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = [
            open_session(
                f"network {number}",
                threads=timing.threads,
                content=model.SerializeToString(),
                profile=Path(folder) / str(number),
            )
            for number, model in enumerate(models)
        ]
        feeds = [random_feed(session, timing.batch, "network", shapes) for session in sessions]

        def turn(number: int) -> float:
            started = time.perf_counter()
            for session, feed in list(zip(sessions, feeds, strict=True))[:: -1 if number % 2 else 1]:
                session.run(None, feed)
            return time.perf_counter() - started

        try:
            warm = [turn(number) for number in range(max(2, timing.warmup))]
            runs = round(seconds * len(models) / max(min(warm), 1e-6))
            runs = max(_FEWEST, min(_MOST, runs))
            with phase("timing operators in ONNX Runtime, runs", runs, still=True) as at:
                for number in range(runs):
                    turn(number)
                    at.step()
        except Exception as cause:  # ONNX Runtime's errors have no public base class
            raise SurgeryError(f"profile: ONNX Runtime cannot run the network: {one_line(cause)}") from cause
        return [_read(Path(session.end_profiling()), len(warm), runs) for session in sessions]


def _read(path: Path, warm: int, runs: int) -> Profile:
    """What the runtime has noted, without the runs to warm up."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_NODE):
            name = event["name"].removesuffix(_NODE).removesuffix(_BLOCKED)
            found.setdefault(name, []).append(event)
    # The runtime names its changes of layout as it happens to come by them; they are told apart by when they run.
    reorders = [name for name, events in found.items() if events[0]["args"].get("op_name", "").startswith(_REORDERS)]
    stable = {name: f"{_REORDERS}#{number}" for number, name in enumerate(reorders)}
    return {stable.get(name, name): _operator(events, warm, runs) for name, events in found.items()}


def _operator(events: Sequence[Mapping[str, Any]], warm: int, runs: int) -> TimedOperator:
    last = events[-1]["args"]
    shapes = json.dumps([last.get("input_type_shape"), last.get("output_type_shape")])
    return TimedOperator(_quick(events, warm, runs), shapes)


def _quick(events: Sequence[Mapping[str, Any]], warm: int, runs: int) -> float:
    """The mean of the quickest quarter of the runs; what runs several times in each counts as often."""
    durations = np.array([event["dur"] for event in events], dtype=float)
    often = len(events) // (warm + runs)
    if often and often * (warm + runs) == len(events):
        durations = durations.reshape(warm + runs, often).sum(1)[warm:]
    return float(np.sort(durations)[: max(1, len(durations) // 4)].mean())
