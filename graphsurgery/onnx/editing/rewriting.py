"""An edited network, written back into the `.onnx` file that it came from.

Only what the edit has changed is touched: weights, the sizes that stand in the file as numbers, and the operators in
whose place there are others (`inserting`). Nodes, names, opset, metadata and free axes stay as they are, and the new
file is proved in ONNX Runtime before it is put in place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import onnx
import onnx_graphsurgeon
from torch import Tensor

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import CheckFailedError, SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.editing.file_edit import FileEdit
from graphsurgery.onnx.exporting.checking import OnnxCheck, check_onnx
from graphsurgery.onnx.files.given import given_back, given_model
from graphsurgery.onnx.files.precision import passing_file
from graphsurgery.onnx.files.storage import ONE_FILE, bare, save_model, size_of
from graphsurgery.onnx.importing.importer import Imported, import_onnx
from graphsurgery.onnx.runtime.acceptance import refusal
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator
from graphsurgery.progress import phase

if TYPE_CHECKING:
    from graphsurgery.onnx.files.given import OnnxModel

_Model = TypeVar("_Model", onnx.ModelProto, onnx_graphsurgeon.Graph)


@overload
def rewrite_onnx(
    original: Path | str,
    graph: ModelGraph,
    path: Path | str,
    *,
    rtol: float = ...,
    inputs: Sequence[Tensor] | None = ...,
    accept: Callable[[Path], object] | None = ...,
) -> OnnxCheck: ...


@overload
def rewrite_onnx(
    original: _Model, graph: ModelGraph, *, rtol: float = ..., inputs: Sequence[Tensor] | None = ...
) -> _Model: ...


@phase("writing the ONNX file back")
def rewrite_onnx(
    original: OnnxModel,
    graph: ModelGraph,
    path: Path | str | None = None,
    *,
    rtol: float = 1e-4,
    inputs: Sequence[Tensor] | None = None,
    accept: Callable[[Path], object] | None = None,
) -> Any:
    """Write a network that came from a file as that file, with other weights and sizes.

    What is in memory is given back: a `ModelProto` for a `ModelProto`, an `onnx_graphsurgeon.Graph` for a
    `onnx_graphsurgeon.Graph`. All fields that no edit concerns are as they were.

    Args:
        original: what the network was imported from: a file, or a model in memory; it is not touched, unless `path` is
            the same file.
        graph: the network after passes that resize, reorder or factorize, or training.
        path: the file to write, where a file was given; it is replaced in one step, and only if it does its job.
        rtol: largest deviation of ONNX Runtime from PyTorch, relative to what each output varies by.
        inputs: real inputs, each `[batch, ...]`, compared too; left out where the file fixes another batch.
        accept: given the file that becomes `path`, where that is proved; what it raises leaves `path` as it is.

    Returns:
        Of a file the comparison in ONNX Runtime, on random inputs of three batch sizes, or of the one that the file
        fixes; of a model in memory the edited one, for which the same comparison holds.

    Raises:
        UnsupportedError: the network has new operators that there is no writer for (`writers`), or sizes that are not
            numbers in the file.
        SurgeryError: the network has other inputs than the file, or the edited file is not valid; or a path is missing,
            or given with a model in memory.
        CheckFailedError: the new file would not give what the network gives.
    """
    given = given_model(original)
    try:
        if (path is None) == (given.folder is None):
            raise SurgeryError(
                f"{given.name}: give the path of the edited file"
                if path is None
                else f"{given.name}: its edit is given back in memory; leave out the path {path}"
            )
        with given.named():
            check = _rewrite(given.path, graph, Path(path or given.path), rtol, inputs, accept)
            return check if given.folder is None else given_back(original, given.path)
    finally:
        given.remove()


def _rewrite(
    original: Path,
    graph: ModelGraph,
    path: Path,
    rtol: float,
    inputs: Sequence[Tensor] | None,
    accept: Callable[[Path], object] | None,
) -> OnnxCheck:
    """Write the edited file, if it does what the network does."""
    imported = import_onnx(original, weights=False, like=graph)
    file = imported.file
    rewriting = FileEdit(imported, graph)
    model = rewriting.model()
    proof = partial(_proof, graph, imported, path, rtol, inputs)
    large = size_of(model, rewriting.arrays) > ONE_FILE
    beside = _free_place(path) if file.weights.outside or large else None
    try:
        with atomic_write(path) as temporary:
            stored, arrays = file.precision.restored(model, rewriting.arrays)
            stored = file.texts.restored(stored)
            complaint = _complaint(model, rewriting.arrays)
            if complaint and not _complaint(file.model, file.weights.arrays):
                raise SurgeryError(f"{path}: the edited file is not valid: {complaint}")
            if stored is model:
                save_model(model, arrays, temporary, beside)
                file.weights.release()
                del rewriting
                check = proof(temporary)
            else:  # compared in float32, before what is written gets the precision that the file has
                with passing_file(model, rewriting.arrays) as single:
                    check = proof(single)
                save_model(stored, arrays, temporary, beside)
                _require_opened(file.path, temporary, path)
            if accept is not None:
                accept(temporary)
    except BaseException:
        if beside is not None:
            beside.unlink(missing_ok=True)
        raise
    return replace(check, path=path)


def _require_opened(original: Path, file: Path, path: Path) -> None:
    """ONNX Runtime opens an edited file in other precisions than float32, where it opens the original."""
    why = refusal(file)
    if why and not refusal(original):
        raise SurgeryError(f"{path}: not written, because ONNX Runtime does not open the edited file: {why}")


def _proof(
    graph: ModelGraph, imported: Imported, path: Path, rtol: float, inputs: Sequence[Tensor] | None, file: Path
) -> OnnxCheck:
    """The comparison of the edited file with the network, which has to hold before it becomes `path`."""
    fixed = imported.batch
    if inputs is not None and fixed is not None:
        # A run of the file takes so many; more would be refused, and fewer are no real batch.
        inputs = [x[:fixed] for x in inputs] if all(len(x) >= fixed for x in inputs) else None
    where = f"{path}: not written, because the edited file does not do what the network does"
    advice = "" if any(isinstance(part, OnnxOperator) for part in graph.module.modules()) else "; or write a .pt"
    try:
        check = check_onnx(
            graph,
            file,
            batches=imported.batches or (1, 3, 8),
            rtol=rtol,
            inputs=inputs,
            values=imported.values,
            raise_on_failure=False,
        )
    except SurgeryError as cause:
        raise type(cause)(f"{where}: {str(cause).replace(str(file), str(path))}{advice}") from cause
    if check.broken:
        raise CheckFailedError(f"{path}: not written: {check.broken}; nothing can be compared")
    if not check.holds:
        raise CheckFailedError(f"{where}: {check.failure}{check.advice}{advice}")
    return check


def _free_place(path: Path) -> Path:
    """A file for the weights of a model, which no other model can have its weights in."""
    place, count = path.with_name(f"{path.name}.data"), 1
    while place.exists():
        count += 1
        place = path.with_name(f"{path.name}.{count}.data")
    return place


def _complaint(model: onnx.ModelProto, large: Collection[str]) -> str:
    """What ONNX's checker, which is stricter than the runtimes, says of a model; its large weights are not read."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder:
        weights, path = Path(folder, "weights"), Path(folder, "model.onnx")
        weights.touch()
        for tensor in seen.graph.initializer:
            if tensor.name in large:
                bare(tensor)
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=weights.name)
        path.write_bytes(seen.SerializeToString())
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except Exception as cause:  # the checker's errors have no public base class
            return one_line(cause)
    return ""
