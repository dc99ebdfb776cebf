"""What a command prints: tables and lines on standard output, progress on standard error; or one JSON document."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from graphsurgery.cli.collecting import go_on
from graphsurgery.cli.options import IMAGES, RANDOM, WEIGHTS, Shown
from graphsurgery.cli.streams import LastingConsole, silence
from graphsurgery.errors import visible

if TYPE_CHECKING:
    from graphsurgery.graph import ModelGraph
    from graphsurgery.recipes.outcome import Check
    from graphsurgery.surgery.channels.cost import Cost
    from graphsurgery.training.loop.progress import Reporter

_WIDTH = 140


class Screen:
    """Where a command prints; silent in all but the first of several processes.

    Printing never raises: what a command computes is not lost with the reader of its output (`| head -1`), and what
    cannot be written, as on a full disk, is an error of `finish` only.

    It is made when a command has imported what it needs, and begins.
    """

    def __init__(self, shown: Shown) -> None:
        go_on()
        self.first = os.environ.get("RANK", "0") == "0"
        self.json = shown.json
        self.speaks = self.first and not shown.json and not shown.quiet
        self.progress = self.first and not shown.quiet
        # Off a terminal rich would fold tables to 80 columns.
        self.console = LastingConsole(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
        self.failure: OSError | None = None
        self.noted: set[str] = set()
        self.run: Path | None = None

    def show(self, what: RenderableType) -> None:
        """Print a table."""
        self._notes()
        if self.speaks:
            self._print(what)

    def line(self, label: str, text: str, style: str = "") -> None:
        """Print a labelled line."""
        self._notes()
        if self.speaks:
            self._print(Text.assemble((f"{label:<10} ", "bold"), (visible(text), style)), soft_wrap=True)

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
        """Print the last line, the next command to try; or the JSON document, which has it too.

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
        if images := IMAGES.get():
            document = {**document, "preprocessing": {spec: made.as_dict() for spec, made in images.items()}}
        if self.json and self.first:
            self._write(json.dumps(_finite({**document, "next": following}), indent=2) + "\n")
        if self.failure is not None:
            raise self.failure

    def _notes(self) -> None:
        """Say once what images become inputs by, which weights of a file were taken, and which specs draw theirs."""
        for spec, made in (IMAGES.get() or {}).items():
            if spec not in self.noted:
                self.noted.add(spec)
                self.line("images", f"{spec}: {made}")
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
            self.console.print(what, soft_wrap=soft_wrap)
        except OSError as cause:
            self._fail(cause)

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
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
        return default_reporter()


class _Columns(Table):
    """A table whose cells are text as it stands: a name in brackets is no markup, and nothing moves the cursor."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row; see `Table.add_row`."""
        super().add_row(*(Text(visible(cell)) if isinstance(cell, str) else cell for cell in cells), **options)


def columns(*names: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """An empty table; the columns in `right` hold numbers, those in `whole` names that are typed again: on one line."""
    table = _Columns(box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name in (*right, *whole))
    return table


def count(number: float) -> str:
    """A count for people: 272 k, 23.5 M, 4.09 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def few(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and how many there are besides."""
    shown = ", ".join(names[:limit])
    return f"{shown}, … {len(names) - limit} more" if len(names) > limit else shown


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
