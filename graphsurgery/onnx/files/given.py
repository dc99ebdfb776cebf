"""A model as it is given: the path of a file, or in memory as a `ModelProto` or an `onnx_graphsurgeon.Graph`.

All that reads a model reads a file, as ONNX Runtime and mapped weights want one. So what is in memory is written into
a passing folder, read there, and an edit of it is read back and given out as what was given.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx
from onnx import external_data_helper

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.onnx.files.storage import ONE_FILE

if TYPE_CHECKING:
    import onnx_graphsurgeon

    OnnxModel: TypeAlias = Path | str | onnx.ModelProto | onnx_graphsurgeon.Graph


@dataclass(frozen=True, eq=False)
class GivenModel:
    """A model that was given, as a file.

    Attributes:
        path: of the file.
        name: what errors call it.
        folder: the passing folder that the file lies in; None where it is the caller's own.
    """

    path: Path
    name: str
    folder: Path | None = None

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors in this block speak of what was given, not of a passing file."""
        try:
            yield
        except SurgeryError as cause:
            if self.folder is None:
                raise
            raise type(cause)(str(cause).replace(str(self.path), self.name)) from cause

    def kept_with(self, owner: Any) -> None:
        """Let a passing file be there as long as the owner is."""
        if self.folder is not None:
            weakref.finalize(owner, self.remove)

    def remove(self) -> None:
        """Remove a passing file."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def given_model(model: OnnxModel) -> GivenModel:
    """What was given, as a file; a model in memory is not modified.

    Raises:
        SurgeryError: it is neither a path nor a model, its weights lie in other files, or it is too large for one.
    """
    if isinstance(model, (str, Path)):
        return GivenModel(Path(model), str(model))
    if is_surgeon_graph(model):
        return _written(_exported(model), "the given graph")
    if isinstance(model, onnx.ModelProto):
        return _written(model, "the given model")
    raise SurgeryError(
        f"an .onnx model is given as {type(model).__name__}, expected a path, an onnx.ModelProto or an "
        "onnx_graphsurgeon.Graph"
    )


def given_back(like: OnnxModel, path: Path) -> Any:
    """The model of a file as what `like` is: a `ModelProto` or an `onnx_graphsurgeon.Graph`."""
    model = onnx.load(path)
    return _surgeon().import_onnx(model) if is_surgeon_graph(like) else model


def is_surgeon_graph(model: Any) -> bool:
    """Whether this is a graph of onnx-graphsurgeon, which nobody has made where it is not imported."""
    surgeon = sys.modules.get("onnx_graphsurgeon")
    return surgeon is not None and isinstance(model, surgeon.Graph)


def _surgeon() -> Any:
    return sys.modules["onnx_graphsurgeon"]


def _exported(graph: onnx_graphsurgeon.Graph) -> onnx.ModelProto:
    try:
        return _surgeon().export_onnx(graph)
    except Exception as cause:  # whatever it finds wrong with its own objects
        raise SurgeryError(f"the given graph: onnx-graphsurgeon does not export it: {one_line(cause)}") from cause


def _written(model: onnx.ModelProto, name: str) -> GivenModel:
    """A model in a passing folder."""
    outside = [t.name for t in model.graph.initializer if external_data_helper.uses_external_data(t)]
    if outside:
        raise SurgeryError(
            f"{name}: weight {outside[0]} lies in another file; give the path, or load it with its weights"
        )
    if model.ByteSize() > ONE_FILE:
        raise SurgeryError(f"{name}: has {model.ByteSize():,} bytes, expected at most 2 GiB; save it and give the path")
    folder = Path(tempfile.mkdtemp())
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return GivenModel(path, name, folder)
