"""Where an `.onnx` file departs from the network: the first node that computes something else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.exporting.exporter import export_program
from graphsurgery.onnx.runtime.sessions import open_session, run_session

_Values = dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """A node of an ONNX file that does not compute what PyTorch computes, though all that come before it do.

    Attributes:
        node: its name.
        operator: its operator.
        layer: the layer whose weights it reads; empty where their names do not tell.
        value: the name of the output that differs.
        deviation: `max |ONNX - PyTorch| / max |PyTorch|` of that output; infinite where shapes or dtypes differ.
        between: nodes between it and the last one that agrees, whose values PyTorch does not have.
    """

    node: str
    operator: str
    layer: str
    value: str
    deviation: float
    between: tuple[str, ...] = ()

    def __str__(self) -> str:
        layer = f" of {self.layer}" if self.layer else ""
        between = f", or one of {len(self.between)} before it, from {self.between[0]}" if self.between else ""
        return f"{self.node} ({self.operator}{layer}), by {self.deviation:.1e}{between}"


def first_difference(
    graph: ModelGraph,
    path: Path | str,
    inputs: Sequence[Tensor],
    *,
    rtol: float = 1e-4,
    values: Mapping[str, str] | None = None,
) -> Difference | None:
    """The first node of a file, in the order in which they run, whose output differs from PyTorch's.

    The exporter names values after the nodes of its own program, which is run in PyTorch, node by node, on the same
    inputs. Where the optimiser made values of its own, they are compared with those of a fresh export.

    Args:
        graph: the network; it is not modified.
        path: the file that was exported from it, weights in other files included.
        inputs: each `[batch, ...]`; every value is kept, so a small batch is enough.
        rtol: largest deviation allowed, relative to the largest magnitude of each value.
        values: of a file that the network was read from, the node of the network that computes a value of the file, by
            the value's name.

    Returns:
        None where every value agrees, taken by itself.

    Raises:
        SurgeryError: ONNX Runtime cannot run the file with all its values as outputs.
    """
    inputs = [x.cpu().float() if x.is_floating_point() else x.cpu() for x in inputs]
    model = onnx.load(path)
    expected = _of_export(graph, model, path, inputs) if values is None else _of_network(graph, values, inputs)
    found = _values_in_runtime(model, str(path), inputs)
    between: list[str] = []
    for node in model.graph.node:
        shared = [name for name in node.output if name in expected and name in found]
        for name in shared:
            deviation = _deviation(found[name], expected[name])
            if deviation > rtol:
                return _difference(model, node, name, deviation, between)
        between = [] if shared else [*between, node.name]
    return None


def _of_export(graph: ModelGraph, model: onnx.ModelProto, path: Path | str, inputs: Sequence[Tensor]) -> _Values:
    """The values of a fresh export, and those of the program that it was made from."""
    program = export_program(graph, next((o.version for o in model.opset_import if o.domain == ""), None))
    fresh = program.model_proto
    expected = _values_in_runtime(fresh, f"{path}, exported again", inputs)
    if program.exported_program is not None:
        computed = _values_in_torch(program.exported_program, inputs)
        expected |= {name: value for name, value in computed.items() if isinstance(value, Tensor)}
    # The outputs have got names of their own.
    renamed = zip(model.graph.output, fresh.graph.output, strict=False)
    return expected | {ours.name: expected[theirs.name] for ours, theirs in renamed if theirs.name in expected}


def _of_network(graph: ModelGraph, values: Mapping[str, str], inputs: Sequence[Tensor]) -> _Values:
    """The values of the network by the names that they have in the file."""
    recording = _Recording(graph.module)
    with torch.no_grad():
        recording.run(*inputs)
    found = {name: recording.values.get(node) for name, node in values.items()}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _difference(
    model: onnx.ModelProto, node: onnx.NodeProto, value: str, deviation: float, between: Sequence[str]
) -> Difference:
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = {name.rpartition(".")[0] for name in node.input if name in weights} - {""}
    layer = layers.pop() if len(layers) == 1 else ""
    return Difference(node.name, node.op_type, layer, value, deviation, tuple(between))


def _values_in_runtime(model: onnx.ModelProto, where: str, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Every value of the main graph, in ONNX Runtime."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    given = {value.name for value in whole.graph.output}
    names = [name for node in whole.graph.node for name in node.output if name]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    session = open_session(where, threads=torch.get_num_threads(), content=whole.SerializeToString())
    feed = dict(zip((value.name for value in session.get_inputs()), inputs, strict=True))
    return dict(zip(names, run_session(session, feed, where, names), strict=True))


class _Recording(fx.Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n.name] = value = super().run_node(n)
        return value


def _values_in_torch(program: ExportedProgram, inputs: Sequence[Tensor]) -> Mapping[str, Any]:
    """Every value of an exported program, in PyTorch."""
    given = iter(inputs)
    arguments = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            arguments.append(next(given))
        else:
            held: Mapping[str, Any] = program.state_dict if spec.target in program.state_dict else program.constants
            arguments.append(held[str(spec.target)])
    recording = _Recording(program.graph_module)
    with torch.no_grad():
        recording.run(*arguments)
    return recording.values


def _deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest finite magnitude; equal infinities do not differ."""
    if found.shape != expected.shape:
        return math.inf
    a, b = found.detach().double(), expected.detach().double()
    differ = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(differ.any()):
        return 0.0
    difference = float((a - b)[differ].abs().max())
    scale = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0
    return difference / scale if scale > 0 and math.isfinite(difference) else math.inf
