"""Tables: for the terminal, and as Markdown for documents."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich import box
from rich.text import Text

from graphsurgery.errors import printable
from graphsurgery.reports.cells import ResultColumn, allowed_text, best_rows, columns, deviation_text, verdict_text
from graphsurgery.reports.sheet import Column, Sheet

if TYPE_CHECKING:
    from graphsurgery.recipes.outcome import Outcome


class OutcomeTable(Sheet):
    """The result table, notes under the names, in whatever width there is; what is best on validation data is marked.

    Without colors the word "best" still marks the row.
    """

    def __init__(self, outcome: Outcome) -> None:
        numbers = [column for column in columns(outcome) if column.numeric]
        shown = (Column(_heading(c), "number", _LEFT_OUT.get(c.heading, 0)) for c in numbers)
        super().__init__(Column("network"), *shown, box=box.SIMPLE_HEAD, header="dim")
        best = best_rows(outcome)
        for i, row in enumerate(outcome.rows):
            name = Text(printable(row.name))
            if i in best:
                name.append(" · best", style="green")
            if row.note:
                name.append(f"\n{printable(row.note)}", style="dim not bold")
            self.add_row(name, *(column.cells[i] for column in numbers), style="bold" if i in best else "")


_LEFT_OUT = {"CPU (s)": 5, "training MACs": 4, "parameters": 3, "latency (ms)": 2, "epochs": 1}
"""The columns that go where there is no room; the largest number first."""


def _heading(column: ResultColumn) -> str:
    return column.heading.replace(" ", "\n", 1)


def checks_table(outcome: Outcome) -> Sheet:
    """The contracts that were measured: the deviation, what is allowed, PASS or FAIL."""
    table = Sheet(
        Column("check"),
        Column("measured", "number"),
        Column("allowed", "number"),
        Column("", "mark"),
        box=box.SIMPLE_HEAD,
        header="dim",
    )
    for check in outcome.checks:
        table.add_row(
            printable(check.name),
            deviation_text(check.measured),
            allowed_text(check.allowed),
            Text(verdict_text(check), style="green" if check.holds else "bold red"),
        )
    return table


def markdown_table(outcome: Outcome) -> str:
    """The result table in GitHub's Markdown, ending in a newline; the row that is best on validation data in bold."""
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
