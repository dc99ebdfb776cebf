"""The table of data: what a data spec may name, and its options. Loaders are in `sources`; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphsurgery.models.sources.listing import Listing


@dataclass(frozen=True)
class DataEntry:
    """A kind of data.

    Attributes:
        form: how it is spelled.
        what: what it is.
        inputs: what a network gets of it.
        options: the names of its options, beside `train` and `validation`.
        folder: whether a folder may stand behind the colon, `must`, `may` or `never`.
        holds: what lies in that folder, as the end of `imagefolder:DIR with ...`.
    """

    form: str
    what: str
    inputs: str
    options: tuple[str, ...] = ("split_seed",)
    folder: str = "may"
    holds: str = ""


@dataclass(frozen=True)
class DataOption:
    """An option of a data spec.

    Attributes:
        examples: how it is spelled.
        what: what it says.
        default: what holds without it.
        images: whether only folders of images have it.
    """

    examples: tuple[str, ...]
    what: str
    default: str
    images: bool = True


OPTIONS: Mapping[str, DataOption] = {
    "train": DataOption(("train=5000",), "so many training examples, by --seed", "all", images=False),
    "validation": DataOption(
        ("validation=500",), "so many examples to validate, the same for every seed", "all", images=False
    ),
    "split_seed": DataOption(("split_seed=1",), "another draw of the validation part", "0", images=False),
    "size": DataOption(("size=64", "size=64x48"), "pixels of an input", "as the network says, else 224"),
    "resize": DataOption(
        ("resize=256",),
        "the shorter side before the middle is cut out",
        "8/7 of the size; images of the size stay as they are",
    ),
    "crop": DataOption(("crop=false",), "no middle: resized as a whole", "true"),
    "mean": DataOption(
        ("mean=0.5", "mean=0.4,0.5,0.6", "mean=none"),
        "what is taken off, of pixels from 0 to 1",
        "as the network says, else ImageNet's",
    ),
    "std": DataOption(("std=0.5", "std=none"), "what they are divided by", "the same"),
    "augment": DataOption(
        ("augment=crop", "augment=flip", "augment=none"),
        "training images: random parts and flips, flips, nothing",
        "crop",
    ),
}
"""What stands behind the `?` of a data spec, with `&` between options."""

DATA: Mapping[str, DataEntry] = {
    "digits": DataEntry("digits", "scikit-learn's 1,797 handwritten digits, 10 classes", "1x8x8", folder="never"),
    "sine": DataEntry("sine", "a sine with noise, to regress", "1", folder="never"),
    "fashion-mnist": DataEntry(
        "fashion-mnist[:DIR]", "70,000 pictures of clothes, 10 classes; downloaded without DIR", "1x28x28"
    ),
    "cifar10": DataEntry("cifar10[:DIR]", "60,000 photographs, 10 classes; downloaded without DIR", "3x32x32"),
    "cifar100": DataEntry("cifar100[:DIR]", "60,000 photographs, 100 classes; downloaded without DIR", "3x32x32"),
    "imagefolder": DataEntry(
        "imagefolder:DIR",
        "images in DIR/train/CLASS/, with DIR/val and DIR/test where there are some; or in DIR/CLASS/",
        "3x224x224, or `?size=`",
        ("split_seed", *(name for name, option in OPTIONS.items() if option.images)),
        folder="must",
        holds="DIR/train/CLASS/ images",
    ),
    "arrays": DataEntry(
        "arrays:DIR",
        "`.npz` files, each with an array of inputs and one of labels (labels, targets or y), in DIR/train/, "
        "DIR/val/ and DIR/test/, or together",
        "as the arrays are",
        folder="must",
        holds=".npz files",
    ),
}
"""The named data, in the order in which they are listed."""

FUNCTION = DataEntry(
    "file.py:function",
    "what your function returns: a Data, or train, validation and test as a tuple, a list or a dict, each a data set, "
    "a DataLoader or a pair of tensors",
    "as it returns them",
    ("?option=value goes to the function",),
)


def data_listing() -> Listing:
    """The kinds of data."""
    entries = [*DATA.values(), FUNCTION]
    return Listing(("data", "what it is", "inputs"), [(f"`{e.form}`", e.what, e.inputs) for e in entries])


def option_listing() -> Listing:
    """The options of data specs."""
    rows = []
    for option in OPTIONS.values():
        first, *others = option.examples
        spelled = ", ".join(f"`{text}`" for text in (first, *others))
        rows.append((spelled, f"{option.what}{' (imagefolder)' if option.images else ''}", option.default))
    return Listing(("option", "what it says", "without it"), rows)
