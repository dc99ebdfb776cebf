"""A folder that one process holds, so that two runs do not write into each other."""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from pathlib import Path

from graphsurgery.errors import SurgeryError

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class Held:
    """A folder that this process holds while the object exists.

    The system lets go of it when the process ends, in whatever way: nothing is left to be cleaned. No file is written.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor
        self._closing = weakref.finalize(self, _close, descriptor)

    def let_go(self) -> None:
        """Close it here, as a forked child does: it holds nothing, and must not outlive its parent's hold."""
        self._closing()


_HELD: weakref.WeakValueDictionary[Path, Held] = weakref.WeakValueDictionary()


def held(folder: Path) -> Held:
    """A hold on a folder; all of one process share it.

    Where the system has no such locks (Windows, some network drives) nothing is held.

    Raises:
        SurgeryError: another process holds it.
    """
    place = folder.resolve()
    found = _HELD.get(place)
    if found is None:
        found = _HELD[place] = Held(_locked(folder))
    return found


def _locked(folder: Path) -> int | None:
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        os.close(descriptor)
        if cause.errno in _BUSY:
            raise SurgeryError(
                f"run folder {folder}: another process works in it; wait until it is done, or give a new folder"
            ) from cause
        return None
    return descriptor


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _in_child() -> None:
    for found in list(_HELD.values()):
        found.let_go()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
