"""A diagram as one HTML file that needs nothing else: inline SVG, details on a click, sliders to plan a cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import printable
from graphsurgery.graph import Space
from graphsurgery.reports.cells import count
from graphsurgery.reports.diagrams.colors import colors
from graphsurgery.reports.diagrams.diagram import Box, Diagram
from graphsurgery.reports.diagrams.layout import BoxSize, Layout, lay_out
from graphsurgery.reports.diagrams.repeats import folded
from graphsurgery.reports.drawing import PALETTE, shortened

_TITLE, _LINE = 8.1, 6.5
_LIMIT, _KEY_LIMIT, _SHORT = 44, 30, 20
_PADDING, _BAND = 14.0, 6.0
_TITLE_HEIGHT, _LINE_HEIGHT = 27.0, 16.0
_HEAT = 5.0
_MARGIN = 16.0


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
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("graphsurgery.reports.diagrams"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, "fitting": lambda text: _fitting(text, _KEY_LIMIT)}
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    shown = [variant for variant in (folded(diagram), diagram) if variant is not None]
    numbers = {name: number for number, name in enumerate(diagram.keys)}
    return environment.get_template("diagram.html").render(
        diagram=diagram,
        palette=PALETTE,
        colors=colors(len(numbers)),
        numbers=numbers,
        pictures=[_picture(variant, numbers) for variant in shown],
        rows=_rows(diagram, numbers),
        listed=_says_more(diagram),
        facts={
            "pictures": [[_details(box) for box in variant.boxes.values()] for variant in shown],
            "plan": diagram.plan
            and diagram.plan.as_dict([[box.nodes for box in variant.boxes.values()] for variant in shown]),
        },
    )


def _says_more(diagram: Diagram) -> bool:
    """Whether the list of keys says what the sliders do not: other things than spaces, or widths of before."""
    return diagram.plan is None or len(diagram.heads) > 2 or not diagram.keys.keys() <= _spaces(diagram).keys()


def _spaces(diagram: Diagram) -> dict[str, Space]:
    return {} if diagram.plan is None else {space.name: space for space in diagram.plan.graph.spaces}


def _rows(diagram: Diagram, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """What the template needs to know of the sliders."""
    return [
        {
            "name": name,
            "short": shortened(name, _SHORT),
            "size": space.size,
            "key": numbers.get(name),
            "about": "; ".join(filter(None, [name, "" if space.outer else "inside another", space.positions])),
        }
        for name, space in _spaces(diagram).items()
    ]


def _details(box: Box) -> dict[str, str]:
    return {printable(key): printable(text) for key, text in box.details.items()}


def _picture(diagram: Diagram, numbers: Mapping[str, int]) -> dict[str, Any]:
    """What the template needs to know of one picture."""
    sizes = {name: _size(box) for name, box in diagram.boxes.items()}
    layout = lay_out(sizes, diagram.edges)
    order = {name: number for number, name in enumerate(diagram.boxes)}
    most = max((box.macs for box in diagram.boxes.values()), default=0)
    return {
        "boxes": [_drawn(name, box, sizes[name], layout, numbers, most) for name, box in diagram.boxes.items()],
        "routes": [
            {"path": _route(points), "ends": f"{order[source]} {order[target]}"}
            for (source, target), points in layout.routes.items()
        ],
        "width": round(layout.width + 2 * _MARGIN),
        "height": round(layout.height + 2 * _MARGIN),
    }


def _cost(box: Box) -> str:
    """What a box costs, in words."""
    parts = ((box.parameters, "parameters"), (box.macs, "MACs"))
    return " · ".join(f"{count(number)} {what}" for number, what in parts if number)


def _lines(box: Box) -> list[str]:
    return [*map(_fitting, box.lines), *filter(None, [_cost(box)])]


def _size(box: Box) -> BoxSize:
    lines = _lines(box)
    texts = [_TITLE * len(_fitting(box.title)), *(_LINE * len(line) for line in lines)]
    height = _LINE_HEIGHT * len(lines) + (7.0 if lines else 0.0) + (_HEAT if box.macs else 0.0)
    return BoxSize(round(max(texts) + 2 * _PADDING + _BAND), _TITLE_HEIGHT + height)


def _drawn(name: str, box: Box, size: BoxSize, layout: Layout, numbers: Mapping[str, int], most: int) -> dict[str, Any]:
    """What the template needs to know of a box; `most` are the multiply-accumulates of the most expensive one."""
    across, top = layout.places[name]
    left, top = across - size.width / 2 + _MARGIN, top + _MARGIN
    cost, texts = _cost(box), _lines(box)
    lines = [{"y": _number(top + 36 + i * _LINE_HEIGHT), "text": text} for i, text in enumerate(texts)]
    return {
        "x": _number(left),
        "y": _number(top),
        "behind": {"x": _number(left + 5), "y": _number(top + 5)},
        "width": _number(size.width),
        "height": _number(size.height),
        "bottom": _number(top + size.height - _HEAT),
        "text": _number(left + _BAND + _PADDING - 3),
        "title": _fitting(box.title),
        "baseline": _number(top + 18),
        "lines": lines[:-1] if cost else lines,
        "cost": lines[-1] if cost else None,
        "heat": _number((size.width - _BAND) * box.macs / most) if box.macs else None,
        "start": _number(left + _BAND),
        "folds": box.copies > 0,
        "bands": _drawn_bands(box, top, size.height, numbers),
        "owners": " ".join(str(numbers[key]) for key, _ in box.bands if key is not None and key in numbers),
    }


def _drawn_bands(box: Box, top: float, height: float, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    total = sum(share for _, share in box.bands) or 1
    bands, y = [], top
    for key, share in box.bands:
        bands.append(
            {
                "y": _number(y),
                "height": _number(height * share / total),
                "key": numbers.get(key) if key else None,
            }
        )
        y += height * share / total
    return bands


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
