"""What the user sees while a stage trains: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from graphsurgery.training.loop.run import EpochRecord

logger = logging.getLogger("graphsurgery.training")


class Reporter(Protocol):
    """Told how a stage goes; only the main process has one."""

    def started(self, stage: str, epochs: int) -> None:
        """A stage of `epochs` epochs begins or goes on."""

    def advanced(self, epochs_done: float) -> None:
        """So many epochs, fractions included, are done."""

    def epoch_finished(self, record: EpochRecord) -> None:
        """An epoch is over."""

    def finished(self) -> None:
        """The stage is over, by its end or by an error."""


class SilentReporter:
    """Says nothing."""

    def started(self, stage: str, epochs: int) -> None: ...

    def advanced(self, epochs_done: float) -> None: ...

    def epoch_finished(self, record: EpochRecord) -> None: ...

    def finished(self) -> None: ...


class LogReporter(SilentReporter):
    """About ten lines of the logger `graphsurgery.training` per stage, level INFO; `metrics.jsonl` has every epoch."""

    def __init__(self) -> None:
        self.epochs = 0

    def started(self, stage: str, epochs: int) -> None:  # noqa: ARG002
        self.epochs = epochs

    def epoch_finished(self, record: EpochRecord) -> None:
        if record.epoch not in (1, self.epochs) and record.epoch % max(1, self.epochs // 10):
            return
        logger.info(
            "%s epoch %d/%d: %s (%.1f s)", record.stage, record.epoch, self.epochs, in_words(record), record.seconds
        )


class BarReporter(SilentReporter):
    """A rich progress bar on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f} epochs"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("", total=0, words="", visible=False)

    def started(self, stage: str, epochs: int) -> None:
        self.bar.update(self.task, description=stage, total=epochs, completed=0, words="", visible=True)
        self.bar.start()

    def advanced(self, epochs_done: float) -> None:
        self.bar.update(self.task, completed=epochs_done)

    def epoch_finished(self, record: EpochRecord) -> None:
        self.bar.update(self.task, completed=record.epoch, words=in_short(record))

    def finished(self) -> None:
        self.bar.stop()


def default_reporter() -> Reporter:
    """A bar where standard error is a terminal, log lines elsewhere."""
    return BarReporter() if sys.stderr.isatty() else LogReporter()


def in_short(record: EpochRecord) -> str:
    """The two numbers to watch: the training loss and the last validation metric."""
    words = [f"loss {value:.4g}" for name, value in record.train.items() if name == "total"]
    words += [f"{name} {value:.4g}" for name, value in list(record.validation.items())[-1:]]
    return ", ".join(words)


def in_words(record: EpochRecord) -> str:
    """The record's numbers on one line."""
    words = [f"train {name} {value:.4g}" for name, value in record.train.items()]
    words += [f"validation {name} {value:.4g}" for name, value in record.validation.items()]
    # One number for each space of a network is for the report, not for a line.
    words += [f"{name} {value:.4g}" for name, value in record.extra.items() if not name.startswith("open ")]
    return ", ".join(words)
