"""How the images have to be made that a network takes, as far as the network says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from graphsurgery.checkpoint.files import is_checkpoint, read_lineage
from graphsurgery.errors import SpecError, one_line
from graphsurgery.models.spec_text import is_function_spec, parse_spec
from graphsurgery.models.specs import input_shape, names_file
from graphsurgery.network.preprocessing import Preprocessing, find


def preprocessing_of(source: str, arch: str | None = None) -> Preprocessing | None:
    """What a network says of the images it takes; None where it says nothing.

    Torchvision's weights have `transforms()`, timm's models a `pretrained_cfg`, folders of Hugging Face a
    `preprocessor_config.json`, our checkpoints and exports what their training used. A spec that says nothing but a
    size gives that.

    Args:
        source: a file, or a model spec.
        arch: the spec, or the checkpoint, that a file of weights alone belongs to.

    Raises:
        SurgeryError: the file is damaged, or the spec names nothing.
    """
    if source.endswith(".onnx"):
        return find(_onnx_lineage(source), source)
    if names_file(source) and not is_checkpoint(source):
        if arch is None:
            return None
        source = arch
    if names_file(source):
        lineage, shape = read_lineage(source)
        return find(lineage, source) or _sized(shape, source)
    return of_spec(source) or _sized(input_shape(source), source)


def of_spec(spec: str) -> Preprocessing | None:
    """What the weights of a model spec say; None where they say nothing."""
    parsed = parse_spec(spec)
    source, _, name = parsed.name.partition("/")
    if is_function_spec(parsed.name):
        return None
    if parsed.name.startswith(_FOLDERS):
        return _of_folder(Path(parsed.name.removeprefix(_FOLDERS)))
    if source == "torchvision" and isinstance(parsed.options.get("weights"), str):
        return _of_torchvision(name, str(parsed.options["weights"]))
    return _of_timm(name) if source == "timm" else None


_FOLDERS = "hf:"
_PROCESSOR = "preprocessor_config.json"
_RESAMPLINGS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""The numbers that Pillow has for ways to resize, which the folders have too."""
_WHOLE = 384
"""From this size on, folders with a `crop_pct` bring an image to the size as a whole."""


def _of_folder(folder: Path) -> Preprocessing | None:
    """What the image processor of a folder of Hugging Face says; None where it has none, or pads to many sizes."""
    path = folder / _PROCESSOR
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read as JSON ({one_line(error, 100)})") from error
    if not isinstance(fields, Mapping):
        raise SpecError(f"{path}: holds no fields")
    size = _pixels(fields.get("size"))
    cut = _pixels(fields.get("crop_size")) if fields.get("do_center_crop") else None
    if size is None or fields.get("do_pad"):
        return None
    (height, width), resize, crop = cut or size, min(size), cut is not None
    share = fields.get("crop_pct")
    if share and min(size) < _WHOLE:
        resize, crop = int(min(size) / share), True
    mean, std = _of_unit(fields)
    return Preprocessing(
        height, width, resize, crop=crop, mean=mean, std=std,
        interpolation=_RESAMPLINGS.get(fields.get("resample", 2), "bilinear"),
        source=f"{_PROCESSOR} in {folder}",
    )  # fmt: skip


def _pixels(size: Any) -> tuple[int, int] | None:
    """Height and width of a size in one of the ways in which folders write it; None where it is none."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    return pair if len(pair) == 2 and all(isinstance(n, int) and n > 0 for n in pair) else None


def _of_unit(fields: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The mean and the deviation for pixels from 0 to 1, where a folder may have them for other scales."""
    scale = 255 * fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else 255.0
    mean, std = fields.get("image_mean"), fields.get("image_std")
    if not fields.get("do_normalize", True) or mean is None or std is None:
        if abs(scale - 1) < 1e-6:
            return None, None
        mean, std = (0.0,), (1.0,)
    mean, std = ([value] if isinstance(value, int | float) else value for value in (mean, std))
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _of_torchvision(name: str, weights: str) -> Preprocessing | None:
    from torchvision.models import get_model_weights
    from torchvision.transforms._presets import ImageClassification

    try:
        transforms = get_model_weights(name)[weights.rpartition(".")[2]].transforms()
    except (KeyError, ValueError):  # building the network says what is wrong
        return None
    if not isinstance(transforms, ImageClassification):
        return None
    height, width = transforms.crop_size[0], transforms.crop_size[-1]
    return Preprocessing(
        height,
        width,
        transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
        source=f"the weights {weights} of torchvision/{name}",
    )


def _of_timm(name: str) -> Preprocessing | None:
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    if config is None or len(config.input_size) != 3:
        return None
    _, height, width = config.input_size
    interpolation = config.interpolation if config.interpolation in ("bilinear", "bicubic", "nearest") else "bicubic"
    return Preprocessing(
        height,
        width,
        int(min(height, width) / config.crop_pct),
        crop=config.crop_mode == "center",
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation=interpolation,
        source=f"the pretrained_cfg of timm/{name}",
    )


def _sized(shape: tuple[int, ...] | None, source: str) -> Preprocessing | None:
    """The usual one in the size that a network was made for."""
    if shape is None or len(shape) != 3:
        return None
    usual = Preprocessing.of_size(shape[1], shape[2])
    return Preprocessing.of_size(shape[1], shape[2], source=f"{usual.source}, in the size of {source}")


def _onnx_lineage(path: str) -> list[dict[str, Any]]:
    """How a file that we exported came about; empty for others."""
    from graphsurgery.onnx.files.model_file import lineage_in
    from graphsurgery.onnx.files.storage import open_model

    try:
        return lineage_in(open_model(Path(path))[0])
    except (OSError, ValueError, DecodeError):  # opening the file says what is wrong
        return []
