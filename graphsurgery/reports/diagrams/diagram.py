"""A picture of a graph as one HTML file that needs nothing else: inline SVG, details on a click, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import printable
from graphsurgery.reports.diagrams.layout import Layout, Size, lay_out
from graphsurgery.reports.drawing import PALETTE

_TITLE, _LINE = 8.1, 6.5
_LIMIT, _KEY_LIMIT = 44, 30
_PADDING, _BAND = 14.0, 6.0
_TITLE_HEIGHT, _LINE_HEIGHT = 27.0, 16.0
_GOLDEN = 137.508
_MARGIN = 16.0


@dataclass(frozen=True)
class Box:
    """One box.

    Attributes:
        title: its first line.
        lines: what stands below, smaller.
        bands: the colors at its left: names of keys with their shares, or None for grey; empty for a plain box.
        details: what a click shows.
    """

    title: str
    lines: tuple[str, ...] = ()
    bands: tuple[tuple[str | None, float], ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)


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
    """

    title: str
    summary: tuple[str, ...]
    boxes: Mapping[str, Box]
    edges: tuple[tuple[str, str], ...]
    heads: tuple[str, ...]
    keys: Mapping[str, Key]
    notes: tuple[str, ...] = ()


def write_diagram(diagram: Diagram, path: Path | str) -> None:
    """Write the picture; equal diagrams give equal bytes.

    Raises:
        SurgeryError: the edges form a circle, or the file cannot be written; an old one stays whole.
    """
    page = rendered(diagram)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def rendered(diagram: Diagram) -> str:
    """The picture's HTML."""
    from jinja2 import Environment, StrictUndefined

    sizes = {name: _size(box) for name, box in diagram.boxes.items()}
    layout = lay_out(sizes, diagram.edges)
    numbers = {name: number for number, name in enumerate(diagram.keys)}
    order = {name: number for number, name in enumerate(diagram.boxes)}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"printable": printable, "fitting": lambda text: _fitting(text, _KEY_LIMIT)}
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    template = environment.from_string(files(__package__).joinpath("diagram.html").read_text(encoding="utf-8"))
    return template.render(
        diagram=diagram,
        palette=PALETTE,
        hues=[round(number * _GOLDEN % 360, 1) for number in range(len(numbers))],
        numbers=numbers,
        boxes=[_drawn(name, box, sizes[name], layout, numbers) for name, box in diagram.boxes.items()],
        routes=[_route(points) for points in layout.routes.values()],
        ends=[(order[source], order[target]) for source, target in layout.routes],
        width=round(layout.width + 2 * _MARGIN),
        height=round(layout.height + 2 * _MARGIN),
        details=[
            {printable(key): printable(text) for key, text in box.details.items()} for box in diagram.boxes.values()
        ],
    )


def _size(box: Box) -> Size:
    texts = [_TITLE * len(_fitting(box.title)), *(_LINE * len(_fitting(line)) for line in box.lines)]
    lines = _LINE_HEIGHT * len(box.lines) + (7.0 if box.lines else 0.0)
    return Size(round(max(texts) + 2 * _PADDING + _BAND), _TITLE_HEIGHT + lines)


def _drawn(name: str, box: Box, size: Size, layout: Layout, numbers: Mapping[str, int]) -> dict[str, Any]:
    """What the template needs to know of a box."""
    across, top = layout.places[name]
    left, top = across - size.width / 2 + _MARGIN, top + _MARGIN
    total = sum(share for _, share in box.bands) or 1
    bands, y = [], top
    for key, share in box.bands:
        height = size.height * share / total
        bands.append({"y": _number(y), "height": _number(height), "key": numbers.get(key) if key else None})
        y += height
    return {
        "x": _number(left),
        "y": _number(top),
        "width": _number(size.width),
        "height": _number(size.height),
        "text": _number(left + _BAND + _PADDING - 3),
        "title": _fitting(box.title),
        "baseline": _number(top + 18),
        "lines": [
            {"y": _number(top + 36 + i * _LINE_HEIGHT), "text": _fitting(line)} for i, line in enumerate(box.lines)
        ],
        "bands": bands,
        "owners": " ".join(str(numbers[key]) for key, _ in box.bands if key is not None and key in numbers),
    }


def _route(points: tuple[tuple[float, float], ...]) -> str:
    """An SVG path: straight down beside a box, a curve from one layer to the next."""
    (x, y), *rest = [(a + _MARGIN, b + _MARGIN) for a, b in points]
    parts = [f"M{_number(x)} {_number(y)}"]
    for across, down in rest:
        if across == x:
            parts.append(f"V{_number(down)}")
        else:
            middle = _number((y + down) / 2)
            parts.append(f"C{_number(x)} {middle} {_number(across)} {middle} {_number(across)} {_number(down)}")
        x, y = across, down
    return "".join(parts)


def _fitting(text: str, limit: int = _LIMIT) -> str:
    """The text in at most `limit` characters: the beginning of a list, the end of a path, which says more."""
    text = printable(text)
    if len(text) <= limit:
        return text
    return f"{text[: limit - 1]}…" if ", " in text else f"…{text[1 - limit :]}"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
