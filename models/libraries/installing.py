"""An edited network back in the class that it came from, whichever kind that is, and in the files of its library."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from graphsurgery.errors import SurgeryError, UnsupportedError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.models.detection import detectors
from graphsurgery.models.libraries.hugging_face import from_folder, is_folder, quiet
from graphsurgery.models.libraries.library import Trust
from graphsurgery.models.libraries.table import library_of
from graphsurgery.surgery.installing import configuration
from graphsurgery.surgery.installing import install as classes
from graphsurgery.tracing.trace import is_detector


def install(graph: ModelGraph, model: nn.Module) -> nn.Module:
    """A copy of a model, of its own class, that computes what an edited network computes; `model` is not modified.

    Tensors go to their places, layers get their sizes, and integers in attributes (`self.heads`, `self.config.width`)
    the values that the network has in the arguments which they end up in. Both are run on random inputs, in evaluation,
    at other sizes and in training with gradients, and a copy that differs is refused. A detector of torchvision runs
    the edited core in place of its own (`models.detection.install`).

    Args:
        graph: a network that was traced from this class (of a detector, from its `core`) and edited.
        model: an instance of the class with the sizes from before.

    Returns:
        The copy, in the modes of `model`. What the network does not read has the values of `model`.

    Raises:
        SurgeryError: the class cannot hold the edit; the message says what it lacks.
    """
    return detectors.install(graph, model) if is_detector(model) else classes.install(graph, model)


def config_of(graph: ModelGraph, model: nn.Module) -> dict[str, Any]:
    """The fields of `model.config` that an edit has changed, with the values that build the new sizes.

    A model that is built from them, with the weights of `install`, gives the same outputs to the last bit.

    Args:
        graph: a network that was traced from `model` and edited; `compress` with `ranking="uniform"` cuts so that one
            field can stand for all layers.
        model: an instance of a class that is built from `model.config` alone, as those of transformers are.

    Returns:
        The fields by name; those of a configuration inside another as `text_config.hidden_size`.

    Raises:
        SurgeryError: the class cannot hold the edit, or not by its configuration: one field stands for sizes that the
            network has not alike.
    """
    return configuration.config_of(graph, model)


def write_installed(graph: ModelGraph, model: nn.Module, spec: str, path: Path) -> dict[str, Any]:
    """Write an edited network as its library reads it: a folder for `from_pretrained`, a `.pt` of ultralytics.

    What is written is read again and compared before it is put in place.

    Args:
        graph: a network that was traced from `model` and edited.
        model: what `spec` builds.
        spec: of a library, `hf:…` or `ultralytics:…`.
        path: of the folder or the file.

    Returns:
        What has changed of the configuration; empty where there is none.

    Raises:
        SurgeryError: the class or its configuration cannot hold the edit, or the library cannot read what it wrote.
    """
    found = library_of(spec)
    scheme = None if found is None else found[0].scheme
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        made = Path(temporary) / path.name
        if scheme == "hf":
            fields = _write_folder(graph, model, made)
            if found is not None and is_folder(found[1]):
                copy_others(Path(found[1]), made)
        elif scheme == "ultralytics":
            fields = _write_yolo(graph, model, made)
        else:
            raise UnsupportedError(
                f"{spec}: has no file that holds another size of its class; in Python, gs.install(graph, model) gives"
                " the module"
            )
        put_in_place(made, path)
    return fields


def put_in_place(made: Path, path: Path) -> None:
    """Move what was written to its place; of a folder that is there, old weights go and whatever else it has stays."""
    if not path.is_dir() or path.is_symlink():
        made.replace(path)
        return
    if not made.is_dir():
        raise SurgeryError(f"{path}: is a folder, expected a file")
    for weights in (*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")):
        weights.unlink()
    for file in made.iterdir():
        file.replace(path / file.name)


def _write_folder(graph: ModelGraph, model: nn.Module, folder: Path) -> dict[str, Any]:
    built: Any
    built, fields = configuration.configured(graph, model)
    given: Any = model.config
    if hasattr(given, "use_cache"):  # a trace goes without; what is written serves others
        built.config.use_cache = type(given)().use_cache
    if getattr(model, "generation_config", None) is not None:
        built.generation_config = copy.deepcopy(model.generation_config)
    with quiet():
        built.save_pretrained(folder)
    again = from_folder(folder, {}, Trust())
    configuration.check_same(graph, built, again, f"install: {folder.name}, read again,")
    return fields


def copy_others(source: Path, folder: Path) -> None:
    """What a folder has beside weights and configuration: the files of its tokenizer."""
    for file in source.iterdir():
        kept = file.suffix in (".json", ".txt", ".model", ".jinja") and ".safetensors" not in file.name
        if kept and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)


def _write_yolo(graph: ModelGraph, model: nn.Module, file: Path) -> dict[str, Any]:
    import torch

    installed: Any = classes.install(graph, model)
    try:
        torch.save({"epoch": -1, "model": copy.deepcopy(installed), "ema": None, "train_args": {}}, file)
        again = torch.load(file, weights_only=False)["model"]
    except Exception as cause:  # whatever pickle says
        raise SurgeryError(f"install: {type(model).__name__} cannot be written: {one_line(cause)}") from cause
    configuration.check_same(graph, installed, again, f"install: {file.name}, read again,")
    return {}
