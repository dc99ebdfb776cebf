"""What becomes of an image before a network sees it: its size, and its mean and deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from graphsurgery.errors import SpecError, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

Value = int | float | bool | str | None

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPTIONS = ("size", "resize", "crop", "mean", "std", "augment")
"""What a data spec may say of images."""

AUGMENTATIONS = ("crop", "flip", "none")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes `[channel, height, width]`.

    An image that has the size is not resized, unless `always`. Any other is resized and, where `crop` says so, its
    middle cut out. Then numbers from 0 to 1 are normalised.

    Attributes:
        height, width: of the input, in pixels.
        resize: the shorter side before the middle is cut out, in pixels; without `crop` it has no meaning.
        crop: whether the middle is cut out; else the image is brought to the size as a whole, whatever its shape.
        always: resize and cut images of the size, too.
        mean, std: of each channel, or one number for all; None normalises nothing.
        interpolation: `bilinear`, `bicubic` or `nearest`.
        augment: what training images get besides: `crop` for a random part of them and flips, `flip`, or `none`.
        source: who says so.
    """

    height: int = 224
    width: int = 224
    resize: int = 256
    crop: bool = True
    always: bool = False
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    std: tuple[float, ...] | None = IMAGENET_STD
    interpolation: str = "bilinear"
    augment: str = "crop"
    source: str = "nobody; these are ImageNet's"

    @classmethod
    def of_size(cls, height: int, width: int, **fields: Any) -> Preprocessing:
        """The usual one at a size: the shorter side to 8/7 of it, then the middle."""
        return cls(height, width, round(min(height, width) * 8 / 7), **fields)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: str) -> Preprocessing:
        """What `as_dict` gave, on somebody's word.

        Raises:
            SpecError: it is something else.
        """
        try:
            found: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
            }
            return replace(cls(**found), source=source)
        except TypeError as error:
            raise SpecError(f"{source}: its preprocessing cannot be read ({error}); give mean, std and size") from error

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form."""
        found = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    def resized(self, height: int, width: int) -> Preprocessing:
        """The same at another size, in proportion."""
        if (height, width) == (self.height, self.width):
            return self
        share = self.resize / min(self.height, self.width)
        return replace(self, height=height, width=width, resize=round(min(height, width) * share))

    def with_options(self, spec: str, options: Mapping[str, Value]) -> Preprocessing:
        """The same but for what a data spec says.

        Raises:
            SpecError: an option has no such value.
        """
        found, said = self, {key: value for key, value in options.items() if key in OPTIONS}
        if "size" in said:
            found = found.resized(*_size(spec, said["size"]))
        if "resize" in said:
            if type(said["resize"]) is not int or not said["resize"] >= min(found.height, found.width):
                raise SpecError(
                    f"{spec}: resize={said['resize']}; give the shorter side before the crop in pixels, at least "
                    f"{min(found.height, found.width)}"
                )
            found = replace(found, resize=said["resize"], always=True)
        if "crop" in said:
            if not isinstance(said["crop"], bool):
                raise SpecError(f"{spec}: crop={said['crop']}; give true to cut out the middle, or false")
            found = replace(found, crop=said["crop"])
        if "mean" in said:
            found = replace(found, mean=_numbers(spec, "mean", said["mean"]))
        if "std" in said:
            found = replace(found, std=_numbers(spec, "std", said["std"]))
        if "augment" in said:
            word = {"True": "crop", "False": "none", "None": "none"}.get(str(said["augment"]), str(said["augment"]))
            if word not in AUGMENTATIONS:
                raise SpecError(f"{spec}: augment={word}; give one of {', '.join(AUGMENTATIONS)}")
            found = replace(found, augment=word)
        if not said:
            return found
        others = set(OPTIONS[:-1]) - set(said)
        rest = f"{', '.join(name for name in OPTIONS if name in others)} from {self.source}"
        return replace(found, source=f"the data spec{f' ({rest})' if others else ''}")

    def __str__(self) -> str:
        cut = f"shorter side to {self.resize}, then the middle" if self.crop else "resized as a whole"
        fitting = "" if self.always else ", as they are where the size fits"
        words = [f"{self.height}x{self.width} ({cut}{fitting}, {self.interpolation})"]
        for name, values in (("mean", self.mean), ("deviation", self.std)):
            words.append(f"no {name}" if values is None else f"{name} {' '.join(f'{value:g}' for value in values)}")
        return f"{', '.join(words)}; says {self.source}"

    def __call__(self, image: Image) -> Tensor:
        """An image as the network sees it, `[channel, height, width]`."""
        return self.normalised(self.shaped(image))

    def shaped(self, image: Image) -> Image:
        """The image in the size of the input."""
        from torchvision.transforms import InterpolationMode, functional

        how = InterpolationMode(self.interpolation)
        if image.size == (self.width, self.height) and not self.always:
            return image
        if not self.crop:
            return functional.resize(image, [self.height, self.width], how)
        size = [self.resize]
        share = max(self.width / image.width, self.height / image.height)
        if share > self.resize / min(image.size):  # the crop is wider than that shorter side lets it be
            size = [max(self.height, round(image.height * share)), max(self.width, round(image.width * share))]
        return functional.center_crop(functional.resize(image, size, how), [self.height, self.width])

    def normalised(self, image: Image) -> Tensor:
        """Numbers from 0 to 1, less the mean, by the deviation."""
        array = np.array(image, dtype=np.float32) / 255
        x = torch.from_numpy(array.reshape(image.height, image.width, -1)).permute(2, 0, 1)
        if self.mean is not None:
            x = x - torch.tensor(self.mean)[:, None, None]
        if self.std is not None:
            x = x / torch.tensor(self.std)[:, None, None]
        return x.contiguous()

    def augmented(self, image: Image) -> Tensor:
        """The same of a training image: a random part of it, and flipped or not, as `augment` says."""
        from torchvision import transforms

        how = transforms.InterpolationMode(self.interpolation)
        if self.augment == "crop":
            image = transforms.RandomResizedCrop([self.height, self.width], interpolation=how)(image)
        else:
            image = self.shaped(image)
        if self.augment != "none":
            image = transforms.RandomHorizontalFlip()(image)
        return self.normalised(image)


def read_image(path: Path | str, mode: str = "RGB") -> Image:
    """The image in a file, in 8 bits: `RGB`, or `L` for grey.

    Raises:
        SpecError: it cannot be read, or its pixels have more bits, of which only what lies below 256 would be left.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            if opened.mode[0] not in "IF":
                return opened.convert(mode)
            deep = opened.mode
    except (OSError, ValueError, SyntaxError) as error:
        raise SpecError(f"{path}: cannot be read as an image ({one_line(error, 100)})") from error
    raise SpecError(f"{path}: has pixels of more than 8 bits ({deep}); give images of 8 bits, or arrays")


def find(lineage: Sequence[Mapping[str, Any]], source: str) -> Preprocessing | None:
    """What the last record of a lineage that knows says of images; of several parents the first that knows."""
    for record in reversed(lineage):
        if isinstance(record.get("preprocessing"), Mapping):
            return Preprocessing.from_dict(record["preprocessing"], source)
        for parent in record.get("teachers", ()):
            if isinstance(parent, list | tuple) and (found := find(parent, source)) is not None:
                return found
    return None


def _size(spec: str, value: Value) -> tuple[int, int]:
    sides = str(value).split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise SpecError(f"{spec}: size={value} pixels; give a side of 1 or more, or HEIGHTxWIDTH")
    return int(sides[0]), int(sides[-1])


def _numbers(spec: str, key: str, value: Value) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        found = tuple(float(part) for part in str(value).split(","))
    except ValueError:
        found = ()
    if len(found) not in (1, 3) or isinstance(value, bool) or (key == "std" and not all(part > 0 for part in found)):
        least = " above 0" if key == "std" else ""
        raise SpecError(
            f"{spec}: {key}={value}; give one number{least} or three with commas between them, for pixels from 0 to 1, "
            "or none"
        )
    return found
