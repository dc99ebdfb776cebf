"""What a command prints: tables and lines on standard output, progress on standard error; or one JSON document."""

from __future__ import annotations

import logging
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from graphsurgery.cli.options import IMAGES, PARTS, RANDOM, WEIGHTS, Shown
from graphsurgery.cli.process.collecting import go_on
from graphsurgery.cli.process.failures import DOCUMENT
from graphsurgery.cli.process.streams import LastingConsole, silence
from graphsurgery.cli.process.watching import hidden, is_first, ready
from graphsurgery.errors import visible
from graphsurgery.reports.cells import count
from graphsurgery.reports.sheet import Column, Kind, Sheet, few

if TYPE_CHECKING:
    from graphsurgery.graph import ModelGraph
    from graphsurgery.models.sources.listing import Listing
    from graphsurgery.recipes.outcome import Check
    from graphsurgery.surgery.channels.cost import Cost
    from graphsurgery.training.loop.progress import Reporter

_WHOLE = 100_000
"""Columns of a screen that has room for everything."""


_LABEL = 11
_COMMANDS = ("next", "recover")
"""The labels of lines that are command lines."""


class Screen:
    """Where a command prints; silent in all but the first of several processes.

    Printing never raises: what a command computes is not lost with the reader of its output (`| head -1`), and what
    cannot be written, as on a full disk, is an error of `finish` only.

    It is made when a command has imported what it needs, and begins.
    """

    def __init__(self, shown: Shown) -> None:
        go_on()
        ready()
        self.first = is_first()
        self.json = shown.json
        self.speaks = self.first and not shown.json and not shown.quiet
        self.progress = self.first and not shown.quiet
        self.folds = sys.stdout.isatty() and not shown.wide
        self.verbose = shown.verbose
        self.console = LastingConsole(width=None if self.folds else _WHOLE, highlight=False)
        self.failure: OSError | None = None
        self.noted: set[str] = set()
        self.run: Path | None = None

    def show(self, what: RenderableType) -> None:
        """Print a table."""
        self._notes()
        if self.speaks:
            self._print(what)

    def listing(self, what: Listing) -> None:
        """Print a table of what can be named, and an empty line."""
        table = columns(*what.headings, marks=what.headings[:1])
        for row in what.plain():
            table.add_row(*row)
        self.show(table)
        self.plain("")

    def plain(self, text: str) -> None:
        """Print a line as it is."""
        if self.speaks:
            self._print(Text(visible(text)), soft_wrap=True)

    def line(self, label: str, text: str, style: str = "") -> None:
        """Print a labelled line."""
        self._notes()
        if self.speaks:
            width = self.console.width if self.folds else _WHOLE
            lines = in_lines(visible(text), width - _LABEL, command=label in _COMMANDS)
            for number, part in enumerate(lines):
                head = f"{'' if number else label:<{_LABEL - 1}} "
                self._print(Text.assemble((head, "bold"), (part, style)), soft_wrap=True)

    def checks(self, checks: Iterable[Check]) -> None:
        """Print a line for each contract."""
        for check in checks:
            verdict, style = ("PASS", "green") if check.holds else ("FAIL", "bold red")
            self.line("check", f"{check.name}: {check.measured:.1e}, allowed {check.allowed:.0e}  {verdict}", style)

    def untested(self, remarks: Iterable[str]) -> None:
        """Print what a check says nothing about."""
        for remark in remarks:
            self.line(
                "note", f"{remark}; give real inputs with --data or --calib where the command takes them", "yellow"
            )

    def require(self, *checks: Check) -> None:
        """Print a line for each contract, and refuse to go on where one does not hold.

        Raises:
            CheckFailedError: it names the first that does not.
        """
        from graphsurgery.recipes.outcome import required

        self.checks(checks)
        for check in checks:
            required(check)

    def costs(self, before: ModelGraph, after: ModelGraph) -> dict[str, Any]:
        """Print what a network costs before and after an edit; the same for the JSON document."""
        from dataclasses import asdict

        from graphsurgery.surgery.channels.cost import cost

        old, new = cost(before), cost(after)
        table = columns("", "parameters", "MACs", right=["parameters", "MACs"])
        table.add_row("before", count(old.parameters), count(old.macs))
        table.add_row("after", count(new.parameters), count(new.macs))
        table.add_row("ratio", f"{new.parameters / old.parameters:.3f}", f"{new.macs / max(1, old.macs):.3f}")
        self.show(table)
        self.uncounted(old)
        return {"before": asdict(old), "after": asdict(new)}

    def uncounted(self, cost: Cost) -> None:
        """Say where the multiply-accumulates are that a cost leaves out."""
        if cost.uncounted:
            self.line("note", f"MACs without {few(cost.uncounted)} (kept whole)", "yellow")

    def finish(self, document: Mapping[str, Any], *command: str | Path) -> None:
        """Print the last line, the next command to try; the JSON document, which has it too, is printed in the end.

        Raises:
            OSError: something could not be printed, for another reason than that nobody reads it.
        """
        following = shlex.join(["graphsurgery", *map(str, command)])
        self.line("next", following, "cyan")
        if random := RANDOM.get():
            document = {**document, "random_weights": dict(random)}
        if self.run is not None:
            document = {**document, "run": self.run}
        if weights := WEIGHTS.get():
            document = {**document, "weights_taken": dict(weights)}
        if parts := PARTS.get():
            document = {**document, "splits": dict(parts)}
        if images := IMAGES.get():
            document = {**document, "preprocessing": {spec: made.as_dict() for spec, made in images.items()}}
        if self.json and self.first:
            DOCUMENT.set(_finite({**document, "next": following}))
        if self.failure is not None:
            raise self.failure

    def _notes(self) -> None:
        """Say once what images become inputs by, which weights of a file were taken, and which specs draw theirs."""
        for spec, made in (IMAGES.get() or {}).items():
            if spec not in self.noted:
                self.noted.add(spec)
                self.line("images", f"{spec}: {made}")
        for spec, parts in (PARTS.get() or {}).items():
            if f"{spec} parts" not in self.noted:
                self.noted.add(f"{spec} parts")
                self.line("data", f"{spec}: {parts}")
        for spec, better in (RANDOM.get() or {}).items():
            if spec not in self.noted:
                self.noted.add(spec)
                self.line("note", f"{spec}: its weights are random; for trained ones give {better}", "yellow")

        for source, taken in (WEIGHTS.get() or {}).items():
            if source not in self.noted:
                self.noted.add(source)
                self.line("weights", f"{source}: {taken}")

    def _print(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        try:
            with hidden():
                self.console.print(what, soft_wrap=soft_wrap)
        except OSError as cause:
            self._fail(cause)

    def _fail(self, cause: OSError) -> None:
        silence(sys.stdout)
        self.speaks = False
        if not isinstance(cause, BrokenPipeError):
            self.failure = cause

    def reporter(self) -> Reporter:
        """A bar on a terminal, lines elsewhere, nothing where --quiet says so."""
        from graphsurgery.training.loop.progress import SilentReporter, default_reporter

        if not self.progress:
            return SilentReporter()
        logger = logging.getLogger("graphsurgery.training")
        logger.handlers = [logging.StreamHandler(sys.stderr)]
        logger.setLevel(logging.INFO)
        return default_reporter(verbose=self.verbose)


def columns(
    *headings: str,
    right: Sequence[str] = (),
    marks: Sequence[str] = (),
    names: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> Sheet:
    """An empty table: names in the first column, where nothing else is said, and texts in the others.

    Args:
        headings: of the columns.
        right: those that hold numbers.
        marks: those that hold a word or a shape, and are never folded.
        names: those that hold names, which are folded in the middle.
        drop: those that go where there is no room, first to last.
    """
    kinds: dict[str, Kind] = dict.fromkeys(headings, "text")
    of: dict[Kind, Sequence[str]] = {"name": names or headings[:1], "mark": marks, "number": right}
    for kind, theirs in of.items():
        kinds |= dict.fromkeys(theirs, kind)
    ranks = {name: len(drop) - place for place, name in enumerate(drop)}
    return Sheet(*(Column(name, kinds[name], ranks.get(name, 0)) for name in headings))


def in_lines(text: str, width: int, *, command: bool = False) -> list[str]:
    """A text in lines of at most this width, of whole words; a command line with backslashes, to be copied."""
    if cell_len(text) <= width:
        return [text]
    if not command:
        return wrap(text, max(width, _NARROWEST), break_long_words=False, break_on_hyphens=False)
    lines = [""]
    for part in _with_values(shlex.split(text)):
        longer = f"{lines[-1]} {part}".lstrip()
        if lines[-1] and cell_len(longer) > max(width, _NARROWEST) - 2:
            lines.append(part)
        else:
            lines[-1] = longer
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


_NARROWEST = 20


def _with_values(words: Sequence[str]) -> list[str]:
    """The words of a command line as a shell takes them, each option with the value behind it."""
    parts: list[str] = []
    for before, word in pairwise(["", *words]):
        if before.startswith("-") and not word.startswith("-"):
            parts[-1] += f" {shlex.quote(word)}"
        else:
            parts.append(shlex.quote(word))
    return parts


def in_few_lines(named: Mapping[str, Sequence[str]], most: int = 4, width: int = 69) -> list[str]:
    """A line `a, b, … 5 more: why` for each of the first reasons, with as many names as fit, and how many more come.

    Args:
        named: names by their reason.
        most: lines.
        width: of a line in columns, where one name does not take more.
    """
    lines = []
    for why, names in list(named.items())[: most - (len(named) > most)]:
        fitting = [n for n in range(len(names), 0, -1) if len(f"{few(names, n)}: {why}") <= width]
        lines.append(f"{few(names, max(fitting, default=1))}: {why}")
    return [*lines, f"… {len(named) - len(lines)} more reasons; see --json"] if len(lines) < len(named) else lines


def _finite(value: Any) -> Any:
    """What JSON can hold: numbers that are none become null, paths text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, Path) else value
