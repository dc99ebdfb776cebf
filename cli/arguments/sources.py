"""The arguments of commands that name something to be read; what is not there is refused before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from graphsurgery.errors import CheckpointError, SpecError, near_names
from graphsurgery.models.sources.catalogue import ENDINGS, SPECS
from graphsurgery.training.data.catalogue import DATA

EXPECTED = {**ENDINGS, ".onnx": "an ONNX file", ".json": "a file of masks"}
"""What is in the files that commands read, by their endings."""


def there(_kind: Any, source: Any) -> None:
    """Refuse a model, a file or data whose file or folder is not there, and a Python file without its function.

    Raises:
        CheckpointError: there is no such file; names one that is called nearly so.
        SpecError: there is no such folder, or the function is missing.
    """
    if source is None:
        return
    if isinstance(source, tuple | list):
        for each in source:
            there(_kind, each)
        return
    from graphsurgery.models.sources.user_files import require_file_of, require_function

    text = str(source)
    name = text.partition("?")[0]
    scheme, _, rest = name.partition(":")
    require_function(text)
    if require_file_of(name):
        return
    if scheme in DATA:
        _require_folder(text, scheme, rest)
    elif scheme == "ultralytics" and rest.endswith(".pt"):
        _require_file(Path(rest))
    elif scheme not in SPECS and Path(text).suffix.lower() in EXPECTED:
        _require_file(Path(text))


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, expected {EXPECTED[path.suffix.lower()]}")
    near = near_files(path)
    raise CheckpointError(f"{path}: no such file; expected {EXPECTED[path.suffix.lower()]}{near}")


def near_files(path: Path) -> str:
    """Which file beside a missing one may be meant, as the end of a message; empty where none is called nearly so."""
    folder = path.parent
    if not folder.is_dir():
        return f"; there is no folder {folder}"
    names = [file.name for file in folder.iterdir() if file.suffix == path.suffix]
    found = near_names(path.name, names) if names else ""
    return f"; {found}" if found.startswith("did you mean") else ""


def _require_folder(spec: str, scheme: str, folder: str) -> None:
    entry = DATA[scheme]
    if entry.folder == "never" or (entry.folder == "may" and not folder):
        return
    if not folder or not Path(folder).is_dir():
        wanted = f"{scheme}:DIR with {entry.holds}" if entry.holds else f"{scheme}:DIR"
        raise SpecError(f"data spec {spec!r}: {folder or 'DIR'} is not a folder; give {wanted}")


def examples_there(kind: Any, source: Any) -> None:
    """The same of examples without labels, which may be a folder of images.

    Raises:
        SurgeryError: as for `there`; or a path is no folder.
    """
    there(kind, source)
    name = str(source or "").partition("?")[0]
    is_path = "/" in name.partition(":")[0] and ".py:" not in name
    if is_path and not Path(name).is_dir() and not Path(str(source)).is_dir():
        near = near_files(Path(name))
        raise SpecError(f"{source}: is not a folder; give --calib one with images or .npy arrays, or a data spec{near}")


READ = Parameter(validator=there)
"""Marks what names something that is read."""

Model = Annotated[str, READ]
"""A model spec, or a file of a network."""
MaybeModel = Annotated[str | None, READ]
Dataset = Annotated[str, READ]
"""A data spec."""
MaybeDataset = Annotated[str | None, READ]
Examples = Annotated[str | None, Parameter(validator=examples_there)]
"""A folder of examples, or a data spec."""
File = Annotated[Path, READ]
