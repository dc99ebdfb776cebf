"""Files that are either whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from graphsurgery.errors import SurgeryError


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """A temporary path to write; when the block ends well it becomes `path`, at once and durably.

    After a kill, a full disk or an exception in the block, `path` is what it was before.

    Raises:
        SurgeryError: the operating system refuses to write (full disk, missing folder, no permission).
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush(temporary)
        # mkstemp makes private files; a written file gets the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise SurgeryError(
            f"{target}: cannot be written ({error.strerror or error}); the old file, if any, is untouched; "
            "free space or give another place"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
