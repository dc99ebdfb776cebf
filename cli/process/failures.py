"""What becomes of an error: an exit code, one line on standard error, and with `--json` the same in the document."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from cyclopts import CycloptsError

from graphsurgery.cli.process.streams import folded, silence
from graphsurgery.errors import (
    CheckFailedError,
    DivergedError,
    SurgeryError,
    UnsupportedError,
    one_line,
    out_of_memory,
    printable,
    visible,
)

DONE, CHECK_FAILED, USAGE, UNSUPPORTED, BUG, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 70, 130, 143

EXIT_CODES: Mapping[int, str] = {
    DONE: "done",
    CHECK_FAILED: "a check failed",
    USAGE: "usage",
    UNSUPPORTED: "unsupported",
    BUG: "a mistake in graphsurgery, to be reported",
    INTERRUPTED: "interrupted (Ctrl+C)",
    TERMINATED: "asked to end (SIGTERM)",
}
"""How commands end."""

DOCUMENT: ContextVar[Mapping[str, Any] | None] = ContextVar("DOCUMENT", default=None)
"""What this command prints as JSON in the end, as far as it has come."""

_LIMIT = 1000


class Terminated(KeyboardInterrupt):
    """The system, or whoever started the command, asks it to end (SIGTERM)."""


@dataclass(frozen=True)
class Failure:
    """How a command has failed.

    Attributes:
        code: its exit code.
        kind: the class of the error, which says more than the code.
        message: one line.
        cause: what was raised.
    """

    code: int
    kind: str
    message: str
    cause: BaseException

    @property
    def needs_traceback(self) -> bool:
        """Whether it cannot be told in one line."""
        return self.code == BUG

    def as_dict(self) -> dict[str, Any]:
        """As `error` in the document."""
        return {"code": self.code, "kind": self.kind, "message": self.message}

    def show(self, *, whole: bool, causes: bool) -> None:
        """Print the line on standard error.

        Args:
            whole: print the traceback before it.
            causes: name after it what it was raised from.
        """
        with contextlib.suppress(OSError):  # nobody reads it
            for line in "".join(traceback.format_exception(self.cause)).splitlines() if whole else ():
                print(visible(line), file=sys.stderr)  # noqa: T201
            print(folded(f"error  {self.message}", 7, sys.stderr), file=sys.stderr)  # noqa: T201
            cause = self.cause.__cause__
            while causes and cause is not None:
                print(f"cause  {type(cause).__name__}: {one_line(cause, _LIMIT)}", file=sys.stderr)  # noqa: T201
                cause = cause.__cause__


def failure_of(cause: BaseException, flags: Callable[[], Collection[str]] = tuple, advice: str = "") -> Failure | None:
    """How a command fails that ends in this error; None where a reader of its output has gone, which is no failure.

    Args:
        cause: the error.
        flags: gives the options that the command has.
        advice: how it goes on when it was interrupted.
    """

    def failure(code: int, message: str) -> Failure:
        return Failure(code, type(cause).__name__, message, cause)

    if isinstance(cause, BrokenPipeError):
        return None
    if isinstance(cause, KeyboardInterrupt):
        code = TERMINATED if isinstance(cause, Terminated) else INTERRUPTED
        return failure(code, f"interrupted; nothing was left half written{advice}")
    line = one_line(cause, _LIMIT)
    if isinstance(cause, DivergedError):
        return failure(USAGE, printable(cause.told(flags())))
    if isinstance(cause, SurgeryError | CycloptsError | OSError):
        codes = ((CheckFailedError, CHECK_FAILED), (UnsupportedError, UNSUPPORTED))
        return failure(next((code for kind, code in codes if isinstance(cause, kind)), USAGE), line)
    if out_of_memory(cause):
        return failure(USAGE, f"there is not enough memory for this ({one_line(cause)})")
    from graphsurgery.models.sources.user_files import place_of, told

    if place_of(cause) is not None:
        return failure(USAGE, f"{printable(told(cause))}; repair the file")
    return failure(BUG, f"this is a mistake in graphsurgery, please report it: {line}")


def print_document(failure: Failure | None) -> None:
    """Print the one document of a command on standard output, with its error where it has failed.

    Raises:
        OSError: it cannot be written, for another reason than that nobody reads it.
    """
    document = dict(DOCUMENT.get() or {})
    if failure is not None:
        document["error"] = failure.as_dict()
    try:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        sys.stdout.flush()
    except OSError as cause:
        silence(sys.stdout)
        if not isinstance(cause, BrokenPipeError):
            raise
