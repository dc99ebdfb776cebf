"""What long work says of itself while it goes on; whoever shows it listens.

Code that takes long announces it, `with phase("timing operators", 40) as at: ... at.step("conv1")`. Nothing is printed
here, and without a listener nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


@dataclass(eq=False)
class Phase:
    """A piece of work that goes on.

    Attributes:
        name: what is done, such as `timing operators`.
        total: how many steps it has; None where nobody knows.
        done: how many of them are done.
        words: what the step at hand is about.
        still: whether it takes times, so that whoever shows it does nothing but at its steps.
    """

    name: str
    total: int | None = None
    done: int = 0
    words: str = ""
    still: bool = False

    def step(self, words: str = "") -> None:
        """One more step is done; `words` say what comes next, or what came out."""
        self.done += 1
        self.say(words)

    def say(self, words: str) -> None:
        """What the step at hand is about."""
        self.words = words
        if (listener := _LISTENER.get()) is not None:
            listener.moved(self)

    def __str__(self) -> str:
        count = "" if self.total is None else f" {self.done}/{self.total}"
        return f"{self.name}{count}{', ' if self.words else ''}{self.words}"


class Listener(Protocol):
    """Told of phases; one may begin inside another, and ends before it."""

    def began(self, phase: Phase) -> None:
        """It begins."""

    def moved(self, phase: Phase) -> None:
        """It has come further."""

    def ended(self, phase: Phase) -> None:
        """It is over, by its end or by an error."""


_LISTENER: ContextVar[Listener | None] = ContextVar("LISTENER", default=None)


@contextmanager
def phase(name: str, total: int | None = None, *, still: bool = False) -> Iterator[Phase]:
    """Announce that a piece of work goes on inside the block, or inside the function that this decorates."""
    listener, found = _LISTENER.get(), Phase(name, total, still=still)
    if listener is None:
        yield found
        return
    listener.began(found)
    try:
        yield found
    finally:
        listener.ended(found)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Inside the block phases are told to this listener, and to no other."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
