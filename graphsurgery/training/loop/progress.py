"""What the user sees while a stage trains: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from graphsurgery.progress import Phase, listening

if TYPE_CHECKING:
    from graphsurgery.training.loop.run import EpochRecord

logger = logging.getLogger("graphsurgery.training")


class Reporter(Protocol):
    """Told how a stage goes; only the main process has one."""

    def started(self, stage: str, epochs: int) -> None:
        """A stage of `epochs` epochs begins or goes on."""

    def advanced(self, epochs_done: float, loss: float) -> None:
        """So many epochs, fractions included, are done; the mean loss of the one at hand so far."""

    def epoch_finished(self, record: EpochRecord) -> None:
        """An epoch is over."""

    def finished(self) -> None:
        """The stage is over, by its end or by an error."""


class SilentReporter:
    """Says nothing."""

    def started(self, stage: str, epochs: int) -> None: ...

    def advanced(self, epochs_done: float, loss: float) -> None: ...

    def epoch_finished(self, record: EpochRecord) -> None: ...

    def finished(self) -> None: ...


EVERY = 10.0
"""Seconds after which lines say how far an epoch is."""


class LogReporter(SilentReporter):
    """Lines of the logger `graphsurgery.training`, level INFO: about ten epochs per stage, and one every ten seconds.

    `metrics.jsonl` has every epoch.

    Args:
        clock: seconds.
        each: a line for every epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, each: bool = False) -> None:
        self.clock, self.each = clock, each
        self.stage, self.epochs = "", 0
        self._last = clock()

    def started(self, stage: str, epochs: int) -> None:
        self.stage, self.epochs, self._last = stage, epochs, self.clock()

    def advanced(self, epochs_done: float, loss: float) -> None:
        if self.clock() - self._last >= EVERY:
            self._last = self.clock()
            logger.info("%s %.2f of %d epochs: loss %.4g so far", self.stage, epochs_done, self.epochs, loss)

    def epoch_finished(self, record: EpochRecord) -> None:
        few = record.epoch in (1, self.epochs) or record.epoch % max(1, self.epochs // 10) == 0
        if few or self.each:
            self._last = self.clock()
            logger.info(
                "%s epoch %d/%d: %s (%.1f s)", record.stage, record.epoch, self.epochs, in_words(record), record.seconds
            )


class BarReporter(SilentReporter):
    """A rich progress bar on standard error; while it is there, it shows phases too."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f} epochs"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("", total=0, words="", visible=False)
        self._loss = self._score = ""
        self._listening = contextlib.ExitStack()

    def started(self, stage: str, epochs: int) -> None:
        self._loss = self._score = ""
        self.bar.update(self.task, description=stage, total=epochs, completed=0, words="", visible=True)
        self._listening.enter_context(listening(self))
        self.bar.start()

    def advanced(self, epochs_done: float, loss: float) -> None:
        self._loss = f"loss {loss:.4g}"
        self.bar.update(self.task, completed=epochs_done, words=self._words)

    def epoch_finished(self, record: EpochRecord) -> None:
        words = in_short(record)
        self._loss, self._score = words[0], "".join(words[1:])
        self.bar.update(self.task, completed=record.epoch, words=self._words)

    def finished(self) -> None:
        self._listening.close()
        self.bar.stop()

    def began(self, phase: Phase) -> None:
        """A phase begins inside the stage."""
        self.bar.update(self.task, words=str(phase))

    def moved(self, phase: Phase) -> None:
        """It has come further."""
        self.bar.update(self.task, words=str(phase))

    def ended(self, phase: Phase) -> None:  # noqa: ARG002
        """It is over."""
        self.bar.update(self.task, words=self._words)

    @property
    def _words(self) -> str:
        return ", ".join(filter(None, (self._loss, self._score)))


def default_reporter(*, verbose: bool = False) -> Reporter:
    """A bar where standard error is a terminal, log lines elsewhere; with `verbose` a line for every epoch."""
    return BarReporter() if sys.stderr.isatty() and not verbose else LogReporter(each=verbose)


def in_short(record: EpochRecord) -> list[str]:
    """The two numbers to watch: the training loss and the last validation metric, where there is one."""
    words = [f"loss {value:.4g}" for name, value in record.train.items() if name == "total"]
    return [*words, *(f"{name} {value:.4g}" for name, value in list(record.validation.items())[-1:])]


def in_words(record: EpochRecord) -> str:
    """The record's numbers on one line."""
    words = [f"train {name} {value:.4g}" for name, value in record.train.items()]
    words += [f"validation {name} {value:.4g}" for name, value in record.validation.items()]
    # One number for each space of a network is for the report, not for a line.
    words += [f"{name} {value:.4g}" for name, value in record.extra.items() if not name.startswith("open ")]
    return ", ".join(words)
