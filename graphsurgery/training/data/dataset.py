"""Data in three parts, how they are split, and whether a network's output fits them."""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from graphsurgery.errors import SpecError
from graphsurgery.network.outputs.naming import one_output
from graphsurgery.network.preprocessing import Preprocessing


@dataclass(frozen=True)
class Data:
    """Examples `(input, target)` in three splits.

    Attributes:
        train: what training sees.
        validation: what selection and early stopping see.
        test: what only the final table sees.
        input_shape: of one input, without the batch; images are `[channel, height, width]`.
        classes: how many; None for regression.
        name: the spec it was loaded from.
        preprocessing: what images became inputs by; None where they are none, or a function made them.
        parts: what the splits are where a function left some out, in words; empty where it gave all.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    input_shape: tuple[int, ...]
    classes: int | None
    name: str
    preprocessing: Preprocessing | None = None
    parts: str = ""


def check_output_fits(data: Data, output: object, target: Tensor, *, name: str = "the model") -> None:
    """Check that an output `[batch, ...]` has one number per class, or for regression the shape of the target.

    Raises:
        SpecError: it has not.
    """
    output = one_output(output, name)
    found = list(output.shape[1:])
    if data.classes is None:
        if output.shape != target.shape:
            raise SpecError(
                f"{name}: gives outputs {found}, {data.name} has targets {list(target.shape[1:])}; build it so"
            )
    elif found != [data.classes]:
        raise SpecError(
            f"{name}: gives outputs {found}, {data.name} has {data.classes} classes; "
            f"build it with ?classes={data.classes} (?num_classes={data.classes} in torchvision and timm)"
        )


def split(dataset: Dataset[Any], sizes: list[int], *, seed: int) -> list[Dataset[Any]]:
    """Disjoint random parts of `sizes` examples; parts of a TensorDataset are TensorDatasets."""
    order = torch.randperm(size_of(dataset), generator=torch.Generator().manual_seed(seed))
    return [_select(dataset, part) for part in order[: sum(sizes)].split(sizes)]


def _select(dataset: Dataset[Any], indices: Tensor) -> Dataset[Any]:
    if type(dataset) is TensorDataset:
        return TensorDataset(*(tensor[indices] for tensor in dataset.tensors))
    return Subset(dataset, indices.tolist())


def size_of(dataset: Dataset[Any]) -> int:
    """How many examples there are."""
    return len(cast(Sized, dataset))


SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
"""The splits, and what they are called, in small letters or capitals."""


def split_folder(root: Path, name: str) -> Path | None:
    """The folder of a split, by any of its names; None where there is none.

    Raises:
        SpecError: there are several.
    """
    found = sorted(folder for folder in root.iterdir() if folder.is_dir() and folder.name.lower() in SPLITS[name])
    if len(found) > 1:
        raise SpecError(
            f"{root}: has {' and '.join(folder.name for folder in found)}, two folders of one part; give one"
        )
    return found[0] if found else None


UNLABELLED = -1
"""The class of an example that has none; where labels are numbers, those are not numbers."""


def no_label(like: Tensor) -> Tensor:
    """The marks of examples without labels, in the shape of some labels, and of their kind."""
    if like.is_floating_point():
        return torch.full_like(like, math.nan)
    return torch.full_like(like, UNLABELLED, dtype=torch.int64)
