"""Weights from `.pt` files of other programs."""

from __future__ import annotations

import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.errors import CheckpointError, one_line

_DEEPEST = 8
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True)
class Contents:
    """What a file of `torch.save` holds, by the path of dictionary keys that lead to it, joined by dots.

    Attributes:
        tensors: on the CPU; those of a state_dict have its keys in their path: `state_dict.conv.weight`.
        sets: the dictionaries that hold tensors themselves; the empty path is the file.
        modules: whole modules, only of trusted files.
    """

    tensors: Mapping[str, Tensor]
    sets: tuple[str, ...]
    modules: Mapping[str, nn.Module]

    def below(self, key: str) -> Contents:
        """What lies at or below a path; its paths stay."""

        def inside(path: str) -> bool:
            return path == key or path.startswith(f"{key}.")

        tensors = {name: tensor for name, tensor in self.tensors.items() if inside(name)}
        modules = {name: module for name, module in self.modules.items() if inside(name)}
        sets = tuple(path for path in self.sets if inside(path) or (tensors and key.startswith(f"{path}.")))
        return Contents(tensors, sets, modules)

    def listed(self, most: int = 6) -> str:
        """The sets of weights and the modules, for a message."""
        counts = {path: sum(self.set_of(name) == path for name in self.tensors) for path in self.sets}
        parts = [f"{path or 'the file itself'} ({counts[path]} tensors)" for path in self.sets]
        parts += [f"{path or 'the file itself'} ({type(module).__name__})" for path, module in self.modules.items()]
        more = len(parts) - most
        return ", ".join(parts[:most]) + (f" and {more} more" if more > 0 else "")

    def set_of(self, name: str) -> str:
        """The set that a tensor is in."""
        inside = [path for path in self.sets if not path or name.startswith(f"{path}.")]
        return max(inside, key=len, default="")


def read_contents(path: Path | str, *, trust_pickle: bool = False) -> Contents:
    """All parameters and buffers in a file of `torch.save` or in safetensors, and the modules that it pickles.

    What is not found by names alone, such as the state of an optimizer, is left out.

    Args:
        path: the file.
        trust_pickle: open files that hold pickled objects too. That executes code from the file.

    Raises:
        CheckpointError: the file is missing, damaged, holds no weights, or holds pickled objects untrusted.
    """
    content = _safetensors(Path(path)) if Path(path).suffix == ".safetensors" else _opened(Path(path), trust_pickle)
    tensors: dict[str, Tensor] = {}
    modules: dict[str, nn.Module] = {}
    sets: list[str] = []
    _collect(content, "", tensors, modules, sets)
    if not tensors and not modules:
        raise CheckpointError(
            f"{path}: holds {type(content).__name__} without tensors, expected a state_dict; save model.state_dict()"
        )
    return Contents(tensors, tuple(sets), modules)


def _collect(
    content: Any, path: str, tensors: dict[str, Tensor], modules: dict[str, nn.Module], sets: list[str], deep: int = 0
) -> None:
    """Note what lies at a path and below it; a file may nest dictionaries without end."""
    if isinstance(content, nn.Module):
        modules[path] = content
    if not isinstance(content, Mapping) or deep > _DEEPEST:
        return
    prefix = f"{path}." if path else ""
    named = {f"{prefix}{key}": value for key, value in content.items() if isinstance(key, str)}
    own = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if own:
        sets.append(path)
        tensors |= own
    for below, value in named.items():
        _collect(value, below, tensors, modules, sets, deep + 1)


def _opened(path: Path, trust_pickle: bool) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights saved by torch.save")
    if (kind := _program(path)) is not None:
        raise CheckpointError(
            f"{path}: is {kind}; save the state_dict of the module that it was made of, or export .onnx"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TorchScript archive.*")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as cause:
        found = _GLOBAL.search(str(cause))
        if found is None:
            raise CheckpointError(f"{path}: is not a file of torch.save, or is damaged; take another copy") from cause
        if not trust_pickle:
            raise CheckpointError(
                f"{path}: holds pickled objects ({found[1]}), which execute code when opened; "
                f"save a state_dict and give --arch SPEC, or pass --trust-pickle if you trust its author"
            ) from cause
    except Exception as cause:  # the file may be anything, so anything may be wrong with it
        raise CheckpointError(
            f"{path}: is truncated or not a file of torch.save ({one_line(cause, 80)}); take another copy"
        ) from cause
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as cause:  # trusted code runs here
        raise CheckpointError(
            f"{path}: its pickled objects cannot be made ({one_line(cause)}); have their classes importable"
        ) from cause


def _program(path: Path) -> str | None:
    """What program a file holds, where it is one of torch's; None for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return None
    if "models/model.json" in names or "serialized_exported_program.json" in names:
        return "a program of torch.export, which fixes the shapes of its weights"
    scripted = "constants.pkl" in names and any(name.startswith("code/") for name in names)
    return "a TorchScript archive, which has no Python forward" if scripted else None


_SAFE_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LONGEST_HEADER = 100_000_000


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in the format safetensors: the length of a header, the header as JSON, the bytes.

    Raises:
        CheckpointError: the file is missing or damaged, or has numbers of another type.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected tensors")
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        if length > min(_LONGEST_HEADER, len(content) - 8):
            raise ValueError(f"a header of {length} bytes in a file of {len(content)}")
        header = json.loads(content[8 : 8 + length])
        named = {name: entry for name, entry in header.items() if name != "__metadata__"}
        data = memoryview(content)[8 + length :]
        return {name: _safe_tensor(entry, data) for name, entry in named.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as cause:
        raise CheckpointError(
            f"{path}: is no safetensors file, or is damaged ({one_line(cause)}); take another copy"
        ) from cause


def _safe_tensor(entry: Mapping[str, Any], data: memoryview) -> Tensor:
    dtype, shape = _SAFE_DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
    start, end = entry["data_offsets"]
    if min(shape, default=0) < 0 or not 0 <= start <= end <= len(data):
        raise ValueError(f"a tensor of shape {shape} from {start} to {end} of {len(data)} bytes")
    if math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"{end - start} bytes for a tensor of shape {shape} and {dtype}")
    if start == end:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:  # bytes other than 0 and 1 are no flags
        return torch.frombuffer(bytearray(data[start:end]), dtype=torch.uint8).reshape(shape) != 0
    return torch.frombuffer(bytearray(data[start:end]), dtype=dtype).reshape(shape)
