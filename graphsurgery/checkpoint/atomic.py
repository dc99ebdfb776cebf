"""Files that are either whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from graphsurgery.errors import SurgeryError

_PART = re.compile(r"\..+\.[a-z0-9_]{8}\.part")
"""Names of files that are being written."""


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


def write_tensors(path: Path | str, content: Any) -> None:
    """Write what `torch.save` can, as `atomic_write`.

    Raises:
        SurgeryError: the operating system refuses to write.
    """
    import torch

    with atomic_write(path) as temporary, temporary.open("wb") as file:
        noting = _Noting(file)
        try:
            torch.save(content, cast("IO[bytes]", noting))
        except Exception:
            # torch's writer reports a full disk in its own words, or not at all.
            if noting.refusal is not None:
                raise noting.refusal from None
            raise


class _Noting:
    """A file that remembers why it could not be written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.refusal: OSError | None = None

    def write(self, content: Any) -> int:
        if self.refusal is not None:
            raise self.refusal
        try:
            return self.file.write(content)
        except OSError as cause:
            self.refusal = cause
            raise

    def flush(self) -> None:
        self.file.flush()


def clean_parts(folder: Path) -> list[Path]:
    """Remove what killed processes have left of files, in a folder that no other process writes into.

    Returns:
        What was removed.
    """
    left = [path for path in folder.rglob(".*.part") if _PART.fullmatch(path.name) and path.is_file()]
    for path in left:
        with contextlib.suppress(OSError):
            path.unlink()
    return left


def _flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
