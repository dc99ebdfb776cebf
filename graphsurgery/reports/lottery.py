"""What a lottery found out: one table, and one plot of accuracy and of the early-stopping step against density."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.reports.cells import MISSING, SHARES, metric_text
from graphsurgery.reports.drawing import hue_role, light, style
from graphsurgery.reports.sheet import Column, Sheet

if TYPE_CHECKING:
    from graphsurgery.recipes.lottery.tickets import Lottery


def lottery_cells(found: Lottery) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: one for each density, with test metric and early-stopping step of the ticket and controls."""
    head = ["density"]
    for name in found.names:
        head += [f"{name}: test {found.metric}", "stops at step"]
    rows = []
    for number in found.rounds:
        density = found.of(number)[0].density
        row = [f"{100 * density:.3g} %" + (" · chosen" if number == found.chosen else "")]
        for name in found.names:
            points = found.of(number, name) if number or name == found.names[0] else []
            row += (
                [_spread(found, number, name), f"{_mean_stop(found, number, name):,.0f}"] if points else [MISSING] * 2
            )
        rows.append(row)
    return head, rows


def lottery_table(found: Lottery) -> Sheet:
    """The table for the terminal; the chosen round is the last that is not worse than the dense network."""
    head, rows = lottery_cells(found)
    # The steps go first where there is no room, then the last controls.
    drops = [0, 0, *(len(head) * (2 - number % 2) + number for number in range(2, len(head)))]
    fields = zip(head, drops, strict=True)
    table = Sheet(*(Column(_heading(name), "number", drop) for name, drop in fields), box=box.SIMPLE_HEAD, header="dim")
    for row in rows:
        table.add_row(*row, style="bold" if "chosen" in row[0] else "")
    return table


def _heading(name: str) -> str:
    """In two lines."""
    first, colon, rest = name.partition(": ")
    return f"{first}{colon.rstrip()}\n{rest}" if rest else name.replace(" at ", " at\n")


def lottery_markdown(found: Lottery) -> str:
    """The same as Markdown, ending in a newline."""
    head, rows = lottery_cells(found)
    lines = [head, ["---:"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_lottery(found: Lottery, *, table: Path, picture: Path, numbers: Path) -> None:
    """Write the table as Markdown, the plot, and everything as JSON."""
    for file, text in ((table, lottery_markdown(found)), (numbers, json.dumps(found.as_dict(), indent=2) + "\n")):
        with atomic_write(file) as partial:
            partial.write_text(text)
    draw_lottery(found, picture)


def draw_lottery(found: Lottery, path: Path) -> None:
    """Write the plot, as SVG or PNG by the ending of the file: means over the seeds with their deviations."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style("lottery")), matplotlib.rc_context({"figure.facecolor": light("paper")}):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, name in enumerate(found.names):
            color = light(hue_role(place))
            rounds = [number for number in found.rounds if number == 0 or found.of(number, name)]
            densities = [100 * found.of(number)[0].density for number in rounds]
            spreads = [found.mean(number, name) for number in rounds]
            scale = 100 if found.metric in SHARES else 1
            means = [scale * mean for mean, _ in spreads]
            errors = [0.0 if math.isnan(deviation) else scale * deviation for _, deviation in spreads]
            left.errorbar(densities, means, errors, color=color, label=name, linewidth=1.4, capsize=2)
            right.plot(densities, [_mean_stop(found, number, name) for number in rounds], color=color, label=name)
        left.set_ylabel(f"test {found.metric}" + (", %" if found.metric in SHARES else ""))
        right.set_ylabel("step of the lowest validation loss")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.invert_xaxis()
            axes.set_xlabel("weights that live, %")
            ticks = apart([100 * found.of(number)[0].density for number in found.rounds])
            axes.set_xticks(ticks, [f"{value:.3g}" for value in ticks])
            axes.set_xticks([], minor=True)
        left.legend(loc="best", fontsize=8)
        kind = path.suffix.removeprefix(".") or "png"
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)


def apart(values: Sequence[float], most: int = 8) -> list[float]:
    """Of these values, from the largest on, those that have room as ticks of a logarithmic axis; the last is one."""
    ordered = sorted(set(values), reverse=True)
    room = math.log(ordered[0] / ordered[-1]) / most
    kept = ordered[:1]
    for value in ordered[1:]:
        if math.log(kept[-1] / value) >= room and (math.log(value / ordered[-1]) >= room or value == ordered[-1]):
            kept.append(value)
    return kept


def _mean_stop(found: Lottery, number: int, name: str) -> float:
    points = found.of(number, name)
    return sum(point.stop for point in points) / len(points)


def _spread(found: Lottery, number: int, name: str) -> str:
    """Mean and deviation, in percent where people quote it so."""
    mean, deviation = found.mean(number, name)
    if math.isnan(deviation):
        return metric_text(found.metric, mean)
    if found.metric in SHARES:
        return f"{100 * mean:.2f} ± {100 * deviation:.2f} %"
    return f"{mean:.4g} ± {deviation:.2g}"
