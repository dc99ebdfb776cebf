"""Examples without labels: a folder of images or arrays, or the inputs of a data spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from graphsurgery.errors import SpecError, one_line
from graphsurgery.training.data import Data, split
from graphsurgery.training.imitation import UNLABELLED
from graphsurgery.training.transfer import unlabelled

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FEWEST, _IN_MEMORY = 4, 2**30
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Calibration:
    """Examples `(input, no label)` in two parts.

    Attributes:
        train: what recovery learns from.
        held: what agreement is measured on.
        name: where they come from.
    """

    train: Dataset[Any]
    held: Dataset[Any]
    name: str


def calibration_of(data: Data) -> Calibration:
    """The training inputs of data, and its validation inputs to measure on; the labels are dropped."""
    return Calibration(unlabelled(data.train), unlabelled(data.validation), data.name)


def read_calibration(
    folder: Path | str, shape: Sequence[int], dtype: torch.dtype = torch.float32, *, seed: int = 0
) -> Calibration:
    """The examples in a folder and the folders in it; a tenth of them is held out.

    Arrays (`.npy`) are taken as they are, each one example or a stack of them. Images are brought to the network's size
    (the shorter side to 8/7 of it, then the middle), and from 0 to 1; in colour they are normalised by the mean and
    deviation of ImageNet, in grey by their own. A network that takes other inputs is given arrays.

    Args:
        folder: where they lie.
        shape: of one input of the network, without the batch.
        dtype: of the input.
        seed: draws what is held out.

    Raises:
        SpecError: there are too few examples, images and arrays are mixed, or a file cannot be read or has another
            shape.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SpecError(f"{root}: is not a folder; give --calib one with images or .npy arrays, or a data spec")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    arrays = [path for path in files if path.suffix.lower() == ".npy"]
    images = [path for path in files if path.suffix.lower() in IMAGES]
    if not arrays and not images:
        raise SpecError(f"{root}: has no images and no .npy arrays; give a folder that has, or a data spec")
    if arrays and images:
        raise SpecError(f"{root}: has {len(images)} images and {len(arrays)} arrays; give a folder with one kind")
    whole = _arrays(arrays, tuple(shape), dtype) if arrays else _images(images, tuple(shape))
    count = len(whole)  # type: ignore[arg-type]
    if count < _FEWEST:
        raise SpecError(f"{root}: has {count} examples, expected at least {_FEWEST}")
    tenth = max(1, count // 10)
    train, held = split(whole, [count - tenth, tenth], seed=seed)
    return Calibration(train, held, str(root))


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


def _images(paths: Sequence[Path], shape: tuple[int, ...]) -> Dataset[Any]:
    """All images, in memory where there is room for them."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise SpecError(
            f"{paths[0].parent}: holds images, the network takes inputs {list(shape)}; give .npy arrays of that shape"
        )
    found = _Images(paths, shape)
    if len(found) * 4 * int(np.prod(shape)) > _IN_MEMORY:
        return found
    x = torch.stack([found[number][0] for number in range(len(found))])
    return _together(x if shape[0] == 3 else (x - x.mean()) / x.std().clamp_min(1e-6))


def _together(x: Tensor) -> TensorDataset:
    return TensorDataset(x, torch.full((len(x),), UNLABELLED))


class _Images(Dataset[Any]):
    """Images that are read when they are asked for."""

    def __init__(self, paths: Sequence[Path], shape: tuple[int, ...]) -> None:
        self.paths, self.shape = paths, shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image, ImageOps

        channels, height, width = self.shape
        path = self.paths[index]
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB" if channels == 3 else "L")
        except (OSError, ValueError, SyntaxError) as error:
            raise SpecError(f"{path}: cannot be read as an image ({one_line(error, 100)})") from error
        if image.size != (width, height):
            large = ImageOps.fit(image, (round(width * 8 / 7), round(height * 8 / 7)), Image.Resampling.BILINEAR)
            left, top = (large.width - width) // 2, (large.height - height) // 2
            image = large.crop((left, top, left + width, top + height))
        x = torch.from_numpy(np.array(image, dtype=np.float32) / 255).reshape(height, width, channels).permute(2, 0, 1)
        if channels == 3:
            x = (x - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]
        return x.contiguous(), torch.tensor(UNLABELLED)
