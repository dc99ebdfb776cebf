"""What work says of itself while it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from graphsurgery.progress import Phase, listening


class Noted:
    """Notes every phase when it begins."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []

    def began(self, phase: Phase) -> None:
        self.phases.append(phase)

    def moved(self, phase: Phase) -> None: ...

    def ended(self, phase: Phase) -> None: ...


@contextmanager
def told() -> Iterator[list[tuple[str, tuple[int, int | None]]]]:
    """The phases that begin inside the block, by name, with steps done and all steps; filled at its end."""
    noted, found = Noted(), []
    with listening(noted):
        yield found
    found += [(phase.name, (phase.done, phase.total)) for phase in noted.phases]
