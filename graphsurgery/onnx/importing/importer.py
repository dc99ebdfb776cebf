"""From an `.onnx` file to a `ModelGraph`.

The file is made a module whose forward runs its operators as torch expressions, and that module is traced like any
other. So a network from a file has the same normal form as one from Python, and every pass works on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from graphsurgery.errors import CheckFailedError, CheckpointError, SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.network.preprocessing import find
from graphsurgery.onnx.exporting.checking import OnnxCheck, check_onnx
from graphsurgery.onnx.files.axes import Given, axes_of
from graphsurgery.onnx.files.given import given_model
from graphsurgery.onnx.files.model_file import lineage_in
from graphsurgery.onnx.files.precision import passing_file
from graphsurgery.onnx.importing.building import network_of
from graphsurgery.onnx.importing.inputs import FileInputs, plan_inputs
from graphsurgery.onnx.importing.program import OnnxProgram
from graphsurgery.onnx.importing.reading import read_program
from graphsurgery.onnx.importing.sources import FileOrigin, Source, origins_of
from graphsurgery.onnx.runtime.acceptance import complaint
from graphsurgery.onnx.runtime.index_ranges import ranges_of
from graphsurgery.progress import phase
from graphsurgery.tracing.trace import trace

if TYPE_CHECKING:
    from graphsurgery.onnx.files.given import OnnxModel


@dataclass(frozen=True, eq=False)
class Imported:
    """A network from a file, and what connects the two.

    Attributes:
        graph: the network.
        file: what it was read from.
        module: what was traced; runs the file's operators.
        sources: where in the file each parameter and buffer stands, by its path in the network.
        origins: what of the file the arguments of a node are, by the node's name.
        values: the node that computes a value of the file, by the value's name.
        layers: the path of the layer of an operator that has one, by the number of the operator's node in the file.
        readers: the number of the node that reads a parameter or buffer, by its path; of one that many read, the first.
        lengths: how many sizes the file computes under a name.
        fixed: those of them that are the same for every input.
        batch: the batch that the file fixes, and the network leaves free.
    """

    graph: ModelGraph
    file: OnnxProgram
    module: nn.Module
    sources: Mapping[str, Source]
    origins: Mapping[str, FileOrigin]
    values: Mapping[str, str]
    layers: Mapping[int, str]
    readers: Mapping[str, int]
    lengths: Mapping[str, int]
    fixed: Mapping[str, np.ndarray[Any, Any]]
    batch: int | None

    @property
    def batches(self) -> tuple[int, ...]:
        """The only batch that the file takes; nothing where it takes any."""
        if self.batch is not None:
            return (self.batch,)
        return () if any(spec.batched for spec in self.graph.inputs) else (1,)


@phase("reading the ONNX file")
def import_onnx(
    model: OnnxModel,
    *,
    shape: Given | None = None,
    weights: bool = True,
    check: bool = True,
    like: ModelGraph | None = None,
) -> Imported:
    """Read a file as a network that every pass works on, and that can be trained.

    Layers get the names that their weights have in the file, or else those of the nodes. A batch that the file fixes
    is freed. Operators that torch does not have are kept whole, run by ONNX Runtime, and freeze the axes around them.

    Args:
        model: the path of the file, or a model in memory: an `onnx.ModelProto` or an `onnx_graphsurgeon.Graph`.
            Whatever precision it is in, the network is in float32; weights and values that are quantised are what they
            were before, and operators that compute in integers the floating ones that they stand for.
        shape: of one example of its input, without the batch, where the file leaves it open; or whole shapes of its
            inputs, by name.
        weights: False leaves them on meta, where only the structure is asked for; then nothing is compared.
        like: a network that came from the file: its inputs say what `shape` would.
        check: compare every output of the network with the file's in ONNX Runtime, on noise of several scales.

    Raises:
        SurgeryError: it is no model, or one in memory that no file can hold.
        CheckpointError: the file is missing or damaged.
        UnsupportedError: it holds what is not followed: quantisation of another kind, sequences.
        SpecError: the file leaves the shape of an input open, and none is given, or one that does not fit.
        TraceError: an operator cannot be followed or run.
        CheckFailedError: what was read does not compute what the file does; the first node that differs is named. Or
            the file gives what is not a number.
    """
    given = given_model(model)
    try:
        with given.named():
            found = _imported(given.path, shape, weights, check, like)
    except SurgeryError:
        given.remove()
        raise
    except Exception as cause:  # the file may be anything, so anything may be wrong with it
        given.remove()
        raise CheckpointError(
            f"{given.name}: cannot be read as a network ({type(cause).__name__}: {one_line(cause)})"
        ) from cause
    given.kept_with(found.file)
    return found


def _record(file: OnnxProgram, path: Path) -> dict[str, Any]:
    """What the lineage says of the import."""
    record: dict[str, Any] = {"pass": "import", "file": path.name, "operators": len(file.operators)}
    record |= {"quantised": file.quantised} if file.quantised else {}
    record |= {} if file.precision.is_single else {"stored": file.precision.words}
    images = find(lineage_in(file.model), str(path))
    return record | ({} if images is None else {"preprocessing": images.as_dict()})


def _imported(path: Path, shape: Given | None, weights: bool, check: bool, like: ModelGraph | None) -> Imported:
    file = read_program(path)
    inputs = plan_inputs(file.path, file.inputs, shape if like is None else _shapes_like(file, like))
    try:
        network = network_of(file, inputs, weights=weights)
        file.weights.release()
        network.plan.recorded = True
        graph = trace(network, list(inputs.examples.values()), copy=False, check=False)  # `compare` asks the file
    except SurgeryError as cause:
        raise type(cause)(f"{path}: {cause}") from cause
    network.plan.recorded = False
    graph = _described(graph, inputs, weights=weights)
    # Last, as a reason of our own names the operator.
    refused = complaint(file.path, file.model, file.weights, by_path=not file.as_stored)
    if refused:
        raise CheckpointError(f"{path}: ONNX Runtime does not open it: {refused}")
    values = {}
    for node in graph.module.graph.nodes:
        for name in node.meta.pop("onnx", ()):
            values[name] = node.name
    imported = Imported(
        graph=replace(graph, lineage=(_record(file, path),)),
        file=file,
        module=network,
        sources=network.plan.sources,
        origins=origins_of(graph.module.graph),
        values=values,
        layers=network.plan.layers,
        readers=network.plan.readers,
        lengths=network.plan.lengths,
        fixed=network.plan.fixed,
        batch=inputs.batch,
    )
    if weights and check:
        compare(imported)
    return imported


def _shapes_like(file: OnnxProgram, graph: ModelGraph) -> dict[str, list[int]]:
    """The shapes of the inputs that a network has, where the file leaves them open."""
    if len(file.inputs) != len(graph.inputs):
        raise SurgeryError(
            f"{file.path}: takes {len(file.inputs)} inputs, the network {len(graph.inputs)}; give the file it came from"
        )
    found = {}
    for value, spec in zip(file.inputs, graph.inputs, strict=True):
        own = axes_of(value, file.path)
        sizes = spec.shape if len(spec.shape) == len(own) else [0] * len(own)
        found[value.name] = [n if axis.size is None else axis.size for axis, n in zip(own, sizes, strict=True)]
    return found


def _described(graph: ModelGraph, inputs: FileInputs, *, weights: bool) -> ModelGraph:
    """With what is known of its inputs: which have a batch, and which indices the network takes."""
    specs = [replace(spec, batched=batched) for spec, batched in zip(graph.inputs, inputs.batched, strict=True)]
    graph = replace(graph, inputs=tuple(specs))
    if not weights:
        return graph
    found = ranges_of(graph, graph.batch)
    ranges = [found.of(number, spec) or (0, 0) for number, spec in enumerate(specs)]
    limited = [replace(spec, low=low, high=high) for spec, (low, high) in zip(specs, ranges, strict=True)]
    return replace(graph, inputs=tuple(limited))


def compare(imported: Imported, *, rtol: float = 1e-4) -> OnnxCheck:
    """Compare every output of a network with the file that it was read from, in ONNX Runtime.

    Raises:
        CheckFailedError: they differ; the first node of the file that does is named.
        SurgeryError: ONNX Runtime does not read or run the file.
    """
    file, path = imported.file, imported.file.path
    batches = imported.batches or (2,)
    arrays = {name: partial(np.asarray, array) for name, array in file.weights.arrays.items()}
    with nullcontext(path) if file.as_stored else passing_file(file.model, arrays) as single:
        found = check_onnx(
            imported.graph, single, batches=batches, rtol=rtol, values=imported.values, raise_on_failure=False
        )
    if found.broken:
        raise CheckFailedError(f"{path}: {found.broken}; give a file whose weights are numbers")
    if not found.holds:
        raise CheckFailedError(f"{path}: what was read does not compute what the file does: {found.failure}")
    return found
