"""Which width: the largest that meets a target, and the greedy choice of a width for every space.

Source of the search: Yu & Huang, "AutoSlim", arXiv:1903.11728, section 3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphsurgery.axes.maps import Widths
from graphsurgery.errors import SurgeryError
from graphsurgery.network.outputs.modes import kept_modes
from graphsurgery.recipes.outcome import Outcome
from graphsurgery.surgery.channels.planned_cost import PlannedCost
from graphsurgery.surgery.channels.slimming import Slimmable, Width
from graphsurgery.surgery.channels.targets import Target
from graphsurgery.training.data.batches import Examples
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.devices import device_of
from graphsurgery.training.objectives.tasks import objective_for, rank_of

TIMED = 5
"""Widths that are timed in turn: first over the whole range, then between the two where the target lies."""


def width_for(slimmable: Slimmable, target: Target) -> float:
    """The largest width that costs no more than a target.

    Parameters, MACs and bytes are counted in steps of a hundredth. Latency is timed in ONNX Runtime, in two rounds of
    `TIMED` widths each, so that the result is within a twentieth of the range. Switchable networks have their own
    widths only.

    Raises:
        SurgeryError: no width does; the message has the closest.
    """
    if target.quantity == "latency":
        return _within_time(slimmable, target)
    count = counter(slimmable, target.quantity)
    limit = target.goal(count(1.0))
    steps = slimmable.switchable or _evenly(slimmable.min_width, 1.0, round(100 * (1 - slimmable.min_width)))
    found = next((width for width in reversed(steps) if count(width) <= limit), None)
    if found is None:
        least = count(steps[0])
        raise SurgeryError(f"slim: {target} is {limit:,}; the narrowest network has {least:,}")
    return found


def _within_time(slimmable: Slimmable, target: Target) -> float:
    """The largest width whose median latency is at most the target's."""
    first = slimmable.switchable or _evenly(slimmable.min_width, 1.0, TIMED - 1)
    timed = latencies(slimmable, first)
    limit = target.amount * (timed[1.0] if target.relative else 1)
    if timed[1.0] <= limit:
        return 1.0
    # Times are not quite monotone: what counts is the first width, from below, that takes too long.
    above = next(place for place, width in enumerate(first) if timed[width] > limit)
    if above == 0:
        raise SurgeryError(f"slim: {target} is {limit:.3g} ms; the narrowest network takes {timed[first[0]]:.3g} ms")
    found = first[above - 1]
    if slimmable.switchable:
        return found
    between = _evenly(found, first[above], TIMED + 1)[1:-1]
    timed = latencies(slimmable, between)
    for width in between:
        if timed[width] > limit:
            break
        found = width
    return found


def with_latencies(slimmable: Slimmable, outcome: Outcome) -> Outcome:
    """What was measured at several widths, and how long each takes."""
    timed = latencies(slimmable, outcome.widths)
    rows = zip(outcome.widths, outcome.rows, strict=True)
    return replace(outcome, rows=tuple(replace(row, latency=timed[width]) for width, row in rows))


def latencies(slimmable: Slimmable, widths: Sequence[float]) -> dict[float, float]:
    """Median milliseconds for one example at each width in ONNX Runtime on one thread, after warm-up, timed in turn."""
    from graphsurgery.onnx.exporting.exporter import export_onnx
    from graphsurgery.onnx.runtime.latency import measure_latency

    with tempfile.TemporaryDirectory() as folder:
        files = {f"{width}": Path(folder) / f"{number}.onnx" for number, width in enumerate(widths)}
        for width, file in zip(widths, files.values(), strict=True):
            export_onnx(slimmable.extract(width), file)
        return {float(name): found.median for name, found in measure_latency(files).items()}


def _evenly(low: float, high: float, steps: int) -> tuple[float, ...]:
    """Widths from one to another, in thousandths but for the two."""
    inner = (round(low + (high - low) * step / steps, 3) for step in range(1, steps))
    return tuple(dict.fromkeys((low, *inner, high)))


def counter(slimmable: Slimmable, quantity: str) -> Callable[[Width], int]:
    """How many parameters, MACs or bytes a width has.

    Raises:
        SurgeryError: another quantity.
    """
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
        SurgeryError: the target cannot be met, a setting is out of range, or the widths have BatchNorms of their own.

    Source: Yu & Huang, "AutoSlim", arXiv:1903.11728, section 3.
    """
    if not 0 < step < 1:
        raise SurgeryError(f"slim: step is {step:g}, expected a share between 0 and 1")
    if slimmable.switchable:
        raise SurgeryError("slim: a network with switchable BatchNorms has its own widths only; train one without")
    count = counter(slimmable, target.quantity)
    examples = Examples(data.validation, device_of(slimmable.graph.module))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:images]
    batch = next(iter(examples.batches([order])))
    objective = objective_for(data)
    sizes = slimmable.sizes(1.0)
    least = slimmable.sizes(slimmable.min_width)
    whole = slimmable.graph.module
    limit = target.goal(count(sizes))
    buffers = {name: buffer.clone() for name, buffer in whole.named_buffers()}
    with kept_modes(whole):
        try:
            path = [Found(dict(sizes), count(sizes), _score(slimmable, sizes, batch, objective))]
            while path[-1].cost > limit:
                tried = []
                for name, size in sizes.items():
                    fewer = max(least[name], size - max(slimmable.round_to, round(step * slimmable.spaces[name].size)))
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
            for name, buffer in whole.named_buffers():
                buffer.copy_(buffers[name])
    return path


def _score(slimmable: Slimmable, sizes: Mapping[str, int], batch: Sequence[Any], objective: Any) -> float:
    """The negative loss of a configuration on one batch, with its statistics."""
    slimmable.graph.module.train()
    with torch.no_grad():
        return rank_of(float(objective.loss(_Runs(slimmable, sizes), batch)["total"]), higher_is_better=False)


class _Runs(nn.Module):
    """A configuration as a module."""

    def __init__(self, slimmable: Slimmable, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.__dict__["narrow"] = slimmable.at(sizes)

    def forward(self, x: Any) -> Any:
        return self.__dict__["narrow"](x)
