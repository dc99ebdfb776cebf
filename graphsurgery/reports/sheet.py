"""A table for a terminal of any width: what matters least is left out, and no word is broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.style import Style
from rich.table import Table
from rich.text import Text

from graphsurgery.errors import visible

Kind = Literal["number", "mark", "name", "text"]
Cell = str | Text | Sequence[str]
_LEAST = {"name": 24, "text": 22}
_NARROW = 8


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its first line, or lines.
        kind: `number`, on the right; `mark`, a word or a shape: both stand as they are. `name`, folded in its middle
            where there is no room. `text`, in lines of whole words.
        drop: the columns of the largest number go first where there is no room; 0 stays.
    """

    heading: str
    kind: Kind = "text"
    drop: int = 0


class Sheet:
    """A table that fits the width that there is.

    A cell that is a list of names shows as many as fit, and how many more there are. Cells are text as it stands: a
    name in brackets is no markup, and nothing moves the cursor. What is left out is said below.

    Args:
        columns: the columns.
        box: the lines around and between, if any.
        header: the style of the headings.
    """

    def __init__(self, *columns: Column, box: Box | None = None, header: str = "bold") -> None:
        self.columns, self._box, self._header = columns, box, header
        self._rows: list[tuple[tuple[Cell, ...], str]] = []

    def add_row(self, *cells: Cell, style: str = "") -> None:
        """Add a row: a cell for each column."""
        assert len(cells) == len(self.columns), "a row has a cell for each column"
        self._rows.append((cells, style))

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        natural = [self._natural(number) for number in range(len(self.columns))]
        shown = self._shown(natural, options.max_width)
        widths = self._widths(shown, natural, options.max_width)
        table = Table(box=self._box, pad_edge=False, header_style=self._header)
        for number, width in zip(shown, widths, strict=True):
            column = self.columns[number]
            right: Literal["right", "left"] = "right" if column.kind == "number" else "left"
            whole = column.kind != "text"
            table.add_column(Text(column.heading), justify=right, width=width, no_wrap=whole, overflow="fold")
        for cells, style in self._rows:
            fitted = (
                fitting(cells[number], self.columns[number].kind, width)
                for number, width in zip(shown, widths, strict=True)
            )
            table.add_row(*fitted, style=style)
        yield table
        left_out = [c.heading.replace("\n", " ") for n, c in enumerate(self.columns) if n not in shown]
        if left_out:
            words = f"no room for: {', '.join(dict.fromkeys(left_out))}; --wide shows all"
            yield Text(words, style="dim")

    def _natural(self, number: int) -> int:
        """The width of a column that folds and wraps nothing."""
        texts = [*self.columns[number].heading.split("\n")]
        for cells, _ in self._rows:
            texts += _plain(cells[number]).split("\n")
        return max(map(cell_len, texts))

    def _least(self, number: int, natural: Sequence[int], least: int | None = None) -> int:
        kind = self.columns[number].kind
        return natural[number] if kind not in _LEAST else min(natural[number], least or _LEAST[kind])

    def _between(self, count: int) -> int:
        """What stands between so many columns, and around them."""
        return 2 * (count - 1) if self._box is None else 3 * (count - 1) + 2

    def _shown(self, natural: Sequence[int], room: int) -> list[int]:
        """The columns that there is room for."""
        shown = list(range(len(self.columns)))
        for _ in self.columns:
            if sum(self._least(n, natural) for n in shown) + self._between(len(shown)) <= room:
                break
            first = max(shown, key=lambda n: self.columns[n].drop)
            if self.columns[first].drop:
                shown.remove(first)
        return shown

    def _widths(self, shown: Sequence[int], natural: Sequence[int], room: int) -> list[int]:
        """How wide the columns are: names and texts get what is left, the narrowest first."""
        room -= self._between(len(shown))
        if sum(natural[n] for n in shown) <= room:
            return [natural[n] for n in shown]
        widths = [self._least(n, natural) for n in shown]
        if sum(widths) > room:
            widths = [self._least(n, natural, _NARROW) for n in shown]
        while sum(widths) < room:
            wanting = [i for i, n in enumerate(shown) if widths[i] < natural[n]]
            if not wanting:
                break
            widths[min(wanting, key=lambda i: widths[i])] += 1
        return widths


def fitting(cell: Cell, kind: Kind, width: int) -> RenderableType:
    """A cell in this width: a name folded, a list cut short, the words of a text folded where one is too long."""
    if isinstance(cell, Text):
        return _with_short_words(cell, width)
    if not isinstance(cell, str):
        return Text(_few_fitting(cell, width))
    text = visible(cell)
    if kind == "text":
        return _with_short_words(Text(text), width)
    return Text(middle(text, width) if kind == "name" else text)


def middle(text: str, width: int) -> str:
    """A text in at most this width, its middle left out where it is longer."""
    if cell_len(text) <= width:
        return text
    start, end = text[: (len(text) + 1) // 2], text[(len(text) + 1) // 2 :]
    while (start or end) and cell_len(start) + cell_len(end) >= width:
        start, end = (start[:-1], end) if cell_len(start) > cell_len(end) else (start, end[1:])
    return f"{start}…{end}"


def few(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and how many there are besides."""
    shown = ", ".join(names[:limit])
    return f"{shown}, … {len(names) - limit} more" if len(names) > limit else shown


def _few_fitting(names: Sequence[str], width: int) -> str:
    names = [visible(name) for name in names]
    for count in range(len(names), 0, -1):
        if cell_len(text := few(names, count)) <= width:
            return text
    rest = f", … {len(names) - 1} more" if len(names) > 1 else ""
    return middle(names[0], max(_NARROW, width - cell_len(rest))) + rest if names else ""


def _plain(cell: Cell) -> str:
    if isinstance(cell, Text):
        return cell.plain
    return visible(cell) if isinstance(cell, str) else ", ".join(map(visible, cell))


def _with_short_words(text: Text, width: int) -> Text:
    """The same with words that are no longer than the width."""
    if all(cell_len(word) <= width for word in text.plain.split()):
        return text
    return Text("").join(_words(text, width))


def _words(text: Text, width: int) -> Iterator[Text]:
    """The words of a text, and what is between them, with their styles."""
    start, plain = 0, text.plain
    while start < len(plain):
        space, end = plain[start].isspace(), start
        while end < len(plain) and plain[end].isspace() == space:
            end += 1
        part = text[start:end]
        yield part if space or cell_len(part.plain) <= width else Text(middle(part.plain, width), _style(part))
        start = end


def _style(part: Text) -> str | Style:
    return part.spans[0].style if part.spans else part.style
