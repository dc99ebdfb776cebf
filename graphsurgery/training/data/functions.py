"""Data from a function of the user: what it may return, and how many classes that has.

It returns a `Data`; or splits, as a tuple or a list in the order train, validation, test, or as a dict by these names;
or one split alone. A split is a data set, a `DataLoader`, a list of examples, or a pair `(inputs, targets)` of tensors
or arrays. What is missing is split off the training examples, a tenth for each; two splits in a tuple are train and
test.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from graphsurgery.errors import SpecError, near_names
from graphsurgery.models.sources.user_files import load_function, place_of, told
from graphsurgery.models.spec_text import Value
from graphsurgery.models.specs import called
from graphsurgery.training.data.classes import class_count, number_of
from graphsurgery.training.data.dataset import SPLITS, Data, size_of, split

_EXPECTED = (
    "a Data, or (train, validation, test), or a dict of these, each a data set, a DataLoader, a list of examples or a "
    "pair (inputs, targets) of tensors"
)


def data_of_function(spec: str, name: str, options: Mapping[str, Value]) -> Data:
    """The data that `path/file.py:function` returns; `CLASSES` in the file says how many classes there are.

    Raises:
        SpecError: the function fails, or what it returns are no such data; says where, and what is expected.
    """
    function, module = load_function(name)
    result = called(spec, function, options)
    if isinstance(result, Data):
        return result
    try:
        given = {key: _dataset(f"{spec}: {key}", value) for key, value in _splits(spec, result).items()}
        parts = _completed(spec, given)
        data = _data(spec, parts, getattr(module, "CLASSES", None))
        return replace(data, parts=_in_words(parts, given))
    except SpecError:
        raise
    except Exception as error:
        if place_of(error) is None:
            raise
        raise SpecError(f"{spec}: fails: {told(error)}; repair the file") from error


def _splits(spec: str, result: Any) -> dict[str, Any]:
    """What was returned, by the names of splits."""
    if isinstance(result, Mapping):
        return _named(spec, result)
    if isinstance(result, Dataset | DataLoader) or _is_pair(result):
        return {"train": result}
    if not isinstance(result, tuple | list):
        raise SpecError(f"{spec}: returned {_kind(result)}, expected {_EXPECTED}")
    if not 1 <= len(result) <= 3:
        raise SpecError(f"{spec}: returned {_kind(result)} of {len(result)}, expected {_EXPECTED}")
    names = {1: ("train",), 2: ("train", "test"), 3: tuple(SPLITS)}[len(result)]
    return dict(zip(names, result, strict=True))


def _named(spec: str, result: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in result.items():
        name = next((name for name, others in SPLITS.items() if str(key).lower() in others), None)
        if name is None:
            advice = near_names(str(key), SPLITS)
            raise SpecError(f"{spec}: returned a dict with {key!r}, which is no split; {advice}")
        if name in found:
            raise SpecError(f"{spec}: returned a dict with two splits for {name}; give one")
        found[name] = value
    if "train" not in found:
        raise SpecError(f"{spec}: returned a dict without 'train'; give the training examples by that name")
    return found


def _dataset(where: str, given: Any) -> Dataset[Any]:
    """One split as a data set with a length."""
    if isinstance(given, DataLoader):
        given = _loaded(where, given)
    if isinstance(given, IterableDataset):
        raise SpecError(f"{where} is an IterableDataset, whose examples have no numbers; give one with __getitem__")
    if _is_pair(given):
        return _in_memory(where, *given)
    if isinstance(given, tuple | str | bytes) or not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise SpecError(f"{where} is {_kind(given)}, expected a data set; return {_EXPECTED}")
    if not len(given):
        raise SpecError(f"{where} has no examples; give at least one, or leave it out")
    return given


def _in_memory(where: str, inputs: Any, targets: Any) -> TensorDataset:
    """Inputs and targets as torch takes them: NumPy's usual doubles as floats, labels in 64 bits."""
    if len(inputs) != len(targets):
        raise SpecError(f"{where} has {len(inputs)} inputs and {len(targets)} targets; give one for each")
    if not len(inputs):
        raise SpecError(f"{where} has no examples; give at least one, or leave it out")
    x, y = map(torch.as_tensor, (inputs, targets))
    x, y = (
        part.float() if isinstance(given, np.ndarray) and part.dtype == torch.float64 else part
        for part, given in ((x, inputs), (y, targets))
    )
    return TensorDataset(x, y if y.is_floating_point() else y.long())


def _loaded(where: str, loader: DataLoader[Any]) -> Any:
    """The data set behind a loader, for which batches are made anew: what its sampler takes, as it collates it."""
    sampler, dataset = loader.sampler, loader.dataset
    if isinstance(dataset, IterableDataset):
        return dataset
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        raise SpecError(f"{where} is a DataLoader with a batch_sampler of its own; give its data set")
    if isinstance(sampler, SubsetRandomSampler):
        dataset = Subset(dataset, [int(index) for index in sampler.indices])
    elif not isinstance(sampler, RandomSampler | SequentialSampler):
        raise SpecError(
            f"{where} is a DataLoader whose {type(sampler).__name__} chooses examples, and training shuffles by "
            "itself; give its data set"
        )
    plain = loader.batch_sampler is None or loader.collate_fn is default_collate
    return dataset if plain else _Collated(dataset, loader.collate_fn)


class _Collated(Dataset[Any]):
    """Examples as a loader's `collate_fn` makes them, one by one."""

    def __init__(self, dataset: Dataset[Any], collate: Any) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, index: int) -> Any:
        batch = self.collate([self.dataset[index]])
        return tuple(part[0] for part in batch) if isinstance(batch, tuple | list) else batch

    def __len__(self) -> int:
        return size_of(self.dataset)


def _completed(spec: str, parts: dict[str, Dataset[Any]]) -> dict[str, Dataset[Any]]:
    """With a tenth of the training examples for each split that is missing."""
    missing = [name for name in ("validation", "test") if name not in parts]
    if not missing:
        return parts
    size = size_of(parts["train"])
    tenth = max(1, size // 10)
    rest = size - tenth * len(missing)
    if rest < 1:
        raise SpecError(f"{spec}: has {size} training examples, too few to split {' and '.join(missing)} off them")
    train, *others = split(parts["train"], [rest, *[tenth] * len(missing)], seed=0)
    return {**parts, "train": train, **dict(zip(missing, others, strict=True))}


def _in_words(parts: Mapping[str, Dataset[Any]], given: Collection[str]) -> str:
    """How many examples each split has, where some were not given."""
    if len(given) == len(parts):
        return ""
    sizes = [f"{size_of(parts[name])} {name}{'' if name in given else ' (split off train)'}" for name in SPLITS]
    return ", ".join(sizes)


def _data(spec: str, parts: Mapping[str, Dataset[Any]], classes: Any) -> Data:
    """The splits with what their examples say: the shape of the inputs, and the number of classes."""
    firsts = {key: _example(f"{spec}: {key}", part) for key, part in parts.items()}
    shapes = {key: tuple(x.shape) for key, (x, _) in firsts.items()}
    if unlike := [key for key in shapes if shapes[key] != shapes["train"]]:
        found = f"{list(shapes['train'])}, those of {unlike[0]} {list(shapes[unlike[0]])}"
        raise SpecError(f"{spec}: inputs of train are {found}; make them alike")
    target = firsts["train"][1]
    if torch.as_tensor(target).is_floating_point():
        classes = None
    elif classes is None:
        classes = class_count(spec, parts)
    elif type(classes) is not int or classes < 1:
        raise SpecError(f"{spec}: CLASSES in its file is {classes!r}; give a whole number above 0")
    return Data(parts["train"], parts["validation"], parts["test"], shapes["train"], classes, spec)


def _example(where: str, dataset: Any) -> tuple[Tensor, Any]:
    """The input and the target of the first example."""
    first = dataset[0]
    if not isinstance(first, tuple | list) or len(first) < 2:
        keys = f" with {', '.join(map(repr, first))}" if isinstance(first, Mapping) else ""
        raise SpecError(f"{where} has examples that are {_kind(first)}{keys}; return pairs (input, label)")
    x, target = first[:2]
    if not isinstance(x, Tensor | np.ndarray):
        advice = "; make tensors of them, as transform=torchvision.transforms.ToTensor() does"
        raise SpecError(f"{where} has inputs that are {_kind(x)}{advice}")
    is_array = isinstance(target, Tensor | np.ndarray) and torch.as_tensor(target).is_floating_point()
    if number_of(target) is None and not is_array:
        raise SpecError(
            f"{where} has labels that are {_kind(target)}{_shape(target)}; give the number of the class from 0, or "
            "floats to regress"
        )
    return torch.as_tensor(x), target


def _is_pair(value: Any) -> bool:
    """Whether it is inputs and targets as two tensors or arrays."""
    is_pair = isinstance(value, Sequence) and len(value) == 2
    return is_pair and all(isinstance(part, Tensor | np.ndarray) and part.ndim > 0 for part in value)


def _shape(value: Any) -> str:
    return f" {list(value.shape)}" if isinstance(value, Tensor | np.ndarray) else ""


def _kind(value: Any) -> str:
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
