"""Weights from `.pt` files of other programs."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.errors import CheckpointError, one_line

_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_PREFIXES = ("module.", "_orig_mod.")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_weights(path: Path | str, *, trust_pickle: bool = False) -> dict[str, Tensor] | nn.Module:
    """The parameters and buffers in a file of `torch.save`, by name, or the module that it pickles.

    A state_dict is found inside `state_dict`, `model`, `module` and the like, and loses the prefixes that
    `DataParallel` and `torch.compile` put in front of all names.

    Args:
        path: the file.
        trust_pickle: open files that hold pickled objects too. That executes code from the file.

    Returns:
        The tensors by name, on the CPU; or an `nn.Module`, only with `trust_pickle`.

    Raises:
        CheckpointError: the file is missing, damaged, holds no weights, or holds pickled objects untrusted.
    """
    content = _opened(Path(path), trust_pickle)
    while isinstance(content, Mapping):
        nested = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping | nn.Module)), None)
        if nested is None:
            break
        content = nested
    if isinstance(content, nn.Module):
        return content
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {name: tensor for name, tensor in named if isinstance(name, str) and isinstance(tensor, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path}: holds {type(content).__name__} without tensors, expected a state_dict; save model.state_dict()"
        )
    return _unprefixed(tensors)


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


def _unprefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _unprefixed({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def _opened(path: Path, trust_pickle: bool) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights saved by torch.save")
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
