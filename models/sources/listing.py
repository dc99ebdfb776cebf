"""A table of what can be named on a command line, for the terminal and for documents alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Listing:
    """Rows of text.

    Attributes:
        headings: of the columns.
        rows: a text for each column; what is to be typed stands in backticks.
    """

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def plain(self) -> list[tuple[str, ...]]:
        """The rows without backticks."""
        return [tuple(cell.replace("`", "") for cell in row) for row in self.rows]

    def as_dicts(self) -> list[dict[str, Any]]:
        """JSON-like form: a row by its headings."""
        return [dict(zip(self.headings, row, strict=True)) for row in self.plain()]

    def markdown(self) -> str:
        """The table as documents have it."""
        lines = [self.headings, ("---",) * len(self.headings), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
