"""The table of data sources: scikit-learn digits, the sine task, Fashion-MNIST, CIFAR,
and folders of images; IDX files are read here.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from graphsurgery.errors import SpecError
from graphsurgery.models.sources.downloads import require_reachable
from graphsurgery.network.preprocessing import Preprocessing, read_image
from graphsurgery.training.data.array_files import arrays
from graphsurgery.training.data.catalogue import DATA
from graphsurgery.training.data.dataset import SPLITS, Data, split, split_folder

_FASHION_FILES = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "test-images": "t10k-images-idx3-ubyte",
    "test-labels": "t10k-labels-idx1-ubyte",
}
# Where Debian's package dataset-fashion-mnist puts the files.
_FASHION_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"),)


def digits(folder: str | None, split_seed: int = 0) -> Data:
    """scikit-learn's 1797 handwritten digits `[1, 8, 8]`: 1150 to train, 287 to validate, 360 to test."""
    _no_folder("digits", folder)
    pixels, labels = _digits()
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)
    whole = TensorDataset(images, torch.tensor(labels, dtype=torch.int64))
    # The test images stay the same whatever the split seed.
    rest, test = split(whole, [1437, 360], seed=0)
    train, validation = split(rest, [1150, 287], seed=split_seed)
    return _normalised(train, validation, test, "digits")


@cache
def _digits() -> tuple[Any, Any]:
    """The pixels and the labels of scikit-learn's digits, which it reads from text each time."""
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def sine(folder: str | None, split_seed: int = 0) -> Data:
    """Regression `[1]` to `[1]`: sin(10 pi x) with noise of standard deviation 0.2, x uniform in [-1, 1].

    10,000 noisy points to train and 1,000 to validate; the test is the noiseless sine on an even grid of 2,001 points.

    Source: Pašen & Boža, "Merging of neural networks" (arXiv:2204.09973), sine task.
    """
    _no_folder("sine", folder)
    generator = torch.Generator().manual_seed(split_seed)
    x = 2 * torch.rand(11_000, 1, generator=generator) - 1
    y = torch.sin(10 * math.pi * x) + 0.2 * torch.randn(11_000, 1, generator=generator)
    grid = torch.linspace(-1, 1, 2001).unsqueeze(1)
    return Data(
        train=TensorDataset(x[:10_000], y[:10_000]),
        validation=TensorDataset(x[10_000:], y[10_000:]),
        test=TensorDataset(grid, torch.sin(10 * math.pi * grid)),
        input_shape=(1,),
        classes=None,
        name="sine",
    )


def fashion_mnist(folder: str | None, split_seed: int = 0) -> Data:
    """Fashion-MNIST `[1, 28, 28]`: 54,000 to train, 6,000 to validate, 10,000 to test; IDX files, gzipped or not."""
    place = Path(folder) if folder else _fashion_folder()
    parts = {key: read_idx(find_idx(place, name)) for key, name in _FASHION_FILES.items()}
    whole = _images_and_labels(place, parts["train-images"], parts["train-labels"])
    test = _images_and_labels(place, parts["test-images"], parts["test-labels"])
    train, validation = _split_off_a_tenth(whole, split_seed)
    return _normalised(train, validation, test, "fashion-mnist")


def cifar10(folder: str | None, split_seed: int = 0) -> Data:
    """CIFAR-10 `[3, 32, 32]`, not augmented: 45,000 to train, 5,000 to validate, 10,000 to test."""
    return _cifar("CIFAR10", folder, split_seed)


def cifar100(folder: str | None, split_seed: int = 0) -> Data:
    """CIFAR-100, else as `cifar10`."""
    return _cifar("CIFAR100", folder, split_seed)


def image_folder(folder: str | None, split_seed: int = 0, preprocessing: Preprocessing | None = None) -> Data:
    """Images in `DIR/train/CLASS/`, with `DIR/val` and `DIR/test` where they exist; see `split_folder`.

    A missing validation or test part is a tenth split off the training part; without `DIR/train`, `DIR/CLASS/` itself
    is the training part. Inputs are `[3, height, width]`, made by `preprocessing`; training images are augmented.
    """
    from torchvision.datasets import ImageFolder

    if folder is None or not Path(folder).is_dir():
        raise SpecError(f"{folder or 'DIR'}: is not a folder; give imagefolder:DIR with DIR/train/CLASS/ images")
    root = Path(folder)
    made = preprocessing or Preprocessing()
    augmented = made if made.augment == "none" else made.augmented

    def images(part: Path, transform: Callable[..., Any]) -> Any:
        try:
            return ImageFolder(str(part), transform, loader=read_image)
        except FileNotFoundError as error:
            raise SpecError(
                f"{part}: has no class folders with images; give imagefolder:DIR with DIR/CLASS/"
            ) from error

    places = _image_folders(root)
    train: Dataset[Any] = images(places["train"], augmented)
    still = images(places["train"], made)
    classes = still.classes
    order = torch.randperm(len(still), generator=torch.Generator().manual_seed(split_seed))
    tenth = max(1, len(order) // 10)
    parts: dict[str, Dataset[Any]] = {}
    for key in ("validation", "test"):
        if key not in places:
            parts[key], order = Subset(still, order[:tenth].tolist()), order[tenth:]
            continue
        part = parts[key] = images(places[key], made)
        if part.classes != classes:
            raise SpecError(
                f"{places[key]}: has classes {part.classes[:3]}…, train has {classes[:3]}…; make them the same"
            )
    shape = (3, made.height, made.width)
    return Data(Subset(train, order.tolist()), parts["validation"], parts["test"], shape, len(classes), "", made)


def _image_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits that there are; where none is for training, it is this one, with those of classes."""
    places = {name: place for name in SPLITS if (place := split_folder(root, name)) is not None}
    if "train" in places:
        return places
    for place in places.values():  # a class may be called so
        if any(part.is_dir() for part in place.iterdir()):
            raise SpecError(f"{root}: has {place.name} with folders in it, and no train; name the training part so")
    return {"train": root}


_LOADERS: Mapping[str, Callable[..., Data]] = {
    "arrays": arrays,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "imagefolder": image_folder,
    "sine": sine,
}
SOURCES: Mapping[str, tuple[Callable[..., Data], tuple[str, ...]]] = {
    name: (_LOADERS[name], entry.options) for name, entry in DATA.items()
}
"""Of each name in the catalogue what loads it, and its options."""


def cache_folder() -> Path:
    """Where downloads go: `$GRAPHSURGERY_DATA`, else `~/.cache/graphsurgery`."""
    return Path(os.environ.get("GRAPHSURGERY_DATA") or Path.home() / ".cache" / "graphsurgery")


def _cifar(name: str, folder: str | None, split_seed: int) -> Data:
    from torchvision import datasets

    kind = getattr(datasets, name)
    place = Path(folder) if folder else cache_folder()
    if folder and not place.is_dir():
        raise SpecError(f"{folder}: is not a folder; give the one that holds {kind.base_folder}")
    if folder is None and not (place / kind.base_folder).is_dir():
        require_reachable(kind.url, name, f"unpack {kind.filename} in {place}, or in the DIR of {name.lower()}:DIR")
    try:
        parts = [kind(str(place), train=train, download=folder is None) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise SpecError(
            f"{place}: has no whole copy of {name} ({error}); unpack {kind.filename} there, as {kind.base_folder}"
        ) from error
    whole, test = (
        TensorDataset(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).float().div(255),
            torch.tensor(part.targets, dtype=torch.int64),
        )
        for part in parts
    )
    train, validation = _split_off_a_tenth(whole, split_seed)
    return _normalised(train, validation, test, name.lower())


def _fashion_folder() -> Path:
    for place in _FASHION_FOLDERS:
        if place.is_dir():
            return place
    from torchvision.datasets import FashionMNIST

    if not (cache_folder() / "FashionMNIST").is_dir():
        require_reachable(FashionMNIST.mirrors[0], "Fashion-MNIST", "give fashion-mnist:DIR with its four IDX files")
    try:
        return Path(FashionMNIST(str(cache_folder()), download=True).raw_folder)
    except (RuntimeError, OSError) as error:
        raise SpecError(f"cannot be downloaded ({error}); give fashion-mnist:DIR with its four IDX files") from error


def _images_and_labels(place: Path, images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise SpecError(
            f"{place}: has images {list(images.shape)} and labels {list(labels.shape)}, expected [n, height, width] "
            "and [n]; get the files again"
        )
    pixels = torch.from_numpy(images).unsqueeze(1).float().div(255)
    return TensorDataset(pixels, torch.from_numpy(labels).to(torch.int64))


def _split_off_a_tenth(whole: TensorDataset, seed: int) -> list[Dataset[Any]]:
    tenth = max(1, len(whole) // 10)
    return split(whole, [len(whole) - tenth, tenth], seed=seed)


def _normalised(train: Any, validation: Any, test: Any, name: str) -> Data:
    """Zero mean and unit standard deviation per channel, by the training split."""
    images: Tensor = train.tensors[0]
    mean = images.mean((0, 2, 3), keepdim=True)
    std = images.std((0, 2, 3), keepdim=True)
    splits = {"train": train, "validation": validation, "test": test}
    parts: dict[str, Any] = {
        key: TensorDataset((part.tensors[0] - mean) / std, part.tensors[1]) for key, part in splits.items()
    }
    classes = 1 + int(max(part.tensors[1].max() for part in splits.values()))
    return Data(**parts, input_shape=tuple(images.shape[1:]), classes=classes, name=name)


def _no_folder(name: str, folder: str | None) -> None:
    if folder is not None:
        raise SpecError(f"{name} takes no folder, found {folder!r}; write {name}")


_UNSIGNED_BYTE = 8


def find_idx(folder: Path, name: str) -> Path:
    """The file `name` or `name.gz` in `folder`, or in its `FashionMNIST/raw`.

    Raises:
        SpecError: the folder or the file is missing.
    """
    if not folder.is_dir():
        raise SpecError(f"{folder}: is not a folder; give the one that holds {name}.gz")
    for place in (folder, folder / "FashionMNIST" / "raw"):
        for candidate in (place / f"{name}.gz", place / name):
            if candidate.is_file():
                return candidate
    raise SpecError(f"{folder}: has no {name} or {name}.gz; give the folder that holds the four IDX files")


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file.

    Raises:
        SpecError: it is not such a file, or it is cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise SpecError(f"{path}: cannot be read ({error}); get the file again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE:
        raise SpecError(f"{path}: is not an IDX file of bytes; get the file again")
    axes = content[3]
    start = 4 + 4 * axes
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    expected = math.prod(shape)
    if len(content) - start != expected:
        raise SpecError(
            f"{path}: has {len(content) - start} bytes of data, its header says {expected}; get the file again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
