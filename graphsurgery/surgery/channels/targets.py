"""Targets: what a network shall cost, and the search for the widths that meet it.

Whatever the ranking, it puts the channels of all spaces in one order: those that come back first, when all spaces start
at their smallest, are those that matter most. The widths of a target are the longest beginning of that order that does
not cost more than the target allows, so the next channel (the next `round_to` channels) of the order would exceed it.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from graphsurgery.errors import SurgeryError

RANKINGS = ("per-space", "global", "uniform")
QUANTITIES = {
    "params": "parameters", "macs": "MACs", "size": "bytes", "width": "channels", "latency": "milliseconds",
}  # fmt: skip
NANOSECONDS = 10**6
"""In a millisecond."""
_DECIMAL: Mapping[str, float] = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_BYTES = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_UNITS: Mapping[str, Mapping[str, float]] = {"size": _BYTES, "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3}}
_FORM = re.compile(r"(?P<quantity>\w+)=(?P<number>\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*(?P<unit>[a-z]*)", re.IGNORECASE)
_EXAMPLES = "write params=0.5x, macs=300M, size=4MB or width=0.75"


@dataclass(frozen=True)
class Target:
    """What a network shall cost at most, and which spaces may pay for it.

    Attributes:
        quantity: `params` (parameters), `macs` (multiply-accumulates per image), `size` (bytes of all parameters and
            buffers), `width` (channels of all the spaces that are cut) or `latency` (milliseconds of a run, which is
            timed, not counted).
        amount: how much of it; of the network without its gates where `relative`. Inside a search latencies are counted
            in nanoseconds.
        relative: whether `amount` is a share.
        ranking: `per-space`, every space keeps the same share, some a channel more; `uniform`, and spaces of one size
            get one size, so that a class with one number for all of its layers can hold them; or `global`, the channels
            of all spaces compete by their importance, divided by the mean of their space (gates are compared as they
            are).
        min_width: no space gets fewer channels.
        max_cut: no space loses a larger share of its channels.

    Source: the scores are normalised as in Fang et al., "DepGraph: towards any structural pruning", CVPR 2023, section
    3.3, with the mean of all channels.
    """

    quantity: str
    amount: float
    relative: bool = True
    ranking: str = "per-space"
    min_width: int = 1
    max_cut: float = 0.9

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise SurgeryError(f"target {self.quantity}: unknown; choose from {', '.join(QUANTITIES)}")
        if self.ranking not in RANKINGS:
            raise SurgeryError(f"ranking {self.ranking}: unknown; choose from {', '.join(RANKINGS)}")
        if not self.amount > 0:
            raise SurgeryError(f"target {self}: asks for nothing to stay; {_EXAMPLES}")
        if self.quantity == "width" and not self.relative:
            raise SurgeryError("target width: is a share of the channels; write width=0.75")
        if self.min_width < 1:
            raise SurgeryError(f"min_width is {self.min_width}, expected at least 1 channel")
        if not 0 < self.max_cut <= 1:
            raise SurgeryError(f"max_cut is {self.max_cut:g}, expected a share above 0 and at most 1")

    def __str__(self) -> str:
        if self.relative:
            return f"{self.quantity}={self.amount:g}x"
        return f"latency={self.amount:g}ms" if self.quantity == "latency" else f"{self.quantity}={self.amount:.0f}"

    def goal(self, now: int) -> int:
        """The largest count that meets the target, for a network that has `now`."""
        if self.relative:
            return math.floor(self.amount * now + 1e-6)
        return math.floor(self.amount * (NANOSECONDS if self.quantity == "latency" else 1))


def parse_target(text: str, **options: Any) -> Target:
    """The target `params=0.5x`, `macs=300M`, `size=4MB` or `width=0.75`.

    A number with an x is a share. Others are counts: k, M and G stand for thousands, millions and billions, kB, MB and
    GB likewise for bytes, KiB, MiB and GiB for powers of 1024. A latency is in us, ms or s.

    Args:
        text: quantity, `=`, amount.
        options: the other attributes of `Target`.

    Raises:
        SurgeryError: the text has another form, or an option is out of range.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise SurgeryError(f"target {text!r}: has no known form; {_EXAMPLES}")
    quantity, number, unit = found["quantity"].lower(), float(found["number"]), found["unit"].lower()
    if unit == "x" or (quantity == "width" and not unit):
        return Target(quantity, number, **options)
    units = _UNITS.get(quantity, _DECIMAL)
    if unit not in units:
        wrong = f"unknown unit {found['unit']}" if unit else "has no unit"
        raise SurgeryError(f"target {text!r}: {wrong}; {'write latency=5ms' if quantity == 'latency' else _EXAMPLES}")
    if quantity != "latency" and number * units[unit] < 1:
        raise SurgeryError(f"target {text!r}: is less than one; for a share write {quantity}={number:g}x")
    return Target(quantity, number * units[unit], relative=False, **options)


class Lane(NamedTuple):
    """A space in the search: its size, and the worth of its channels, best first, where the ranking compares them."""

    size: int
    worth: Tensor | None = None


def search(
    lanes: Sequence[Lane], target: Target, round_to: int, measure: Callable[[Sequence[int]], int], now: int
) -> list[int]:
    """The sizes of the spaces that meet a target.

    Args:
        lanes: the spaces whose sizes are searched.
        target: what to meet.
        round_to: sizes are multiples of this, or the whole space.
        measure: what the network costs at these sizes; never less for more channels. Called some twenty times.
        now: what it costs as it is.

    Raises:
        SurgeryError: the smallest sizes cost more than the target, or the target asks for nothing to go; the message
            has the closest that can be reached.
    """
    grids = [_grid(lane.size, target, round_to) for lane in lanes]
    steps = _steps(lanes, grids, target.ranking)

    def sizes(taken: int) -> list[int]:
        found = [grid[0] for grid in grids]
        for step in steps[:taken]:
            for lane, size in step:
                found[lane] = size
        return found

    goal = target.goal(now)
    if goal >= now:
        most = measure(sizes(len(steps) - 1)) if steps else now
        raise SurgeryError(
            f"compress: {target} removes nothing, the network has {_amount(target, now, now)}; the smallest cut leaves "
            f"{_amount(target, most, now)}"
        )
    least = measure(sizes(0))
    if least > goal:
        raise SurgeryError(
            f"compress: {target} cannot be reached: with min_width {target.min_width}, max_cut {target.max_cut:g} and "
            f"round_to {round_to} at least {_amount(target, least, now)} stay; ask for "
            f"{_reachable(target, least, now)} or let more go"
        )
    taken = bisect.bisect_right(range(1, len(steps) + 1), goal, key=lambda n: measure(sizes(n)))
    return sizes(taken)


def _grid(size: int, target: Target, round_to: int) -> list[int]:
    """The sizes that a space may get, smallest first."""
    floor = max(target.min_width, math.ceil((1 - target.max_cut) * size - 1e-9), 1)
    return [n for n in range(round_to, size, round_to) if n >= floor] + [size]


def _steps(lanes: Sequence[Lane], grids: Sequence[Sequence[int]], ranking: str) -> list[list[tuple[int, int]]]:
    """Which space gets which size next, in the order in which channels come back; those that do so together."""
    found = []
    for number, (lane, grid) in enumerate(zip(lanes, grids, strict=True)):
        rank = -math.inf
        for small, large in itertools.pairwise(grid):
            # Equal channels in blocks of unequal length may differ by a rounding error; a space grows in order.
            rank = max(rank, _rank(lane, small, large, ranking))
            found.append((rank, number, large))
    if ranking != "uniform":
        return [[(number, size)] for _, number, size in sorted(found)]
    together: dict[tuple[float, int, int], list[tuple[int, int]]] = {}
    for rank, number, size in sorted(found):
        together.setdefault((rank, lanes[number].size, size), []).append((number, size))
    return list(together.values())


def _rank(lane: Lane, small: int, large: int, ranking: str) -> float:
    """When a space grows from one size to the next; early is low."""
    if ranking == "global":
        assert lane.worth is not None
        return -float(lane.worth[small:large].mean())
    return (small + large) / 2 / lane.size


def _amount(target: Target, count: int, now: int) -> str:
    return f"{amount_text(target.quantity, count)} ({count / max(1, now):.4g}x)"


def amount_text(quantity: str, count: int) -> str:
    """A count with its unit; a latency, which is counted in nanoseconds, in milliseconds."""
    if quantity == "latency":
        return f"{count / NANOSECONDS:.4g} milliseconds"
    return f"{count:,} {QUANTITIES[quantity]}"


def _reachable(target: Target, least: int, now: int) -> str:
    """The smallest target of the same form that can be reached."""
    if not target.relative:
        return f"latency={least / NANOSECONDS:.4g}ms" if target.quantity == "latency" else f"{target.quantity}={least}"
    return f"{target.quantity}={math.ceil(least / now * 1e4) / 1e4:g}{'' if target.quantity == 'width' else 'x'}"
