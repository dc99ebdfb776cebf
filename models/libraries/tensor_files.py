"""The tensors of a folder of safetensors, in one file or in shards with an index, each read when it is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import CheckpointError, SurgeryError, one_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; nothing of it is in memory.

    Attributes:
        name: in the file.
        file: where it lies.
        shape: of the whole tensor.
        dtype: as it is stored.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Its rows from `start` to `stop`, with memory of their own; by default all of it.

        Raises:
            CheckpointError: the file is damaged, or has gone.
        """
        try:
            # Opened for each read: what is mapped counts as memory of the process until the file is closed.
            with safe_open(self.file, framework="pt") as opened:
                if not self.shape:
                    return opened.get_tensor(self.name).clone()
                return opened.get_slice(self.name)[start : self.shape[0] if stop is None else stop].clone()
        except (SafetensorError, OSError, ValueError) as cause:
            raise CheckpointError(f"{self.file}: {self.name} cannot be read: {one_line(cause)}") from cause


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by name, file by file, in the order of the files' names.

    Raises:
        CheckpointError: there are none, or only pickled ones; shards are missing or damaged, or are not those of the
            index.
    """
    places = _index(folder)
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(places.values())) if places is not None else [WEIGHTS]:
        tensors = tensors_in(folder / file)
        found |= {name: tensor for name, tensor in tensors.items() if places is None or places.get(name) == file}
    lost = [name for name in places or () if name not in found]
    if lost:
        raise CheckpointError(
            f"{folder / (places or {})[lost[0]]}: has no {lost[0]}, which the {INDEX} says is there ({len(lost)} of "
            f"{len(places or ())} tensors are missing); take another copy"
        )
    return found


def _index(folder: Path) -> dict[str, str] | None:
    """The file of each tensor; None where one file has all."""
    if not (folder / INDEX).is_file():
        if (folder / WEIGHTS).is_file():
            return None
        raise CheckpointError(f"{folder}: {_without_weights(folder)}")
    places = read_json(folder, INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{folder / INDEX}: is damaged: it has no weight_map; take another copy")
    shards = sorted(set(places.values()))
    if foreign := [shard for shard in shards if Path(shard).name != shard]:
        raise CheckpointError(f"{folder / INDEX}: is damaged: {foreign[0]} is no file of this folder")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing or not shards:
        which = f": {missing[0]}" if missing else ""
        raise CheckpointError(f"{folder}: {len(missing)} of {len(shards)} shards of its {INDEX} are missing{which}")
    return places


def _without_weights(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
    held = f"only pickled weights ({pickled[0]}), which are not read" if pickled else "no weights"
    named = str((read_json(folder, "config.json").get("architectures") or ["CLASS"])[0])
    advice = "save it again with safetensors" if pickled else f"random ones are drawn by hf:{named}"
    return f"has {held}; expected {WEIGHTS} or shards with {INDEX}; {advice}"


def tensors_in(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    found = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (not a mapping)
                part = opened.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise CheckpointError(f"{file}: {name} is stored as {part.get_dtype()}, which is not supported")
                found[name] = StoredTensor(name, file, tuple(part.get_shape()), _DTYPES[part.get_dtype()])
    except (SafetensorError, OSError, ValueError) as cause:
        raise CheckpointError(f"{file}: is damaged: {one_line(cause)}; take another copy") from cause
    return found


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder of Hugging Face.

    Raises:
        CheckpointError: there is no such folder or file, or it is damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"hf:{folder}: there is no such folder, nor a class of that name; a network of the hub has to be"
            " downloaded first"
        )
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise CheckpointError(f"{folder}: has no {name}; expected a folder as save_pretrained writes it") from cause
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"{folder / name}: is damaged: {one_line(cause)}") from cause
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / name}: is damaged: holds no object")
    return found


def write_file(tensors: dict[str, Tensor], file: Path) -> None:
    """Write tensors as safetensors, whole or not at all.

    Raises:
        SurgeryError: the operating system refuses to write.
    """
    with atomic_write(file) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as cause:  # it tells of a full disk in its own words
            raise SurgeryError(f"{file}: cannot be written ({one_line(cause)}); free space") from cause
