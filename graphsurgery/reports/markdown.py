"""The result table as Markdown, for documents."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from graphsurgery.reports.cells import best_rows, columns

if TYPE_CHECKING:
    from graphsurgery.recipes.outcome import Outcome


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
