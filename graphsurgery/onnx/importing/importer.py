"""From an `.onnx` file to a `ModelGraph`.

The file is made a module whose forward runs its operators as torch expressions, and that module is traced like any
other. So a network from a file has the same normal form as one from Python, and every pass works on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphsurgery.errors import CheckFailedError, CheckpointError, SpecError, SurgeryError, UnsupportedError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.network.preprocessing import find
from graphsurgery.onnx.exporting.checking import OnnxCheck, check_onnx
from graphsurgery.onnx.exporting.probing import index_range, range_of
from graphsurgery.onnx.files.model_file import lineage_in
from graphsurgery.onnx.importing.building import network_of
from graphsurgery.onnx.importing.operators import UnlikeTorchError, torch_dtype
from graphsurgery.onnx.importing.program import OnnxProgram
from graphsurgery.onnx.importing.reading import HALF, read_program
from graphsurgery.onnx.importing.sources import Source
from graphsurgery.onnx.runtime.acceptance import complaint
from graphsurgery.tracing.trace import trace

_TRACED_BATCH = 2


@dataclass(frozen=True, eq=False)
class Imported:
    """A network from a file, and what connects the two.

    Attributes:
        graph: the network.
        file: what it was read from.
        module: what was traced; runs the file's operators.
        sources: where in the file each parameter and buffer stands, by its path in the network.
        values: the node that computes a value of the file, by the value's name.
        layers: the path of the layer of an operator that has one, by the number of the operator's node in the file.
        readers: the number of the node that reads a parameter or buffer, by its path; of one that many read, the first.
        lengths: how many sizes the file computes under a name.
        fixed: those of them that are the same for every input.
    """

    graph: ModelGraph
    file: OnnxProgram
    module: nn.Module
    sources: Mapping[str, Source]
    values: Mapping[str, str]
    layers: Mapping[int, str]
    readers: Mapping[str, int]
    lengths: Mapping[str, int]
    fixed: Mapping[str, np.ndarray[Any, Any]]


def import_onnx(
    path: Path | str, *, shape: Sequence[int] | None = None, weights: bool = True, check: bool = True
) -> Imported:
    """Read a file as a network that every pass works on, and that can be trained.

    Layers get the names that their weights have in the file, or else those of the nodes. A batch that the file fixes
    is freed. Operators that torch does not have are kept whole, run by ONNX Runtime, and freeze the axes around them.

    Args:
        path: the file, of opset 9 or newer, in float32, not quantised.
        shape: of one example of its input, without the batch, where the file leaves it open.
        weights: False leaves them on meta, where only the structure is asked for; then nothing is compared.
        check: compare every output of the network with the file's in ONNX Runtime, on noise of several scales.

    Raises:
        CheckpointError: the file is missing or damaged.
        UnsupportedError: it holds what is not followed: half precision, quantised operators, control flow.
        SpecError: the file leaves the shape of an input open, and none is given, or one that does not fit.
        TraceError: an operator cannot be followed or run.
        CheckFailedError: what was read does not compute what the file does; the first node that differs is named. Or
            the file gives what is not a number.
    """
    try:
        return _imported(path, shape, weights, check)
    except SurgeryError:
        raise
    except Exception as cause:  # the file may be anything, so anything may be wrong with it
        raise CheckpointError(
            f"{path}: cannot be read as a network ({type(cause).__name__}: {one_line(cause)})"
        ) from cause


def _imported(path: Path | str, shape: Sequence[int] | None, weights: bool, check: bool) -> Imported:
    file = read_program(path)
    examples = _examples(file, shape)
    try:
        network = network_of(file, examples, weights=weights)
        file.weights.release()
        graph = trace(network, list(examples.values()), copy=False, check=False)  # `compare` asks the file
    except SurgeryError as cause:
        raise type(cause)(f"{path}: {cause}") from cause
    # Last, as a reason of our own names the operator.
    refused = complaint(file.path, file.model, file.weights)
    if refused:
        raise CheckpointError(f"{path}: ONNX Runtime does not open it: {refused}")
    graph = _with_ranges(graph) if weights else graph
    record: dict[str, Any] = {"pass": "import", "file": Path(path).name, "operators": len(file.operators)}
    images = find(lineage_in(file.model), str(path))
    record |= {} if images is None else {"preprocessing": images.as_dict()}
    values = {}
    for node in graph.module.graph.nodes:
        for name in node.meta.pop("onnx", ()):
            values[name] = node.name
    imported = Imported(
        graph=replace(graph, lineage=(record,)),
        file=file,
        module=network,
        sources=network.plan.sources,
        values=values,
        layers=network.plan.layers,
        readers=network.plan.readers,
        lengths=network.plan.lengths,
        fixed=network.plan.fixed,
    )
    if weights and check:
        compare(imported)
    return imported


def _with_ranges(graph: ModelGraph) -> ModelGraph:
    """With the indices that the network takes noted beside its inputs."""
    if all(spec.dtype.is_floating_point for spec in graph.inputs):
        return graph
    limits = index_range(graph, _TRACED_BATCH)
    ranges = [(0, 0) if spec.dtype.is_floating_point else range_of(spec.dtype, limits) for spec in graph.inputs]
    inputs = [replace(spec, low=low, high=high) for spec, (low, high) in zip(graph.inputs, ranges, strict=True)]
    return replace(graph, inputs=tuple(inputs))


def compare(imported: Imported, *, rtol: float = 1e-4) -> OnnxCheck:
    """Compare every output of a network with the file that it was read from, in ONNX Runtime.

    Raises:
        CheckFailedError: they differ; the first node of the file that does is named.
        SurgeryError: ONNX Runtime does not read or run the file.
    """
    path = imported.file.path
    batches = (2,) if imported.file.batch is None else (imported.file.batch,)
    found = check_onnx(imported.graph, path, batches=batches, rtol=rtol, values=imported.values, raise_on_failure=False)
    if found.broken:
        raise CheckFailedError(f"{path}: {found.broken}; give a file whose weights are numbers")
    if not found.holds:
        raise CheckFailedError(f"{path}: what was read does not compute what the file does: {found.failure}")
    return found


def _examples(file: OnnxProgram, shape: Sequence[int] | None) -> dict[str, Tensor]:
    """A meta tensor for each input, with a batch that the file does not have."""
    found = {}
    for value in file.inputs:
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            raise UnsupportedError(f"{file.path}: input {value.name} has a free number of axes")
        dims = [size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim]
        if not dims:
            raise UnsupportedError(f"{file.path}: input {value.name} is a single number, expected [batch, ...]")
        dtype = _dtype_of(file, value.name, kind.elem_type)
        batch = _TRACED_BATCH if dims[0] != _TRACED_BATCH else _TRACED_BATCH + 1
        inner = _inner(file, value.name, dims[1:], shape)
        found[value.name] = torch.empty((batch, *inner), dtype=dtype, device="meta")
    return found


def _dtype_of(file: OnnxProgram, name: str, code: int) -> torch.dtype:
    """The dtype of an input."""
    if code in HALF:
        raise UnsupportedError(f"{file.path}: input {name} is in half precision; convert the file to float32 first")
    try:
        return torch_dtype(code)
    except UnlikeTorchError as cause:
        raise UnsupportedError(f"{file.path}: input {name} is {cause}, which torch does not compute with") from cause


def _inner(file: OnnxProgram, name: str, dims: Sequence[int | None], shape: Sequence[int] | None) -> tuple[int, ...]:
    """The sizes of an input after the batch."""
    words = "x".join("?" if size is None else str(size) for size in dims)
    if shape is not None and len(file.inputs) == 1:
        fits = len(shape) == len(dims) and all(a in (None, b) for a, b in zip(dims, shape, strict=True))
        if not fits:
            raise SpecError(f"{file.path}: input {name} is {words} in the file, not {'x'.join(map(str, shape))}")
        return tuple(shape)
    if None in dims:
        raise SpecError(f"{file.path}: input {name} is {words} in the file; give --input, such as --input 3x224x224")
    return tuple(size for size in dims if size is not None)
