"""Examples in `.npz` files: an array for each input of a network, or one input with its labels."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from graphsurgery.errors import SpecError, one_line
from graphsurgery.training.data.classes import class_count
from graphsurgery.training.data.dataset import Data, split, split_folder
from graphsurgery.training.data.several_inputs import PackedInputs

LABELS = ("label", "labels", "target", "targets", "y")
"""What an array of labels may be called."""
Arrays = Mapping[str, np.ndarray[Any, Any]]


def read_arrays(path: Path) -> Arrays:
    """The arrays of a file by name.

    Raises:
        SpecError: it cannot be read, or holds what is no numbers.
    """
    try:
        with path.open("rb") as file:  # which numpy leaves open where it is no archive
            content = np.load(file, allow_pickle=False)
            found = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise SpecError(f"{path}: cannot be read as arrays ({one_line(error, 100)})") from error
    for name, array in found.items():
        if array.dtype.kind not in "fiub":
            raise SpecError(f"{path}: array {name} is of {array.dtype}, expected numbers")
    return found


def read_vectors(paths: Sequence[Path], inputs: PackedInputs) -> Tensor:
    """The examples `[examples, numbers]` of files that have an array for each input: one example, or a stack of them.

    Raises:
        SpecError: an array is missing, has another shape, or unlike numbers of examples stand in a file.
    """
    return torch.cat([inputs.packed(_stacks(path, inputs)) for path in paths])


def _stacks(path: Path, inputs: PackedInputs) -> list[Tensor]:
    """The arrays of one file, each `[examples, ...]`, in the order of the inputs."""
    arrays = read_arrays(path)
    known = {re.sub(r"\W", "_", name): array for name, array in arrays.items()}
    if len(inputs.inputs) == len(known) == 1:
        known = {inputs.inputs[0].name: next(iter(known.values()))}
    found, counts = [], {}
    for name, shape in inputs.wanted().items():
        if name not in known:
            raise SpecError(
                f"{path}: has no array {name}, found {', '.join(arrays) or 'none'}; give one for each input: "
                f"{', '.join(inputs.wanted())}"
            )
        array = known[name][None] if known[name].shape == shape else known[name]
        if array.shape[1:] != shape or not array.ndim:
            raise SpecError(
                f"{path}: array {name} is {list(known[name].shape)}, expected {list(shape)}, or a stack of such"
            )
        counts[name] = len(array)
        found.append(torch.from_numpy(array))
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise SpecError(f"{path}: has {words}; expected as many examples of each")
    return found


def arrays(folder: str | None, split_seed: int = 0) -> Data:
    """Labelled examples in the `.npz` files of `DIR/train`, with `DIR/val` and `DIR/test`; see `split_folder`.

    A file has an array of inputs `[n, ...]`, by any name, and one of labels `[n, ...]`, called `labels`, `targets` or
    `y`: classes where they are whole numbers. A missing validation or test part is a tenth split off the training part;
    without `DIR/train`, `DIR` itself is the training part. Inputs are taken as they are.
    """
    if folder is None or not Path(folder).is_dir():
        raise SpecError(f"{folder or 'DIR'}: is not a folder; give arrays:DIR with .npz files")
    root = Path(folder)
    train = _labelled(split_folder(root, "train") or root)
    parts: dict[str, TensorDataset] = {}
    for key in ("validation", "test"):
        place = split_folder(root, key)
        if place is not None:
            parts[key] = _labelled(place)
            continue
        tenth = max(1, len(train) // 10)
        rest, held = split(train, [len(train) - tenth, tenth], seed=split_seed)
        train, parts[key] = rest, held  # type: ignore[assignment]
    whole = {"train": train, **parts}
    regression = train.tensors[1].is_floating_point()
    if any(part.tensors[1].is_floating_point() != regression for part in whole.values()):
        raise SpecError(f"{folder}: some of its labels are whole numbers and some are not; make them alike")
    classes = None if regression else class_count(folder, whole)
    return Data(train, parts["validation"], parts["test"], tuple(train.tensors[0].shape[1:]), classes, "")


def _labelled(folder: Path) -> TensorDataset:
    """The examples of one folder."""
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise SpecError(f"{folder}: has no .npz files; expected some with inputs and labels")
    pairs = [_pair(path) for path in paths]
    shapes = {(tuple(x.shape[1:]), tuple(y.shape[1:]), y.dtype) for x, y in pairs}
    if len(shapes) > 1:
        raise SpecError(f"{folder}: its files have inputs and labels of several shapes or kinds; make them alike")
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    if len(x) < 3:
        raise SpecError(f"{folder}: has {len(x)} examples, expected at least 3")
    return TensorDataset(x, y)


def _pair(path: Path) -> tuple[Tensor, Tensor]:
    """The inputs and the labels of one file."""
    found = read_arrays(path)
    labels = [name for name in found if name.lower() in LABELS]
    inputs = [name for name in found if name not in labels]
    if len(labels) != 1 or len(inputs) != 1:
        raise SpecError(
            f"{path}: has the arrays {', '.join(found) or 'none'}; expected one of inputs, and one called labels, "
            "targets or y; a network with several inputs is recovered by --calib, without labels"
        )
    x, y = torch.from_numpy(found[inputs[0]]), torch.from_numpy(found[labels[0]])
    if not x.dim() or not y.dim() or len(x) != len(y):
        raise SpecError(f"{path}: has inputs {list(x.shape)} and labels {list(y.shape)}; expected [n, ...] of both")
    return x.float() if x.is_floating_point() else x, y.float() if y.is_floating_point() else y.long()
