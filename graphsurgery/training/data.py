"""Data by spec: training, validation and test examples, and whether a model fits them."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from graphsurgery.errors import SpecError
from graphsurgery.models.specs import fitted
from graphsurgery.spec_text import Value, is_function_spec, load_function, near_names, parse_spec
from graphsurgery.training.batches import Examples
from graphsurgery.training.devices import device_of
from graphsurgery.training.evaluation import evaluating


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
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    input_shape: tuple[int, ...]
    classes: int | None
    name: str


def load_data(spec: str, *, seed: int = 0) -> Data:
    """The data that `spec` names, split and normalised by the training split's mean and standard deviation.

    Args:
        spec: `digits`, `sine`, `fashion-mnist[:DIR]`, `cifar10[:DIR]`, `cifar100[:DIR]`, `imagefolder:DIR`, or
            `path/file.py:function`, which executes that file; its function returns a `Data` or three data sets.
            Options: `?train=5000` takes so many training examples of a seeded shuffle, `?split_seed=1` (default 0)
            splits validation from training, `?size=64` is the side of `imagefolder` images in pixels (default 224).
        seed: draws the shuffle of `?train=`. Never the splits: models from unlike seeds share them.

    Raises:
        SpecError: an unknown name or option, a missing folder, a damaged file, or a count that the data do not have.
    """
    parsed = parse_spec(spec)
    options = dict(parsed.options)
    train_size = options.pop("train", None)
    if is_function_spec(parsed.name):
        data = _from_function(spec, parsed.name, options)
    else:
        data = _from_source(spec, parsed.name, options)
    if train_size is None:
        return data
    return replace(data, train=_some_of(spec, data.train, train_size, seed))


def check_fits(data: Data, module: nn.Module, *, name: str = "the model") -> None:
    """Check that `module` takes the data's inputs and gives an output per class; one forward pass of two examples.

    Args:
        data: its training examples are used.
        module: run in eval mode without gradients; it is left as it was.
        name: what the error calls the module.

    Raises:
        SpecError: the input shape or the number of classes does not fit.
    """
    examples = Examples(data.train, device_of(module))
    first = torch.arange(2) % len(examples)
    x, target = next(examples.batches([first]))[:2]
    shape = list(data.input_shape)
    try:
        with evaluating(module), torch.no_grad():
            output = module(x)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        like = fitted(name, shape, data.classes, replacing=True)
        usual = "build it for this shape, for example with ?in_channels= or ?image_size="
        advice = usual if like == name else f"give {like}"
        raise SpecError(f"{name}: does not take the inputs {shape} of {data.name} ({reason}); {advice}") from error
    check_output_fits(data, output, target, name=name)


def check_output_fits(data: Data, output: object, target: Tensor, *, name: str = "the model") -> None:
    """Check that an output `[batch, ...]` has one number per class, or for regression the shape of the target.

    Raises:
        SpecError: it has not.
    """
    if not isinstance(output, Tensor):
        raise SpecError(f"{name}: returns a {type(output).__name__}, expected one tensor; use a model with one output")
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
    order = torch.randperm(_size(dataset), generator=torch.Generator().manual_seed(seed))
    return [_select(dataset, part) for part in order[: sum(sizes)].split(sizes)]


def _select(dataset: Dataset[Any], indices: Tensor) -> Dataset[Any]:
    if type(dataset) is TensorDataset:
        return TensorDataset(*(tensor[indices] for tensor in dataset.tensors))
    return Subset(dataset, indices.tolist())


def _size(dataset: Dataset[Any]) -> int:
    return len(cast(Sized, dataset))


def _some_of(spec: str, dataset: Dataset[Any], count: Value, seed: int) -> Dataset[Any]:
    size = _size(dataset)
    if not isinstance(count, int) or not 1 <= count <= size:
        raise SpecError(f"{spec}: train={count} examples, the data have {size}; give a number from 1 to {size}")
    return split(dataset, [count], seed=seed)[0]


def _from_source(spec: str, name: str, options: dict[str, Value]) -> Data:
    from graphsurgery.training.sources import SOURCES

    source, _, folder = name.partition(":")
    if source not in SOURCES:
        raise SpecError(
            f"data spec {spec!r}: unknown data {source!r}; {near_names(source, [*SOURCES, 'file.py:function'])}"
        )
    load, accepted = SOURCES[source]
    if unknown := sorted(set(options) - set(accepted)):
        raise SpecError(
            f"data spec {spec!r}: has no option {unknown[0]!r}; accepted: {', '.join((*accepted, 'train'))}"
        )
    for option in accepted:
        value = options.get(option, 0)
        if type(value) is not int or value < 0:
            raise SpecError(f"data spec {spec!r}: {option}={value} is not a whole number from 0; give one")
    try:
        return replace(load(folder or None, **options), name=spec)
    except SpecError as error:
        raise SpecError(f"data spec {spec!r}: {error}") from error


def _from_function(spec: str, name: str, options: dict[str, Value]) -> Data:
    function, _ = load_function(name)
    result = _call(spec, function, options)
    if isinstance(result, Data):
        return result
    if not isinstance(result, tuple) or len(result) != 3:
        raise SpecError(f"{spec}: returned {type(result).__name__}, expected a Data or (train, validation, test)")
    train, validation, test = result
    if not len(train):
        raise SpecError(f"{spec}: returned no training examples; give at least one")
    first_input, first_target = train[0][:2]
    classes = None
    if not torch.as_tensor(first_target).is_floating_point():
        classes = 1 + max(int(target) for part in result for target in _targets(part))
    return Data(train, validation, test, tuple(first_input.shape), classes, spec)


def _targets(dataset: Any) -> Any:
    if type(dataset) is TensorDataset:
        return dataset.tensors[1]
    return [dataset[index][1] for index in range(len(dataset))]


def _call(spec: str, function: Callable[..., Any], options: dict[str, Value]) -> Any:
    try:
        return function(**options)
    except SpecError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise SpecError(
            f"{spec}: fails ({type(error).__name__}: {reason}); repair the function or its options"
        ) from error
