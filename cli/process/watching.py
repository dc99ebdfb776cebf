"""What a command shows on standard error while it works: a line that turns on a terminal, lines in a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from graphsurgery.errors import visible
from graphsurgery.progress import Phase, listening

EVERY = 10.0
"""Seconds between two lines in a pipe."""
_PATIENCE = 0.4
"""Seconds that pass before a terminal shows a phase, so that short ones do not flicker."""

Clock = Callable[[], float]


class Watcher:
    """The phases that go on, the innermost last, each with the time at which it began; shown by `tick`.

    Attributes:
        pause: seconds between two ticks of the thread.
    """

    pause = 1.0

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.phases: list[tuple[Phase, float]] = []
        self._starting = Phase("starting")
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._shown = clock()

    def began(self, phase: Phase) -> None:
        """It begins; from the first one on a thread ticks."""
        with self._lock:
            self.phases.append((phase, self.clock()))

    def moved(self, phase: Phase) -> None:  # noqa: ARG002
        """It has come further."""
        if self.clock() - self._shown >= self.pause:
            self._shown = self.clock()
            self.tick()

    def ended(self, phase: Phase) -> None:
        """It is over."""
        with self._lock:
            self.phases = [entry for entry in self.phases if entry[0] is not phase]
        self.tick()

    def tick(self) -> None:
        """Show what goes on, where it is due."""

    def words(self) -> str:
        """What goes on, the outermost phase first."""
        return ": ".join(str(phase) for phase, _ in self.phases)

    def seconds(self) -> float:
        """How long the outermost phase goes on."""
        return self.clock() - self.phases[0][1]

    def start(self) -> None:
        """Tick in a thread until `close`, as a phase may do one thing for minutes; the command starts until `ready`."""
        self.began(self._starting)
        self._thread = threading.Thread(target=self._run, daemon=True, name="graphsurgery watcher")
        self._thread.start()

    def ready(self) -> None:
        """The command has imported what it needs."""
        self.ended(self._starting)

    def close(self) -> None:
        """Show nothing more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self.phases = []
        self.tick()

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Inside the block the terminal belongs to somebody else."""
        with self._lock:
            yield

    def _run(self) -> None:
        while not self._over.wait(self.pause):
            # What takes times is not disturbed between its steps.
            if not (self.phases and self.phases[-1][0].still):
                self.tick()


class Lines(Watcher):
    """A line every ten seconds while something goes on.

    Args:
        write: takes a line, by default on standard error.
        clock: seconds.
        each: a line at the end of each phase too, with how long it took.
    """

    def __init__(
        self, write: Callable[[str], None] | None = None, clock: Clock = time.monotonic, *, each: bool = False
    ) -> None:
        super().__init__(clock)
        self.write = write or _on_stderr
        self.each = each
        self._last = clock()

    def ended(self, phase: Phase) -> None:
        """It is over."""
        for found, began in self.phases if self.each else ():
            if found is phase:
                self._say(f"{phase}, done in {self.clock() - began:.1f} s")
        super().ended(phase)

    def tick(self) -> None:
        """Write a line, where the last is ten seconds ago."""
        with self._lock:
            if self.phases and self.clock() - self._last >= EVERY:
                self._say(f"{self.words()}, for {self.seconds():.0f} s")

    def _say(self, line: str) -> None:
        with self._lock:
            self._last = self.clock()
            self.write(line)


class Turning(Watcher):
    """A line at the bottom of a terminal that turns, and goes when nothing goes on."""

    pause = 0.1

    def __init__(self, console: Console | None = None, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._spinner = Spinner("dots")

    def tick(self) -> None:
        """Draw the line, or take it away."""
        with self._lock, contextlib.suppress(OSError):
            if not self.phases or self.seconds() < _PATIENCE:
                self._clear()
                return
            if self._live is None:
                # Nothing is redirected: what others print meanwhile goes where it belongs.
                self._live = Live(
                    console=self.console,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
            self._live.update(self._line(), refresh=True)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Inside the block the terminal belongs to somebody else."""
        with self._lock:
            with contextlib.suppress(OSError):
                self._clear()
            yield

    def _clear(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self) -> Table:
        line = Table.grid(padding=(0, 1))
        line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(self._spinner, Text(f"{self.seconds():.0f} s  {visible(self.words())}"))
        return line


def watcher(*, quiet: bool = False, verbose: bool = False) -> Watcher:
    """What fits standard error: a line that turns on a terminal, lines elsewhere, nothing where it shall be quiet."""
    if quiet or not is_first():
        return Watcher()
    # On a terminal verbose lines would be torn by a line that turns; a dumb one cannot draw it.
    turns = sys.stderr.isatty() and not verbose and os.environ.get("TERM") != "dumb"
    return Turning() if turns else Lines(each=verbose)


@contextlib.contextmanager
def watching(*, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Inside the block standard error shows what goes on; see `watcher`."""
    found = watcher(quiet=quiet, verbose=verbose)
    token = WATCHER.set(found)
    found.start()
    try:
        with listening(found):
            yield
    finally:
        found.close()
        WATCHER.reset(token)


def ready() -> None:
    """The command has imported what it needs, and begins."""
    if (found := WATCHER.get()) is not None:
        found.ready()


def is_first() -> bool:
    """Whether this process is the one of several that speaks."""
    return os.environ.get("RANK", "0") == "0"


def is_alone() -> bool:
    """Whether no other process trains with this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


WATCHER: ContextVar[Watcher | None] = ContextVar("WATCHER", default=None)
"""That of this command."""


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Inside the block nothing turns on the terminal."""
    found = WATCHER.get()
    with contextlib.nullcontext() if found is None else found.hidden():
        yield


def _on_stderr(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        print(visible(line), file=sys.stderr, flush=True)  # noqa: T201
