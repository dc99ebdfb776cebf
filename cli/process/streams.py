"""Standard output and error that take every character, and a reader that goes away."""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import textwrap
from typing import IO, Any

from rich.console import Console

_PLAIN = {
    "→": "->",
    "←": "<-",
    "…": "...",
    "·": "*",
    "×": "x",
    "±": "+-",
    "–": "-",
    "—": "-",
    "─": "-",
    "│": "|",
    "━": "-",
    "╸": "-",
    "╺": "-",
    "≤": "<=",
    "≥": ">=",
}
"""Characters that the commands print, as a terminal of ASCII shows them."""


def _in_plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in part), error.end


def take_every_character() -> None:
    """From now on a character that a terminal's encoding does not have is written in ASCII, or as a question mark."""
    codecs.register_error("graphsurgery.plain", _in_plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="graphsurgery.plain")


def folded(text: str, indent: int, stream: IO[Any]) -> str:
    """A line, in lines of whole words where the stream is a terminal; all but the first are indented."""
    if not stream.isatty():
        return text
    width = max(shutil.get_terminal_size().columns, 2 * indent)
    margin = " " * indent
    return textwrap.fill(text, width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False)


def silence(stream: IO[Any] | None) -> None:
    """Send what is still to be written to a stream nowhere; its reader has gone, or its disk is full."""
    try:
        assert stream is not None
        descriptor = stream.fileno()
    except (AssertionError, OSError, ValueError):  # not a file of the operating system
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class LastingConsole(Console):
    """A console whose broken pipe does not end the program: the work goes on, and is saved."""

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True
        silence(sys.stdout)
