"""Any `.onnx` file, read as it stands: its graph, and where its weights lie."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import onnx
from onnx import external_data_helper, inliner, numpy_helper

from graphsurgery.errors import CheckpointError, one_line, require_file
from graphsurgery.onnx.files.storage import Weights, map_outside, open_model

SMALL = 1024
"""Tensors of at most so many elements may be sizes that shapes depend on."""


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file.

    Attributes:
        path: where it lies.
        model: its content, functions put in the place of their calls; large weights in other files stay there.
        bytes: its size together with that of the files that hold its weights.
    """

    path: Path
    model: onnx.ModelProto
    bytes: int

    def digests(self) -> dict[str, str]:
        """A digest of dtype, shape and values of every weight of the main graph, by name.

        Raises:
            CheckpointError: the bytes of a weight do not fit its shape.
        """
        found = {}
        graph = self.model.graph
        sparse = [
            (each.values.name, (each.values, each.indices), tuple(each.dims)) for each in graph.sparse_initializer
        ]
        dense = [(tensor.name, (tensor,), tuple(tensor.dims)) for tensor in graph.initializer]
        for name, tensors, shape in (*dense, *sparse):
            try:
                arrays = [numpy_helper.to_array(tensor, str(self.path.parent)) for tensor in tensors]
            except Exception as cause:  # of a damaged tensor
                raise CheckpointError(f"{self.path}: weight {name} is damaged: {one_line(cause)}") from cause
            digest = hashlib.blake2b(f"{tensors[0].data_type} {shape}".encode(), digest_size=16)
            for array in arrays:
                digest.update(array.tobytes())
            found[name] = digest.hexdigest()
        return found


def read_onnx(path: Path | str) -> OnnxFile:
    """Read an ONNX file; the files that hold its weights (external data) are checked to be there and long enough.

    Raises:
        CheckpointError: the file is missing, truncated or no ONNX model, or the weights outside it are not there.
    """
    path = Path(path)
    return _checked(path, _opened(path, lambda place: onnx.load(place, load_external_data=False)))


def read_apart(path: Path | str) -> tuple[OnnxFile, Weights]:
    """The same, with the large weights left where they lie.

    Raises:
        CheckpointError: as `read_onnx`, or a weight is damaged.
    """
    path = Path(path)
    model, weights = _opened(path, open_model)
    file = _checked(path, model)
    try:
        weights = map_outside(file.model, weights, path.parent)
        for tensor in tensors_of(file.model.graph):
            if external_data_helper.uses_external_data(tensor) and tensor.name not in weights.arrays:
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
                tensor.ClearField("data_location")
                tensor.ClearField("external_data")
    except Exception as cause:  # whatever reading a damaged file raises
        raise CheckpointError(f"{path}: its weights cannot be read: {one_line(cause)}") from cause
    return file, weights


_T = TypeVar("_T")


def _opened(path: Path, read: Callable[[Path], _T]) -> _T:
    require_file(path, "an ONNX file")
    try:
        return read(path)
    except Exception as cause:  # the file may be anything, so anything may be wrong with it
        raise CheckpointError(f"{path}: is truncated or no ONNX file at all; take another copy of it") from cause


def _checked(path: Path, model: onnx.ModelProto) -> OnnxFile:
    """A model that is whole, its functions put in the place of their calls."""
    if not (model.ir_version and model.opset_import and model.graph.output):
        raise CheckpointError(f"{path}: holds no whole ONNX model: version, operators or outputs are missing")
    places = check_outside(path, model)
    try:
        for tensor in tensors_of(model.graph):
            if external_data_helper.uses_external_data(tensor) and math.prod(tensor.dims) <= SMALL:
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    except Exception as cause:  # of a damaged tensor
        raise CheckpointError(f"{path}: its weights cannot be read: {one_line(cause)}") from cause
    size = path.stat().st_size + sum(place.stat().st_size for place in places)
    try:
        whole = inliner.inline_local_functions(model) if model.functions else model
    except Exception as cause:  # of a damaged function
        raise CheckpointError(f"{path}: its functions cannot be read: {one_line(cause)}") from cause
    return OnnxFile(path, whole, size)


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The weights of a graph, and those of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for inner in bodies(node):
            yield from tensors_of(inner)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node: branches, bodies of loops."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def read_outside(node: onnx.NodeProto) -> list[str]:
    """The values of the graph around a node that the graphs inside it read, in order; they are no inputs of it."""
    found: dict[str, None] = {}
    for body in bodies(node):
        own = {value.name for value in (*body.input, *body.initializer)}
        for inner in body.node:
            found.update(
                dict.fromkeys(name for name in (*inner.input, *read_outside(inner)) if name and name not in own)
            )
            own.update(inner.output)
        found.update(dict.fromkeys(value.name for value in body.output if value.name not in own))
    return list(found)


def rename_outside(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Let the graphs inside a node read values of the graph around it by other names."""
    for body in bodies(node):
        own = {value.name for value in (*body.input, *body.initializer)} | {n for x in body.node for n in x.output}
        outer = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            inner.input[:] = [outer.get(name, name) for name in inner.input]
            rename_outside(inner, outer)
        for value in body.output:
            value.name = outer.get(value.name, value.name)


def replace_all(field: Any, values: Iterable[Any]) -> None:
    """Let a repeated field hold these messages alone; they may be of the field."""
    held = list(values)
    del field[:]
    field.extend(held)


def check_outside(path: Path, model: onnx.ModelProto) -> set[Path]:
    """The files that hold weights of a model; each lies in the folder of the model, and is long enough.

    Raises:
        CheckpointError: a weight lies elsewhere: behind `..`, at an absolute path, behind a link out of the folder; or
            it is not there; or what lies outside is no weight of a graph.
    """
    owned = [tensor for tensor in tensors_of(model.graph) if external_data_helper.uses_external_data(tensor)]
    known = {id(tensor) for tensor in owned}
    for tensor in _held(model):
        if external_data_helper.uses_external_data(tensor) and id(tensor) not in known:
            raise CheckpointError(f"{path}: a constant {tensor.name} lies outside the file, which only weights may")
    return {_checked_place(path, tensor) for tensor in owned}


def _held(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The tensors that are no initializers: sparse ones, and those that nodes hold."""
    yield from _held_by(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _held_by_node(node)
    for training in model.training_info:
        for graph in (training.initialization, training.algorithm):
            yield from tensors_of(graph)
            yield from _held_by(graph)


def _held_by(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _held_by_node(node)


def _held_by_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
    for body in bodies(node):
        yield from _held_by(body)


def _checked_place(path: Path, tensor: onnx.TensorProto) -> Path:
    """The file that holds a weight."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    inside, foreign = PurePosixPath(location), PureWindowsPath(location)
    elsewhere = inside.is_absolute() or bool(foreign.anchor) or ".." in (*inside.parts, *foreign.parts)
    if not location or "\0" in location or elsewhere or len(entries) != len(tensor.external_data):
        raise CheckpointError(f"{path}: weight {tensor.name} lies in {location!r}, expected a file beside the model")
    place = path.parent / inside
    if not place.is_file():
        raise CheckpointError(f"{path}: its weights in {place} are missing; put that file there")
    # A model that is a link itself may have its weights beside what it leads to.
    homes = (path.parent.resolve(), path.resolve().parent)
    if not any(place.resolve().is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"{path}: weight {tensor.name} lies in {place}, which is a link out of the model's folder; copy it there"
        )
    try:
        numbers = [int(entries.get(name, 0)) for name in ("offset", "length")]
    except ValueError as cause:
        raise CheckpointError(f"{path}: says no position of weight {tensor.name} in {place}") from cause
    if min(numbers) < 0:
        raise CheckpointError(f"{path}: says no position of weight {tensor.name} in {place}")
    if place.stat().st_size < sum(numbers):
        raise CheckpointError(f"{path}: its weights in {place} are truncated; take another copy of that file")
    return place


LINEAGE = "graphsurgery.lineage"


def lineage_in(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """How a file that we wrote came about; empty for others."""
    text = next((entry.value for entry in model.metadata_props if entry.key == LINEAGE), "[]")
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [record for record in found if isinstance(record, dict)] if isinstance(found, list) else []
