"""IDX files, the format of MNIST and its kin, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from graphsurgery.errors import SpecError

_UNSIGNED_BYTE = 8


def find_idx(folder: Path, name: str) -> Path:
    """The file `name` or `name.gz` in `folder`, or in its `FashionMNIST/raw`.

    Raises:
        SpecError: the folder or the file is missing.
    """
    if not folder.is_dir():
        raise SpecError(f"{folder}: is not a folder; give the one that holds {name}.gz")
    for place in (folder, folder / "FashionMNIST" / "raw"):
        for candidate in (place / f"{name}.gz", place / name):
            if candidate.is_file():
                return candidate
    raise SpecError(f"{folder}: has no {name} or {name}.gz; give the folder that holds the four IDX files")


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file.

    Raises:
        SpecError: it is not such a file, or it is cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise SpecError(f"{path}: cannot be read ({error}); get the file again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE:
        raise SpecError(f"{path}: is not an IDX file of bytes; get the file again")
    axes = content[3]
    start = 4 + 4 * axes
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    expected = math.prod(shape)
    if len(content) - start != expected:
        raise SpecError(
            f"{path}: has {len(content) - start} bytes of data, its header says {expected}; get the file again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
