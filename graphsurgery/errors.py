"""Everything that graphsurgery raises on purpose.

SurgeryError                the request cannot be done; the message says where, why and what to do
├── TraceError              the model's forward cannot be followed
├── CheckpointError         a file is not a checkpoint, is damaged, or is not safe to open
├── SpecError               a model or data spec names nothing, or its data do not fit
├── DivergedError           the loss of a training is not finite
├── UnsupportedError        understood, but outside what graphsurgery does (exit code 3)
└── CheckFailedError        a contract was measured and does not hold (exit code 1)
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path


class SurgeryError(Exception):
    """The request cannot be done; the message says where, why and what to do instead.

    Names in it may come from a file; as text it is one line that is safe to show on a terminal.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class TraceError(SurgeryError):
    """The model's forward cannot be followed; the message names the source line."""


class CheckpointError(SurgeryError):
    """A file is not a checkpoint, is damaged, or would execute code when opened."""


class SpecError(SurgeryError):
    """A model or data spec names nothing that exists, or what it names does not fit."""


class UnsupportedError(SurgeryError):
    """The input was understood but lies outside what graphsurgery does."""


class CheckFailedError(SurgeryError):
    """A contract was measured and does not hold."""


class DivergedError(SurgeryError):
    """The loss of a training is not finite.

    Args:
        found: where, and what it is.
        remedies: what may help, by the name of the option that says it, each with a value.
        kept: where the last good state is; empty where there is none.
    """

    def __init__(self, found: str, remedies: Mapping[str, float], kept: str = "") -> None:
        self.found, self.remedies, self.kept = found, remedies, kept
        super().__init__(self._with(f"{name}={value:g}" for name, value in remedies.items()))

    def told(self, flags: Collection[str]) -> str:
        """The message for a command line that has these options, such as `--lr`; it names no other."""
        return self._with(f"--{name} {value:g}" for name, value in self.remedies.items() if f"--{name}" in flags)

    def _with(self, options: Iterable[str]) -> str:
        advice = " or ".join(options)
        kept = f"; the last good state is {self.kept}" if self.kept else ""
        return f"{self.found}{'; try ' if advice else ''}{advice}{kept}"


def out_of_memory(cause: BaseException) -> bool:
    """Whether the system had no memory for something, as a file may ask for a network of any size."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and any(w in str(cause) for w in words))


def visible(text: str) -> str:
    """The text as it may be shown: what is written in it cannot move the cursor, change colors or turn its direction.

    Control characters, marks of direction and broken code points become a replacement mark, every space a plain one.
    Names come from files, and files from anywhere, so whatever prints or writes a page sends its text through here.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def printable(text: str) -> str:
    """The text on one line, its spaces joined, as `visible` gives it."""
    return visible(" ".join(text.split()))


def one_line(cause: BaseException, limit: int = 200) -> str:
    """What an exception says, on one printable line of at most `limit` characters; its type when it says nothing."""
    text = printable(str(cause)) or type(cause).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def near_names(name: str, names: Iterable[str]) -> str:
    """What to do about an unknown name: the nearest known names, or all of them when none is near."""
    known = sorted(set(names))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known names: {', '.join(known)}" if len(known) <= 30 else f"there are {len(known)} known names"


def require_file(path: Path, expected: str) -> None:
    """Refuse a path at which there is no file.

    Raises:
        CheckpointError: there is none; it says what was expected.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected {expected}")
