"""Data by spec: training, validation and test examples, and whether a model fits them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from graphsurgery.errors import SpecError, near_names
from graphsurgery.models.sources.user_files import require_function
from graphsurgery.models.spec_text import Value, anchored, is_function_spec, parse_spec
from graphsurgery.models.specs import fitted
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.preprocessing import Preprocessing
from graphsurgery.training.data.batches import Examples
from graphsurgery.training.data.dataset import Data, check_output_fits, size_of, split
from graphsurgery.training.data.functions import data_of_function
from graphsurgery.training.devices import device_of


def load_data(spec: str, *, seed: int = 0, preprocessing: Preprocessing | None = None) -> Data:
    """The data that `spec` names, split and normalised by the training split's mean and standard deviation.

    Args:
        spec: `digits`, `sine`, `fashion-mnist[:DIR]`, `cifar10[:DIR]`, `cifar100[:DIR]`, `imagefolder:DIR`,
            `arrays:DIR` (`.npz` files of inputs and labels), or `path/file.py:function`, which executes that file; what
            its function may return is said in `functions`.
            Options: `?train=5000` takes so many training examples of a seeded shuffle, `?validation=500` so many to
            validate (a function gives its own), `?split_seed=1` (default 0) splits validation from training. Of
            `imagefolder` images also `size=64` (or 64x48), the pixels of an input (default 224); `resize=256`, the
            shorter side before the middle is cut out (default 8/7 of the size, and nothing where the size fits);
            `crop=false` to resize them as a whole; `mean=0.5` and `std=0.5`, or three with commas between them, or
            none (default ImageNet's); `augment=crop`, `flip` or `none`.
        seed: draws the shuffle of `?train=`. Never the splits: models from unlike seeds share them and what they are
            validated on.
        preprocessing: what images become inputs by where the spec leaves it out.

    Raises:
        SpecError: an unknown name or option, a missing folder, a damaged file, or a count that the data do not have.
    """
    require_function(spec)
    parsed = parse_spec(spec)
    options = dict(parsed.options)
    is_function = is_function_spec(parsed.name)
    parts = ("train",) if is_function else ("train", "validation")
    counts = {part: options.pop(part) for part in parts if part in options}
    if is_function:
        data = data_of_function(spec, parsed.name, options)
    else:
        data = _from_source(spec, parsed.name, options, preprocessing)
    if "train" in counts:
        data = replace(data, train=_some_of(spec, data, "train", counts["train"], seed))
    if "validation" in counts:
        data = replace(data, validation=_some_of(spec, data, "validation", counts["validation"], 0))
    return data


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


def _some_of(spec: str, data: Data, part: str, count: Value, seed: int) -> Dataset[Any]:
    dataset: Dataset[Any] = getattr(data, part)
    size = size_of(dataset)
    if type(count) is not int or not 1 <= count <= size:
        raise SpecError(f"{spec}: {part}={count} examples, the data have {size}; give a number from 1 to {size}")
    return split(dataset, [count], seed=seed)[0]


def _from_source(spec: str, name: str, options: dict[str, Value], preprocessing: Preprocessing | None) -> Data:
    from graphsurgery.training.data.sources import SOURCES

    source, _, folder = name.partition(":")
    if source not in SOURCES and Path(name).is_dir():
        raise SpecError(f"data spec {spec!r}: is a folder; give imagefolder:{name} for one of images")
    if source not in SOURCES and Path(name).is_file():
        raise SpecError(f"data spec {spec!r}: is a file; give file.py:function, whose function reads it")
    if source not in SOURCES:
        raise SpecError(
            f"data spec {spec!r}: unknown data {source!r}; {near_names(source, [*SOURCES, 'file.py:function'])}"
        )
    load, accepted = SOURCES[source]
    if unknown := sorted(set(options) - set(accepted)):
        known = ", ".join((*accepted, "train", "validation"))
        raise SpecError(f"data spec {spec!r}: has no option {unknown[0]!r}; accepted: {known}")
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
