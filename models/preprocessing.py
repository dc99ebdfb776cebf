"""How the images have to be made that a network takes, as far as the network says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from graphsurgery.checkpoint.files import is_checkpoint, read_lineage
from graphsurgery.models.spec_text import is_function_spec, parse_spec
from graphsurgery.models.specs import input_shape, names_file
from graphsurgery.network.preprocessing import Preprocessing, find


def preprocessing_of(source: str, arch: str | None = None) -> Preprocessing | None:
    """What a network says of the images it takes; None where it says nothing.

    Torchvision's weights have `transforms()`, timm's models a `pretrained_cfg`, our checkpoints and exports what their
    training used. A spec that says nothing but a size gives that.

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
    if source == "torchvision" and isinstance(parsed.options.get("weights"), str):
        return _of_torchvision(name, str(parsed.options["weights"]))
    return _of_timm(name) if source == "timm" else None


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
