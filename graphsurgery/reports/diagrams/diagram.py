"""A picture of a graph as data: boxes, the edges between them, and what their colors stand for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphsurgery.reports.diagrams.plan import Plan


@dataclass(frozen=True)
class Box:
    """One box.

    Attributes:
        title: its first line.
        lines: what stands below, smaller.
        bands: the colors at its left: names of keys with their shares, or None for grey; empty for a plain box.
        details: what a click shows.
        parameters, macs: what it costs.
        nodes: the nodes of the network that it stands for, for a plan.
        copies: of a part of the picture that are folded into it.
        alike: what it has in common with the boxes that it repeats; None for what is one of its kind.
    """

    title: str
    lines: tuple[str, ...] = ()
    bands: tuple[tuple[str | None, float], ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    parameters: int = 0
    macs: int = 0
    nodes: tuple[str, ...] = ()
    alike: Hashable = None
    copies: int = 0


@dataclass(frozen=True)
class Key:
    """What a color stands for: the cells of its row in the list of keys."""

    cells: tuple[str, ...]
    grey: bool = False


@dataclass(frozen=True)
class Diagram:
    """A graph to draw.

    Attributes:
        title: what it is.
        summary: facts about all of it.
        boxes: by name, in the order in which they run.
        edges: pairs of names.
        heads: headings of the list of keys.
        keys: what the colors stand for, by name.
        notes: what else a reader should know.
        plan: how it may be cut, where that is known.
    """

    title: str
    summary: tuple[str, ...]
    boxes: Mapping[str, Box]
    edges: tuple[tuple[str, str], ...]
    heads: tuple[str, ...]
    keys: Mapping[str, Key]
    notes: tuple[str, ...] = ()
    plan: Plan | None = None
