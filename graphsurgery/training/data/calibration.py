"""Examples without labels: a folder of images or arrays, or the inputs of a data spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from graphsurgery.errors import SpecError, one_line
from graphsurgery.graph import InputSpec
from graphsurgery.models.spec_text import Value, parse_spec
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.preprocessing import OPTIONS, Preprocessing, read_image
from graphsurgery.training.data.array_files import read_vectors
from graphsurgery.training.data.batches import Examples
from graphsurgery.training.data.dataset import UNLABELLED, Data, size_of, split
from graphsurgery.training.data.several_inputs import PackedInputs
from graphsurgery.training.data.transfer import unlabelled
from graphsurgery.training.devices import device_of

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FEWEST, _IN_MEMORY = 4, 2**30
_LOOKED_AT = 16
"""Examples that say how far outputs vary."""


@dataclass(frozen=True)
class Calibration:
    """Examples `(input, no label)` in two parts.

    Attributes:
        train: what recovery learns from.
        held: what agreement is measured on.
        name: where they come from.
        preprocessing: what images became inputs by; None where they are none.
        packed: the inputs of the network, where an example is all of them as one vector; None where it is one input.
    """

    train: Dataset[Any]
    held: Dataset[Any]
    name: str
    preprocessing: Preprocessing | None = None
    packed: PackedInputs | None = None

    def run(self, module: nn.Module, x: Tensor) -> Any:
        """What a network gives for a batch of examples."""
        return module(x) if self.packed is None else self.packed.run(module, x)

    def first_outputs(self, module: nn.Module) -> tuple[Any, int]:
        """What a network gives for the first examples, enough to say how far outputs vary; and for how many."""
        examples = Examples(self.train, device_of(module))
        count = max(2, min(_LOOKED_AT, len(examples)))
        x = next(examples.batches([torch.arange(count) % len(examples)]))[0]
        with evaluating(module), torch.no_grad():
            return self.run(module, x), count


def calibration_of(data: Data) -> Calibration:
    """The training inputs of data, and its validation inputs to measure on; the labels are dropped."""
    return Calibration(unlabelled(data.train), unlabelled(data.validation), data.name, data.preprocessing)


def read_examples(
    folder: Path | str, inputs: Sequence[InputSpec], *, seed: int = 0, preprocessing: Preprocessing | None = None
) -> Calibration:
    """The examples in a folder for a network of these inputs; a tenth of them is held out.

    Files with an array for each input (`.npz`) are examples of any network; see `read_vectors`. Else it takes one;
    see `read_calibration`.

    Raises:
        SpecError: as these, or there are several inputs and no such files.
    """
    root, _ = folder_and_options(folder)
    files = sorted(path for path in root.rglob("*.npz") if path.is_file()) if root.is_dir() else []
    if not files and len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise SpecError(
            f"{root}: has no .npz files; the network takes {len(inputs)} inputs, give an array for each: {names}"
        )
    if not files:
        first = inputs[0]
        return read_calibration(folder, first.shape[1:], first.dtype, seed=seed, preprocessing=preprocessing)
    packed = PackedInputs(inputs)
    vectors = read_vectors(files, packed)
    if len(inputs) == 1 and inputs[0].batched:
        return _held_out(_together(packed.unpacked(vectors)[0]), root, seed)
    return replace(_held_out(_together(vectors), root, seed), packed=packed)


def read_calibration(
    folder: Path | str,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
) -> Calibration:
    """The examples of one input in a folder and the folders in it; a tenth of them is held out.

    Arrays (`.npy`) are taken as they are, each one example or a stack of them. Images are brought to the network's size
    and normalised as the network says or the options do, else by the mean and deviation of ImageNet, in grey by their
    own. A network that takes other inputs is given arrays.

    Args:
        folder: where they lie; for images with the options of `imagefolder`, as in `images/?mean=0.5&std=0.5`.
        shape: of one input of the network, without the batch.
        dtype: of the input.
        seed: draws what is held out.
        preprocessing: what the network says of its images.

    Raises:
        SpecError: there are too few examples, images and arrays are mixed, or a file cannot be read or has another
            shape.
    """
    root, options = folder_and_options(folder)
    if not root.is_dir():
        raise SpecError(f"{root}: is not a folder; give --calib one with images or .npy arrays, or a data spec")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    arrays = [path for path in files if path.suffix.lower() == ".npy"]
    images = [path for path in files if path.suffix.lower() in IMAGES]
    if not arrays and not images:
        raise SpecError(f"{root}: has no images and no .npy arrays; give a folder that has, or a data spec")
    if arrays and images:
        raise SpecError(f"{root}: has {len(images)} images and {len(arrays)} arrays; give a folder with one kind")
    made = None
    if arrays:
        whole = _arrays(arrays, tuple(shape), dtype)
    else:
        made, own = _made(images[0].parent, tuple(shape), preprocessing, options)
        whole = _images(images, shape[0], made, own=own)
    return replace(_held_out(whole, root, seed), preprocessing=made)


def _held_out(whole: Dataset[Any], root: Path, seed: int) -> Calibration:
    """Examples, a tenth of which is held out."""
    count = size_of(whole)
    if count < _FEWEST:
        raise SpecError(f"{root}: has {count} examples, expected at least {_FEWEST}")
    tenth = max(1, count // 10)
    train, held = split(whole, [count - tenth, tenth], seed=seed)
    return Calibration(train, held, str(root))


def folder_and_options(folder: Path | str) -> tuple[Path, dict[str, Value]]:
    """The folder that a text names, and what it says of the images in it.

    Raises:
        SpecError: what stands behind the `?` is no option of images.
    """
    if Path(folder).is_dir() or "?" not in str(folder):
        return Path(folder), {}
    parsed = parse_spec(str(folder))
    if unknown := sorted(set(parsed.options) - set(OPTIONS)):
        raise SpecError(f"{folder}: has no option {unknown[0]!r}; accepted: {', '.join(OPTIONS)}")
    return Path(parsed.name), parsed.options


def _made(
    place: Path, shape: tuple[int, ...], said: Preprocessing | None, options: Mapping[str, Value]
) -> tuple[Preprocessing, bool]:
    """What makes inputs of images for a network of this input, and whether their own mean and deviation normalise."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise SpecError(
            f"{place}: holds images, the network takes inputs {list(shape)}; give .npy arrays of that shape"
        )
    channels, height, width = shape
    made = (said or Preprocessing.of_size(height, width)).resized(height, width)
    own = channels == 1 and not {"mean", "std"} & set(options) and (said is None or len(said.mean or ()) > 1)
    if channels == 1 and len(made.mean or ()) > 1:
        source = "the images, by their own mean and deviation" if own else made.source
        made = replace(made, mean=None, std=None, source=source)
    made = made.with_options(str(place), options)
    if (made.height, made.width) != (height, width):
        raise SpecError(f"{place}: size={made.height}x{made.width}, the network takes {height}x{width}; leave size out")
    return made, own


def _arrays(paths: Sequence[Path], shape: tuple[int, ...], dtype: torch.dtype) -> Dataset[Any]:
    """All arrays, in memory."""
    parts = []
    for path in paths:
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SpecError(f"{path}: cannot be read as an array ({one_line(error, 100)})") from error
        array = array[None] if array.shape == shape else array
        if array.shape[1:] != shape or array.dtype.kind not in "fiub":
            raise SpecError(
                f"{path}: holds {list(array.shape)} of {array.dtype}, expected numbers in the shape {list(shape)} of "
                "one input, or a stack of such"
            )
        parts.append(torch.from_numpy(array).to(dtype))
    return _together(torch.cat(parts))


def _images(paths: Sequence[Path], channels: int, made: Preprocessing, *, own: bool) -> Dataset[Any]:
    """All images, in memory where there is room for them; else their own deviation is that of as many as have room."""
    found = _Images(paths, channels, made)
    room = max(1, _IN_MEMORY // (4 * channels * made.height * made.width))
    if len(found) > room and not own:
        return found
    chosen = torch.linspace(0, len(found) - 1, min(room, len(found))).long().tolist()
    x = torch.stack([found[number][0] for number in chosen])
    if not own:
        return _together(x)
    mean, deviation = x.mean(), x.std().clamp_min(1e-6)
    if len(found) > room:
        return _Images(paths, channels, made, mean, deviation)
    return _together((x - mean) / deviation)


def _together(x: Tensor) -> TensorDataset:
    return TensorDataset(x, torch.full((len(x),), UNLABELLED))


class _Images(Dataset[Any]):
    """Images that are read when they are asked for; a mean and a deviation of all of them normalise what is made."""

    def __init__(
        self,
        paths: Sequence[Path],
        channels: int,
        made: Preprocessing,
        mean: Tensor | float = 0.0,
        deviation: Tensor | float = 1.0,
    ) -> None:
        self.paths, self.channels, self.made = paths, channels, made
        self.mean, self.deviation = mean, deviation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = read_image(self.paths[index], "RGB" if self.channels == 3 else "L")
        return (self.made(image) - self.mean) / self.deviation, torch.tensor(UNLABELLED)
