"""Everything that graphsurgery raises on purpose.

SurgeryError                the request cannot be done; the message says where, why and what to do
├── TraceError              the model's forward cannot be followed
├── CheckpointError         a file is not a checkpoint, is damaged, or is not safe to open
├── SpecError               a model or data spec names nothing, or its data do not fit
├── UnsupportedError        understood, but outside what graphsurgery does (exit code 3)
└── CheckFailedError        a contract was measured and does not hold (exit code 1)
"""


class SurgeryError(Exception):
    """The request cannot be done; the message says where, why and what to do instead."""


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


def one_line(cause: BaseException, limit: int = 200) -> str:
    """What an exception says, on one line of at most `limit` characters; its type when it says nothing."""
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
