"""How many classes data have, without making inputs of their images where the data set says it otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from graphsurgery.errors import SpecError
from graphsurgery.progress import phase
from graphsurgery.training.data.dataset import UNLABELLED, size_of

_LISTS = ("targets", "labels", "samples", "imgs")
"""Attributes in which data sets of torchvision and others keep the labels of all examples."""


def class_count(spec: str, parts: Mapping[str, Dataset[Any]]) -> int:
    """The number of classes of some splits: as many as they name, or one more than the highest label.

    Labels are taken from tensors, from `targets`, `labels` or `samples`, and names from `classes`; else every example
    is looked at.

    Raises:
        SpecError: a label is no number from 0.
    """
    named = max(len(_names(part)) for part in parts.values())
    highest = UNLABELLED
    for key, part in parts.items():
        labels = _listed(part)
        numbers = _looked_at(f"{spec}: {key}", part) if labels is None else labels
        found = list({int(number) for number in numbers})
        if not found or min(found) < UNLABELLED:
            raise SpecError(f"{spec}: {key} has the label {min(found, default=None)}; labels are numbers from 0")
        highest = max(highest, *found)
    return max(named, highest + 1)


def number_of(label: Any) -> int | None:
    """The number that a label is; None for what is none."""
    if isinstance(label, bool | int | np.integer | np.bool_):
        return int(label)
    if isinstance(label, float | np.floating):
        return 0 if np.isnan(label) else int(label)
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0 and not torch.as_tensor(label).is_floating_point():
        return int(label)
    return None


def _names(dataset: Any) -> Sequence[Any]:
    """The names of the classes, where the data set or the one behind it says them."""
    if isinstance(dataset, Subset):
        return _names(dataset.dataset)
    found = getattr(dataset, "classes", ())
    return found if isinstance(found, list | tuple) else ()


def _listed(dataset: Any) -> Iterable[Any] | None:
    """The labels of all examples, where the data set has them beside the inputs; None where they would differ.

    A list is believed where it says the same as the first and the last example.
    """
    if type(dataset) is TensorDataset:
        return dataset.tensors[1].unique().tolist()
    if isinstance(dataset, Subset):
        whole = _listed_in_order(dataset.dataset)
        found = None if whole is None else [whole[index] for index in dataset.indices]
    elif isinstance(dataset, ConcatDataset):
        parts = [_listed(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    else:
        found = _listed_in_order(dataset)
    if found is None or len(found) != size_of(dataset):
        return None
    agrees = all(number_of(dataset[place][1]) == found[place] for place in {0, len(found) - 1})
    return found if agrees else None


def _listed_in_order(dataset: Any) -> list[int] | None:
    """The labels of all examples of one data set; None where it transforms them, or has no such list."""
    if isinstance(dataset, Subset):
        whole = _listed_in_order(dataset.dataset)
        return None if whole is None else [whole[index] for index in dataset.indices]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if type(dataset) is TensorDataset:
        return dataset.tensors[1].tolist()
    for name in _LISTS:
        found = getattr(dataset, name, None)
        if found is None or len(found) != size_of(dataset):
            continue
        if name in ("samples", "imgs"):
            found = [pair[1] for pair in found if isinstance(pair, tuple | list) and len(pair) == 2]
        numbers = [number_of(label) for label in found]
        if None not in numbers:
            return [number for number in numbers if number is not None]
    return None


def _looked_at(where: str, dataset: Any) -> Iterable[int]:
    """The label of every example, which makes every input."""
    with phase(f"looking for the classes of {where}", size_of(dataset)) as at:
        for index in range(size_of(dataset)):
            found = number_of(dataset[index][1])
            if found is None:
                raise SpecError(f"{where} has a label at {index} that is no number; give the number of the class")
            yield found
            at.step()
