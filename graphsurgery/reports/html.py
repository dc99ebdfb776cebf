"""The HTML report: one file that needs nothing else, neither scripts nor the network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import printable
from graphsurgery.reports.cells import (
    MISSING,
    allowed_text,
    best_rows,
    columns,
    deviation_text,
    duration_text,
    verdict_text,
)
from graphsurgery.reports.drawing import PALETTE, hue_role
from graphsurgery.reports.plots import curve_figures, gate_figure, origin_figure
from graphsurgery.reports.widths import width_figure

if TYPE_CHECKING:
    from graphsurgery.recipes.outcome import Outcome


def write_report(outcome: Outcome, path: Path | str, made: Mapping[str, str] | None = None) -> None:
    """Write the report; equal outcomes give equal bytes, and parts that the outcome lacks are left out.

    Args:
        outcome: what was found out.
        path: the file; what the outcome names is linked as seen from there.
        made: under what circumstances, such as `circumstances` gives.

    Raises:
        SurgeryError: the file cannot be written; an old one stays whole.
    """
    page = rendered(outcome, made or {}, Path(path).parent)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def rendered(outcome: Outcome, made: Mapping[str, str] | None = None, folder: Path = Path()) -> str:
    """The report's HTML; arguments as for `write_report`, and the folder that it lies in."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = printable
    template = environment.from_string(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        outcome=outcome,
        summary=summary(outcome),
        palette=PALETTE,
        table=table(outcome),
        missing=MISSING,
        checks=[
            {
                "name": check.name,
                "measured": deviation_text(check.measured),
                "allowed": allowed_text(check.allowed),
                "verdict": verdict_text(check),
                "holds": check.holds,
            }
            for check in outcome.checks
        ],
        curves=[Markup(svg) for svg in curve_figures(outcome.curves, outcome.metric)],
        widths=Markup(width_figure(outcome)) if outcome.widths else None,
        gates=Markup(gate_figure(outcome.gates)) if outcome.gates else None,
        origins=Markup(origin_figure(outcome.origins)) if outcome.origins else None,
        parents=parents(outcome.origins),
        made={what: printable(text) for what, text in (made or {}).items()},
        files=[{"what": what, "name": file, "link": link(file, folder)} for what, file in outcome.files.items()],
        config=list(flattened(outcome.config)),
    )


def link(file: str, folder: Path) -> str:
    """The address of a file as seen from a folder; whatever its name, it leads to a file."""
    return "./" + quote(os.path.relpath(file, folder).replace(os.sep, "/"), errors="replace")


def summary(outcome: Outcome) -> list[dict[str, Any]]:
    """How many checks hold, an alarm where one does not, and how long it took."""
    parts = []
    if outcome.checks:
        holding, total = sum(check.holds for check in outcome.checks), len(outcome.checks)
        parts.append({"words": f"{holding} of {total} checks hold", "alarm": holding < total})
    if outcome.seconds:
        parts.append({"words": duration_text(outcome.seconds), "alarm": False})
    return parts


def table(outcome: Outcome) -> dict[str, Any]:
    """The result table by rows; the notes go under the names."""
    shown = columns(outcome)
    numbers = [column for column in shown if column.numeric]
    best = best_rows(outcome)
    rows = [
        {
            "name": printable(row.name),
            "note": printable(row.note),
            "numbers": [column.cells[i] for column in numbers],
            "best": i in best,
        }
        for i, row in enumerate(outcome.rows)
    ]
    return {"headings": [column.heading for column in numbers], "rows": rows}


def parents(origins: Mapping[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """What each parent gave to all spaces together."""
    count = max((len(counts) for counts in origins.values()), default=0)
    channels = [sum(counts[i] for counts in origins.values() if i < len(counts)) for i in range(count)]
    total = sum(channels) or 1
    return [
        {"name": f"parent {i + 1}", "channels": f"{n:,}", "share": f"{100 * n / total:.1f} %", "role": hue_role(i)}
        for i, n in enumerate(channels)
    ]


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested options as dotted names with their values."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            yield printable(f"{prefix}{name}"), printable(text)
