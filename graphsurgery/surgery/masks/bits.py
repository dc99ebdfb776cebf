"""Masks as bits: in the metadata of a checkpoint, and in a file of their own."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import CheckpointError, SurgeryError

FORMAT = "graphsurgery masks"


def as_dict(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """JSON-like form; the bits are compressed, and text."""
    text = base64.b64encode(packed(masks)).decode()
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    return {"shapes": shapes, "bits": text, "digest": digest(masks)}


def from_dict(fields: Mapping[str, Any]) -> dict[str, Tensor]:
    """What `as_dict` gave; older versions gave no digest.

    Raises:
        SurgeryError: it is damaged, or has other bits than it was saved with.
    """
    try:
        shapes = {str(name): tuple(int(size) for size in shape) for name, shape in fields["shapes"].items()}
        content = base64.b64decode(fields["bits"], validate=True)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as cause:
        raise SurgeryError("masks: their shapes or bits are damaged; save them again") from cause
    masks = unpacked(content, shapes)
    if "digest" in fields and fields["digest"] != digest(masks):
        raise SurgeryError("masks: their bits do not have the digest they were saved with; the file was altered")
    return masks


def digest(masks: Mapping[str, Tensor]) -> str:
    """Of the names, the shapes and the bits."""
    found = hashlib.sha256()
    for name, mask in masks.items():
        found.update(json.dumps([name, list(mask.shape)]).encode())
        found.update(np.packbits(mask.flatten().numpy()).tobytes())
    return found.hexdigest()


def write(path: Path | str, masks: Mapping[str, Tensor]) -> None:
    """Write masks as JSON.

    Raises:
        SurgeryError: the file cannot be written.
    """
    with atomic_write(path) as partial:
        partial.write_text(json.dumps({"format": FORMAT, **as_dict(masks)}) + "\n")


def read(path: Path | str) -> dict[str, Any]:
    """The fields that `write` wrote; nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    try:
        fields = json.loads(Path(path).read_bytes())
    except OSError as cause:
        raise CheckpointError(f"{path}: cannot be read ({cause.strerror}); expected masks") from cause
    except (ValueError, RecursionError) as cause:
        raise CheckpointError(f"{path}: is no file of masks, or damaged; take another copy of it") from cause
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is no file of masks; expected what MaskSet.save wrote")
    return fields


def packed(masks: Mapping[str, Tensor]) -> bytes:
    """All masks, one after another, compressed."""
    flat = torch.cat([torch.zeros(0, dtype=torch.bool), *(mask.flatten() for mask in masks.values())])
    return zlib.compress(np.packbits(flat.numpy()).tobytes(), 9)


def unpacked(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What `packed` gave of masks of these shapes.

    Raises:
        SurgeryError: the bits are damaged, or more or fewer than the shapes ask for.
    """
    counts = [math.prod(shape) for shape in shapes.values()]
    wanted = -(-sum(counts) // 8)
    unpacker = zlib.decompressobj()
    try:
        # No more is unpacked than is asked for, whatever the file says.
        bits = unpacker.decompress(content, wanted + 1)
    except (zlib.error, OverflowError) as cause:
        raise SurgeryError("masks: their bits are damaged; take another copy of the file") from cause
    if len(bits) != wanted or min((size for shape in shapes.values() for size in shape), default=0) < 0:
        raise SurgeryError(f"masks: have {len(bits)} bytes, their shapes ask for {wanted}; take another copy")
    flat = torch.from_numpy(np.unpackbits(np.frombuffer(bits, np.uint8), count=sum(counts)).astype(bool))
    parts = flat.split(counts)
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
