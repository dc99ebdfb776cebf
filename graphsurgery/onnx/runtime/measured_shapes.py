"""Shapes that ONNX's inference does not find, such as of what is reshaped to computed sizes: seen in one run."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import external_data_helper

from graphsurgery.onnx.files.axes import Given
from graphsurgery.onnx.files.macs import Shape
from graphsurgery.onnx.files.model_file import OnnxFile, tensors_of
from graphsurgery.onnx.files.nodes import OnnxGraph, read_nodes
from graphsurgery.onnx.runtime.latency import random_feed
from graphsurgery.onnx.runtime.sessions import open_session

_MOST = 2**28
"""Bytes of a file that is run for its shapes."""


def counted_nodes(file: OnnxFile, shapes: Given | None = None) -> OnnxGraph:
    """The nodes of a file as `read_nodes` gives them; where products are not counted, the file is run once.

    Raises:
        CheckpointError, SpecError: as `read_nodes`.
    """
    graph = read_nodes(file, shapes)
    if not graph.uncounted or file.bytes > _MOST:
        return graph
    ends = [pair for node in graph.nodes for pair in zip(node.outputs, node.shapes, strict=True)]
    missing = {name for name, shape in ends if not _is_known(shape)}
    found = _seen(file, missing, graph.batch, shapes)
    return read_nodes(file, shapes, found) if found else graph


def _is_known(shape: Shape | None) -> bool:
    return shape is not None and all(isinstance(size, int) for size in shape)


def _seen(file: OnnxFile, names: set[str], batch: int, shapes: Given | None) -> Mapping[str, Shape]:
    """The shapes of these values in a run on random inputs; none where it does not run."""
    if any(external_data_helper.uses_external_data(tensor) for tensor in tensors_of(file.model.graph)):
        return {}
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - given))
    try:
        session = open_session(file.path, threads=1, content=model.SerializeToString(), optimised=False)
        wanted = [value.name for value in session.get_outputs() if value.name in names]
        own = shapes if isinstance(shapes, Mapping) else () if shapes is None else (shapes,)
        arrays = session.run(wanted, random_feed(session, batch, str(file.path), own)) if wanted else []
    except Exception:  # of what only real inputs run, in whatever way ONNX Runtime says so
        return {}
    return {name: tuple(array.shape) for name, array in zip(wanted, arrays, strict=True) if hasattr(array, "shape")}
