"""A network as one `.onnx` file."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import fx

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import SurgeryError, UnsupportedError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.network.aliasing import is_harmless
from graphsurgery.network.assembly import as_evaluated, passing_sources, without_keywords
from graphsurgery.network.copying import meta_of, whole_copy
from graphsurgery.network.operators import argument_of
from graphsurgery.network.outputs.records import opened
from graphsurgery.network.paths import has_tensors
from graphsurgery.network.values.evaluation import values_for
from graphsurgery.network.values.packing import STAND_INS
from graphsurgery.onnx.exporting.plain import make_plain
from graphsurgery.onnx.exporting.translations import known_operators
from graphsurgery.onnx.files.model_file import LINEAGE
from graphsurgery.onnx.files.storage import ONE_FILE
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator
from graphsurgery.progress import phase

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        opset: version of the standard operators that it uses.
        inputs: names of the inputs, each `[batch, ...]` with a free batch.
        outputs: names of the outputs.
        nodes: number of operators.
        bytes: size of the file.
        seconds: time of export and check.
    """

    path: Path
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: int
    bytes: int
    seconds: float


@phase("exporting to ONNX")
def export_onnx(graph: ModelGraph, path: Path | str, *, opset: int | None = None, check: bool = True) -> ExportReport:
    """Write a network in float32 and evaluation mode as one ONNX file with a free batch axis.

    Inputs keep their names; a single output `[batch, classes]` is called `logits`, those in a dict have its keys,
    others are `output_0`, … Where an input or an operator has that name, `_out` stands behind it. The file holds no
    paths of this machine; its metadata holds the lineage.

    Args:
        graph: the network, on any device and of any float dtype; it is not modified.
        path: the file, by custom `*.onnx`; it is replaced in one step.
        opset: version of the operators, at least 18; by default the exporter's own choice.
        check: run ONNX's full checker, shapes too, before the file is put in place.

    Raises:
        SurgeryError: the exporter or the checker refuses the network, a batch size is fixed in it, it is larger than
            2 GiB, or the file cannot be written. Nothing is written then.
        UnsupportedError: an operator of the `.onnx` file that the network comes from is kept whole in it.
    """
    started = time.perf_counter()
    whole = [name for name, part in graph.module.named_modules() if isinstance(part, OnnxOperator)]
    if whole:
        raise UnsupportedError(
            f"{path}: the network cannot be exported: {whole[0]} is an operator of an .onnx file that is kept whole; "
            "compress, widen, factorize and deepen write their edits back into the file"
        )
    try:
        model = _exported(graph, opset)
        if model.ByteSize() > ONE_FILE:
            raise SurgeryError(f"it has {model.ByteSize()} bytes, one ONNX file holds at most {ONE_FILE}")
        if check:
            onnx.checker.check_model(model, full_check=True)
    except SurgeryError as cause:
        raise SurgeryError(f"{path}: the network cannot be exported: {cause}") from cause
    except Exception as cause:  # exporter and checker raise whatever their parts raise
        reason = _computed_groups(graph.module) or _reason(cause)
        raise SurgeryError(f"{path}: the network cannot be exported: {reason}") from cause
    content = model.SerializeToString()
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return ExportReport(
        path=Path(path),
        opset=next(entry.version for entry in model.opset_import if entry.domain == ""),
        inputs=tuple(value.name for value in model.graph.input),
        outputs=tuple(value.name for value in model.graph.output),
        nodes=len(model.graph.node),
        bytes=len(content),
        seconds=time.perf_counter() - started,
    )


def export_program(graph: ModelGraph, opset: int | None = None) -> torch.onnx.ONNXProgram:
    """What the exporter makes of a network in float32 and evaluation mode; see `export_onnx`.

    Raises:
        SurgeryError: the exporter gives nothing. Its own errors pass through.
    """
    packing = next((node for node in graph.module.graph.nodes if node.target in STAND_INS), None)
    if packing is not None:
        raise SurgeryError(f"{packing.name}: ONNX has no packed sequences; give the layer padded ones, without lengths")
    # A batch of one would be taken for a constant.
    network = ModelGraph(whole_copy(as_evaluated(graph.module)).cpu().float().eval(), graph.inputs)
    _give_tensors(network.module, _given(graph))
    make_plain(network.module)
    without_keywords(network.module)
    batch = torch.export.Dim("batch")
    with quiet(), passing_sources(), known_operators():
        program = torch.onnx.export(
            network.module,
            network.example_inputs(batch=2),
            input_names=[spec.name for spec in graph.inputs],
            opset_version=opset,
            dynamo=True,
            external_data=False,
            dynamic_shapes=tuple({0: batch} if spec.batched else {} for spec in graph.inputs),
            verbose=False,
        )
    if program is None:
        raise SurgeryError("the exporter gave no program")
    return program


def _given(graph: ModelGraph) -> Any:
    """The tensors that a network gives in evaluation, as nodes in tuples and dicts; a file gives nothing else."""
    module = as_evaluated(graph.module)
    values = {node: node.meta.get("value") for node in module.graph.nodes}
    if any("value" not in node.meta for node in module.graph.nodes):  # it comes from a file
        values = values_for(module, [meta_of(x) for x in graph.example_inputs()], checked=False)
    output = next(node for node in module.graph.nodes if node.op == "output").args[0]
    return _tensors_alone(opened(output), values)


def _tensors_alone(output: Any, values: Mapping[fx.Node, Any]) -> Any:
    if isinstance(output, fx.Node):
        return output if has_tensors(values[output]) else None
    if isinstance(output, dict):
        parts = {key: _tensors_alone(part, values) for key, part in output.items()}
        return {key: part for key, part in parts.items() if part is not None} or None
    if isinstance(output, (tuple, list)):
        found = [_tensors_alone(part, values) for part in output]
        return tuple(part for part in found if part is not None) or None
    return None


def _give_tensors(module: fx.GraphModule, given: Any) -> None:
    """Let a copy of a network give these nodes of the original alone, in place."""
    if given is None:
        raise SurgeryError("it gives no tensor in evaluation, and an ONNX file gives tensors")
    copies = {node.name: node for node in module.graph.nodes}
    output = next(iter(reversed(module.graph.nodes)))
    output.args = (fx.map_arg(given, lambda node: copies[node.name]),)
    for node in reversed(list(module.graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and is_harmless(module, node):
            module.graph.erase_node(node)


def _exported(graph: ModelGraph, opset: int | None) -> onnx.ModelProto:
    program = export_program(graph, opset)
    values = program.model.graph.outputs
    names = _output_names(graph, [None if value.shape is None else len(value.shape) for value in values])
    others = {value.name for node in program.model.graph for value in node.outputs if value not in values}
    taken = {*others, *program.model.graph.initializers, *(value.name for value in program.model.graph.inputs)}
    for value, name in zip(values, names, strict=True):
        value.name = name = _free(name, taken)  # a library may give a `sample` for a `sample`
        taken.add(name)
    model = program.model_proto
    _release(program)
    for value, spec in zip(model.graph.input, graph.inputs, strict=True):
        if not spec.batched:
            continue
        size = value.type.tensor_type.shape.dim[0]
        if not size.dim_param:
            raise SurgeryError(
                f"the batch of input {value.name} is fixed at {size.dim_value} by the network; "
                f"have its forward take the batch size from its input"
            )
    _strip(model)
    note_lineage(model, graph)
    return model


def _release(program: torch.onnx.ONNXProgram) -> None:
    """Free the weights of a program, which is a copy of the network; the program itself waits for the collector."""
    assert program.exported_program is not None
    for tensor in program.exported_program.state_dict.values():
        tensor.data = torch.empty(0, dtype=tensor.dtype)


def note_lineage(model: onnx.ModelProto, graph: ModelGraph) -> None:
    """Put into the metadata of a file how its network came about; other metadata stay."""
    kept = [entry for entry in model.metadata_props if entry.key != LINEAGE]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    lineage = [dict(entry) for entry in graph.lineage]
    model.metadata_props.add(key=LINEAGE, value=json.dumps(lineage, default=str))


def _output_names(graph: ModelGraph, ranks: list[int | None]) -> list[str]:
    """`logits` for a single `[batch, classes]`, the keys of a dict, else `output_0`, …"""
    if ranks == [2]:
        return ["logits"]
    output = _given(graph)
    if isinstance(output, dict) and len(output) == len(ranks) and all(isinstance(v, fx.Node) for v in output.values()):
        return [str(key) for key in output]
    return [f"output_{i}" for i in range(len(ranks))]


def _free(name: str, taken: Collection[str]) -> str:
    """The name itself, or one behind which it says that it is an output: in a file each value has its own."""
    while name in taken:
        name += "_out"
    return name


def _strip(model: onnx.ModelProto) -> None:
    """Remove source lines, paths and comments."""
    del model.metadata_props[:]
    model.doc_string = ""
    for part in (model.graph, *model.functions):
        _strip_graph(part)


def _strip_graph(graph: Any) -> None:
    graph.doc_string = ""
    entries = [graph, *graph.node]
    for field in ("input", "output", "value_info", "initializer"):
        entries += [entry for entry in getattr(graph, field, ()) if not isinstance(entry, str)]
    for entry in entries:
        del entry.metadata_props[:]
        entry.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            attribute.doc_string = ""
            for subgraph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _strip_graph(subgraph)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's progress, advice and deprecations off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _computed_groups(module: fx.GraphModule) -> str:
    """Which convolution has a computed size of groups, as where each example brings its own kernel, if one does."""
    for node in module.graph.nodes:
        if node.target in _CONVOLUTIONS:
            groups = argument_of(node, 6, "groups")
            if isinstance(groups, fx.Node):
                return (
                    f"{node.name}: it has {groups.name} groups, a computed size, and an ONNX file needs a number there"
                )
    return ""


def _reason(cause: BaseException) -> str:
    """The innermost cause of the exporter's nested errors."""
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {one_line(cause, 300)}"
