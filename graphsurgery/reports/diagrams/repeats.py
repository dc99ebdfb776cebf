"""Stages that repeat, folded into one box: what follows the first copy stands for all the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphsurgery.reports.diagrams.diagram import Box, Diagram

_LONGEST = 200
_LEAST = 3
"""Boxes that a fold must hide."""


@dataclass(frozen=True)
class Repeat:
    """A part of a picture that stands there several times in a row.

    Attributes:
        first: the number of its first box.
        period: how many boxes it has.
        copies: how often it comes.
    """

    first: int
    period: int
    copies: int

    @property
    def hidden(self) -> range:
        """The boxes of all copies but the first."""
        return range(self.first + self.period, self.first + self.copies * self.period)


def folded(diagram: Diagram) -> Diagram | None:
    """The picture with repeats folded; None where nothing repeats."""
    names = list(diagram.boxes)
    found = repeats(diagram)
    if not found:
        return None
    place, boxes = {name: name for name in names}, dict(diagram.boxes)
    for repeat in found:
        hidden = [names[number] for number in repeat.hidden]
        place |= dict.fromkeys(hidden, hidden[0])
        boxes[hidden[0]] = _fold(repeat, [diagram.boxes[name] for name in hidden])
    kept = {name: boxes[name] for name in names if place[name] == name}
    edges = dict.fromkeys((place[source], place[target]) for source, target in diagram.edges)
    return replace(diagram, boxes=kept, edges=tuple((a, b) for a, b in edges if a != b))


def repeats(diagram: Diagram) -> list[Repeat]:
    """What repeats, from the first box on: of all that begins at a box, what hides most; the shorter of equal ones.

    Boxes in order repeat those of one period before where each is alike (`Box.alike`) and reads what lies as far
    before it, or the very same box.
    """
    numbers = {name: number for number, name in enumerate(diagram.boxes)}
    sources: list[list[int]] = [[] for _ in numbers]
    for source, target in diagram.edges:
        sources[numbers[target]].append(numbers[source])
    kinds = [box.alike for box in diagram.boxes.values()]
    found, start = [], 0
    while start < len(kinds):
        longest = max((_repeat(kinds, sources, start, n) for n in _periods(kinds, start)), key=_worth, default=None)
        if longest is None or len(longest.hidden) < _LEAST:
            start += 1
        else:
            found.append(longest)
            start = longest.hidden.stop
    return found


def _periods(kinds: Sequence[object], start: int) -> list[int]:
    """How far the next boxes like the one at the start are."""
    last = min(len(kinds), start + _LONGEST + 1)
    return [n - start for n in range(start + 1, last) if kinds[n] is not None and kinds[n] == kinds[start]]


def _repeat(kinds: Sequence[object], sources: Sequence[Sequence[int]], start: int, period: int) -> Repeat:
    end = start + period
    while end < len(kinds) and _is_alike(kinds, sources, end, period):
        end += 1
    return Repeat(start, period, (end - start) // period)


def _is_alike(kinds: Sequence[object], sources: Sequence[Sequence[int]], number: int, period: int) -> bool:
    before = number - period
    if kinds[number] is None or kinds[number] != kinds[before] or len(sources[number]) != len(sources[before]):
        return False
    pairs = zip(sources[number], sources[before], strict=True)
    return all(mine in (theirs, theirs + period) for mine, theirs in pairs)


def _worth(repeat: Repeat) -> tuple[int, int]:
    return len(repeat.hidden), -repeat.period


def _fold(repeat: Repeat, boxes: Sequence[Box]) -> Box:
    """The box that stands for all copies but the first."""
    more = repeat.copies - 1
    bands: dict[str | None, float] = {}
    for key, share in (band for box in boxes for band in box.bands):
        bands[key] = bands.get(key, 0.0) + share
    what = f"the {repeat.period} boxes above" if repeat.period > 1 else "the box above"
    first, last = (box.details.get("name", box.title) for box in (boxes[0], boxes[-1]))
    return Box(
        title=f"{more} more like {what}",
        lines=(f"{first} …", f"… {last}"),
        bands=tuple(bands.items()),
        details={"stands for": ", ".join(box.details.get("name", box.title) for box in boxes)},
        parameters=sum(box.parameters for box in boxes),
        macs=sum(box.macs for box in boxes),
        copies=more,
        nodes=tuple(name for box in boxes for name in box.nodes),
    )
