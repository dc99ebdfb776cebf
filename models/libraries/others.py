"""Networks of ultralytics (`ultralytics:yolo11n.yaml`, or a trusted `.pt`) and of segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.errors import CheckpointError, SpecError, near_names
from graphsurgery.models.libraries.library import Library, Trust, dtype_of, imported, made
from graphsurgery.models.sources.downloads import without_retries
from graphsurgery.models.spec_text import Value

_YOLO_SIDE, _SEGMENTATION_SIDE = 640, 224


def _yolo(name: str, options: Mapping[str, Value], trust: Trust) -> nn.Module:
    """A network that a `.yaml` describes, with random weights, or that of a pickled `.pt`."""
    spec = f"ultralytics:{name}"
    if name.endswith(".pt"):
        if options:
            raise SpecError(f"{spec}: takes no options; a .yaml does")
        if not Path(name).is_file():
            raise CheckpointError(f"{spec}: there is no file {name}; ultralytics would download it, this does not")
        if not trust.pickle:
            raise CheckpointError(
                f"{name}: is pickled, and executes code when it is opened; allow it with --trust-pickle"
            )
    elif not name.endswith((".yaml", ".yml")):
        raise SpecError(f"{spec}: expected a .yaml of ultralytics, such as ultralytics:yolo11n.yaml, or a .pt")
    ultralytics = imported("ultralytics", "ultralytics", spec)
    tasks = imported("ultralytics.nn.tasks", "ultralytics", spec)
    if name.endswith(".pt"):
        return made(spec, lambda: ultralytics.YOLO(name).model).float()

    def described() -> Any:
        config = tasks.yaml_model_load(name)
        kinds = {
            "detect": tasks.DetectionModel,
            "segment": tasks.SegmentationModel,
            "classify": tasks.ClassificationModel,
            "pose": tasks.PoseModel,
            "obb": tasks.OBBModel,
        }
        if unknown := [key for key in options if key not in ("nc", "ch")]:
            raise SpecError(f"{spec}: has no option {unknown[0]!r}; accepted: nc, ch")
        task = tasks.guess_model_task(config)
        if task not in kinds:
            raise SpecError(f"{spec}: is for the task {task}; {near_names(task, kinds)}")
        return kinds[task](config, verbose=False, **options)

    return made(spec, described)


def _yolo_shape(module: nn.Module) -> tuple[int, ...]:
    config: Any = getattr(module, "yaml", {})
    return (int(config.get("channels", config.get("ch", 3))), _YOLO_SIDE, _YOLO_SIDE)


def _yolo_better(name: str, options: Mapping[str, Value]) -> str | None:  # noqa: ARG001
    return None if name.endswith(".pt") else f"a trained file: ultralytics:{Path(name).stem}.pt with --trust-pickle"


def _smp(name: str, options: Mapping[str, Value], trust: Trust) -> nn.Module:  # noqa: ARG001
    """`smp:Unet?encoder_name=resnet18`; without `encoder_weights`, nothing is downloaded."""
    spec = f"smp:{name}"
    library = imported("segmentation_models_pytorch", "smp", spec)
    known = [n for n, kind in vars(library).items() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    if name not in known:
        raise SpecError(f"{spec}: segmentation_models_pytorch has no network {name!r}; {near_names(name, known)}")
    with without_retries() if options.get("encoder_weights") else nullcontext():
        return made(spec, lambda: getattr(library, name)(**{"encoder_weights": None, **options}))


def _smp_shape(module: nn.Module) -> tuple[int, ...]:
    weight = next(module.parameters())
    return (int(weight.shape[1]), _SEGMENTATION_SIDE, _SEGMENTATION_SIDE)


def _smp_better(name: str, options: Mapping[str, Value]) -> str | None:
    weights = options.get("encoder_weights")
    return None if weights is not None else f"an encoder with weights: smp:{name}?encoder_weights=imagenet"


def _image(shape: tuple[int, ...], module: nn.Module) -> dict[str, Tensor]:
    return {"": torch.zeros(2, *shape, dtype=dtype_of(module))}


ULTRALYTICS = Library("ultralytics", _yolo, lambda m: _image(_yolo_shape(m), m), _yolo_shape, _yolo_better)
SEGMENTATION = Library("smp", _smp, lambda m: _image(_smp_shape(m), m), _smp_shape, _smp_better)
