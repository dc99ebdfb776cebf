"""Weights from `.pt` files of other programs."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from graphsurgery.errors import CheckpointError, one_line, require_file

_DEEPEST, _MOST = 8, 6
"""How deep weights are looked for, and how many sets of them a message names."""
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

    def listed(self) -> str:
        """The sets of weights and the modules, for a message."""
        counts = {path: sum(self.set_of(name) == path for name in self.tensors) for path in self.sets}
        parts = [f"{path or 'the file itself'} ({counts[path]} tensors)" for path in self.sets]
        parts += [f"{path or 'the file itself'} ({type(module).__name__})" for path, module in self.modules.items()]
        more = len(parts) - _MOST
        return ", ".join(parts[:_MOST]) + (f" and {more} more" if more > 0 else "")

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


def other_kind(path: Path) -> str:
    """What a file is that holds a program of torch and no weights by name, and what to do; empty of any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return ""
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        kind, weights = "a TorchScript archive", f"torch.jit.load({str(path)!r}).state_dict()"
    elif names & {"archive_format", "serialized_exported_program.json"}:
        kind, weights = "a program of torch.export", f"torch.export.load({str(path)!r}).state_dict"
    else:
        return ""
    return (
        f"is {kind}, which has no Python forward to follow; trace the module that it was made of, or save its weights "
        f"by torch.save({weights}, 'weights.pt') and give --arch SPEC"
    )


def _opened(path: Path, trust_pickle: bool) -> Any:
    require_file(path, "weights saved by torch.save")
    if kind := other_kind(path):
        raise CheckpointError(f"{path}: {kind}")
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


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in the format safetensors.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    require_file(path, "tensors")
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError, RuntimeError) as cause:
        raise CheckpointError(
            f"{path}: is no safetensors file, or is damaged ({one_line(cause)}); take another copy"
        ) from cause
