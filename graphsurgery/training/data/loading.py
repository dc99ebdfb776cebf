"""Data by spec: training, validation and test examples, and whether a model fits them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from graphsurgery.errors import SpecError, near_names
from graphsurgery.models.spec_text import Value, anchored, is_function_spec, load_function, parse_spec
from graphsurgery.models.specs import fitted
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.preprocessing import Preprocessing
from graphsurgery.training.data.batches import Examples
from graphsurgery.training.data.dataset import Data, check_output_fits, size_of, split
from graphsurgery.training.devices import device_of


def load_data(spec: str, *, seed: int = 0, preprocessing: Preprocessing | None = None) -> Data:
    """The data that `spec` names, split and normalised by the training split's mean and standard deviation.

    Args:
        spec: `digits`, `sine`, `fashion-mnist[:DIR]`, `cifar10[:DIR]`, `cifar100[:DIR]`, `imagefolder:DIR`,
            `arrays:DIR` (`.npz` files of inputs and labels), or `path/file.py:function`, which executes that file; its
            function returns a `Data` or three data sets.
            Options: `?train=5000` takes so many training examples of a seeded shuffle, `?split_seed=1` (default 0)
            splits validation from training. Of `imagefolder` images also `size=64` (or 64x48), the pixels of an input
            (default 224); `resize=256`, the shorter side before the middle is cut out (default 8/7 of the size, and
            nothing where the size fits); `crop=false` to resize them as a whole; `mean=0.5` and `std=0.5`, or three
            with commas between them, or none (default ImageNet's); `augment=crop`, `flip` or `none`.
        seed: draws the shuffle of `?train=`. Never the splits: models from unlike seeds share them.
        preprocessing: what images become inputs by where the spec leaves it out.

    Raises:
        SpecError: an unknown name or option, a missing folder, a damaged file, or a count that the data do not have.
    """
    parsed = parse_spec(spec)
    options = dict(parsed.options)
    train_size = options.pop("train", None)
    if is_function_spec(parsed.name):
        data = _from_function(spec, parsed.name, options)
    else:
        data = _from_source(spec, parsed.name, options, preprocessing)
    if train_size is None:
        return data
    return replace(data, train=_some_of(spec, data.train, train_size, seed))


def takes_images(spec: str) -> bool:
    """Whether the data are files of images, which a `Preprocessing` makes inputs of."""
    return spec.partition("?")[0].partition(":")[0] == "imagefolder"


def recorded(data: Data) -> dict[str, Any]:
    """What a lineage remembers of data: where they are found again, and what images became inputs by."""
    images = {} if data.preprocessing is None else {"preprocessing": data.preprocessing.as_dict()}
    return {"data": anchored(data.name), **images}


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


def _some_of(spec: str, dataset: Dataset[Any], count: Value, seed: int) -> Dataset[Any]:
    size = size_of(dataset)
    if not isinstance(count, int) or not 1 <= count <= size:
        raise SpecError(f"{spec}: train={count} examples, the data have {size}; give a number from 1 to {size}")
    return split(dataset, [count], seed=seed)[0]


def _from_source(spec: str, name: str, options: dict[str, Value], preprocessing: Preprocessing | None) -> Data:
    from graphsurgery.training.data.sources import SOURCES

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
    split_seed = options.pop("split_seed", 0)
    if type(split_seed) is not int or split_seed < 0:
        raise SpecError(f"data spec {spec!r}: split_seed={split_seed} is not a whole number from 0; give one")
    try:
        images = {}
        if takes_images(spec):
            images["preprocessing"] = (preprocessing or Preprocessing()).with_options(source, options)
        return replace(load(folder or None, split_seed=split_seed, **images), name=spec)
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
