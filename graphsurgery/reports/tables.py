"""Tables: for the terminal, and as Markdown for documents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from graphsurgery.errors import printable
from graphsurgery.reports.cells import Column, allowed_text, best_rows, columns, deviation_text, verdict_text

if TYPE_CHECKING:
    from graphsurgery.recipes.outcome import Outcome


@dataclass(frozen=True)
class OutcomeTable:
    """The result table, notes under the names, the best row on the test data marked, in whatever width there is.

    Where it is too narrow for all columns, those that matter least are left out; files and reports have them. Without
    colors the word "best" still marks the row.
    """

    outcome: Outcome

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _outcome_table(self.outcome, options.max_width)


def _outcome_table(outcome: Outcome, width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    numbers = _fitting([column for column in columns(outcome) if column.numeric], width)
    table.add_column("network", vertical="top", overflow="fold")
    for column in numbers:
        table.add_column(Text(_heading(column)), justify="right", no_wrap=True)
    best = best_rows(outcome)
    for i, row in enumerate(outcome.rows):
        name = Text(printable(row.name))
        if i in best:
            name.append(" · best", style="green")
        if row.note:
            name.append(f"\n{printable(row.note)}", style="dim not bold")
        table.add_row(name, *(column.cells[i] for column in numbers), style="bold" if i in best else "")
    return table


_NAME = 26
"""What a name and its note need at least."""
_LEFT_OUT = ("CPU (s)", "training MACs", "parameters", "latency (ms)", "epochs")
"""The columns that go where there is no room, first to last."""


def _fitting(numbers: list[Column], width: int) -> list[Column]:
    """The columns that leave room for a name."""
    for heading in ("", *_LEFT_OUT):
        numbers = [column for column in numbers if column.heading != heading]
        if sum(3 + max(map(len, (*_heading(c).split("\n"), *c.cells))) for c in numbers) + _NAME <= width:
            break
    return numbers


def _heading(column: Column) -> str:
    return column.heading.replace(" ", "\n", 1)


def checks_table(outcome: Outcome) -> Table:
    """The contracts that were measured: the deviation, what is allowed, PASS or FAIL."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("check", overflow="fold")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("allowed", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for check in outcome.checks:
        table.add_row(
            Text(printable(check.name)),
            deviation_text(check.measured),
            allowed_text(check.allowed),
            Text(verdict_text(check), style="green" if check.holds else "bold red"),
        )
    return table


def markdown_table(outcome: Outcome) -> str:
    """The result table in GitHub's Markdown, ending in a newline; the row that is best on the test data in bold."""
    shown, best = columns(outcome), best_rows(outcome)
    lines = [
        [escaped(column.heading) for column in shown],
        ["---:" if column.numeric else "---" for column in shown],
    ]
    for i in range(len(outcome.rows)):
        cells = [escaped(column.cells[i]) for column in shown]
        if i in best:
            cells = [
                f"**{cell}**" if cell and column.heading != "note" else cell
                for column, cell in zip(shown, cells, strict=True)
            ]
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
