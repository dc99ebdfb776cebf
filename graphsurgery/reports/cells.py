"""The result table as text, one column at a time: what the terminal, the HTML report and Markdown all show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphsurgery.errors import printable

if TYPE_CHECKING:
    from graphsurgery.recipes.outcome import Check, Outcome

MISSING = "–"

# Metrics between 0 and 1 that people quote in percent.
SHARES = frozenset({"accuracy", "agreement", "top1", "top5", "precision", "recall", "f1"})

# A column's unit is the last one whose first number its largest value reaches: 0.27 M, but 2,410 and 48.20 k.
UNITS = ((0.0, 1.0, ""), (1e4, 1e3, " k"), (1e5, 1e6, " M"), (1e9, 1e9, " G"), (1e12, 1e12, " T"))


@dataclass(frozen=True)
class ResultColumn:
    """A column of the result table; `cells` has one text per row of the outcome.

    Attributes:
        heading: what it holds, with the unit where the cells have none.
        cells: the texts.
        numeric: numbers, to be aligned on the right.
    """

    heading: str
    cells: tuple[str, ...]
    numeric: bool = True


def columns(outcome: Outcome) -> tuple[ResultColumn, ...]:
    """The result table: name, test, validation, parameters, MACs, latency, effort, note; wholly empty ones left out."""
    rows, metric = outcome.rows, outcome.metric
    names = tuple(printable(row.name) for row in rows)
    found = (
        ResultColumn(f"test {metric}", metric_cells(metric, [row.test.get(metric) for row in rows])),
        ResultColumn(f"validation {metric}", metric_cells(metric, [row.validation.get(metric) for row in rows])),
        ResultColumn("parameters", count_cells([row.parameters for row in rows])),
        ResultColumn("MACs", count_cells([row.macs for row in rows])),
        ResultColumn("latency (ms)", latency_cells([row.latency for row in rows])),
        ResultColumn("epochs", tuple(MISSING if row.epochs is None else f"{row.epochs:,g}" for row in rows)),
        ResultColumn("training MACs", count_cells([row.training_macs for row in rows])),
        ResultColumn("CPU (s)", tuple(MISSING if row.seconds is None else f"{row.seconds:,.1f}" for row in rows)),
    )
    notes = ResultColumn("note", tuple(printable(row.note) for row in rows), numeric=False)
    kept = [column for column in found if any(cell != MISSING for cell in column.cells)]
    return (ResultColumn("network", names, numeric=False), *kept, *([notes] if any(notes.cells) else []))


def best_rows(outcome: Outcome) -> frozenset[int]:
    """Indices of the rows that validation data choose: several if they tie, none without numbers.

    Test data only say how good these are: what is best there may be so by luck.
    """
    metric, higher = outcome.metric, outcome.higher_is_better
    known = {i: row for i, row in enumerate(outcome.rows) if not math.isnan(row.validation.get(metric, math.nan))}
    ranks = {i: row.rank(metric, higher_is_better=higher) for i, row in known.items()}
    return frozenset(i for i, rank in ranks.items() if rank == max(ranks.values()))


def metric_cells(metric: str, values: Sequence[float | None]) -> tuple[str, ...]:
    """Accuracies and the like in percent with two decimals, other metrics with four digits."""
    return tuple(MISSING if value is None else metric_text(metric, value) for value in values)


def metric_text(metric: str, value: float) -> str:
    """One value of a metric."""
    if not math.isfinite(value):
        return str(value)
    return f"{100 * value:.2f} %" if metric in SHARES else f"{value:#.4g}"


def count_cells(values: Sequence[float | None]) -> tuple[str, ...]:
    """Counts in the unit that suits the largest, such as `0.27 M`; the smallest keeps two digits where four do."""
    known = [value for value in values if value]
    _, scale, unit = next(u for u in reversed(UNITS) if max(known, default=0) >= u[0])
    decimals = 0
    if unit:
        decimals = max(2, min(4, 1 - math.floor(math.log10(min(known) / scale))))
    return tuple(MISSING if value is None else f"{value / scale:,.{decimals}f}{unit}" for value in values)


def count(number: float) -> str:
    """A count for people, to three digits: 272 k, 23.5 M, 4.09 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def latency_cells(values: Sequence[float | None]) -> tuple[str, ...]:
    """Milliseconds with two decimals, three where one is below 1 ms."""
    decimals = 2 if all(value is None or value >= 1 for value in values) else 3
    return tuple(MISSING if value is None else f"{value:,.{decimals}f}" for value in values)


def deviation_text(value: float) -> str:
    """A relative deviation, such as `3.1e-16` or `1e-4`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def allowed_text(value: float) -> str:
    """What a check allows, such as `≤ 1e-12`."""
    return f"≤ {deviation_text(value)}"


def verdict_text(check: Check) -> str:
    """`PASS` or `FAIL`."""
    return "PASS" if check.holds else "FAIL"


def duration_text(seconds: float) -> str:
    """Time in words, such as `2 min 41 s`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
