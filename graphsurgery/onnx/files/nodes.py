"""What the nodes of an ONNX file are: operators, shapes, parameters, multiply-accumulates."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx

from graphsurgery.errors import CheckpointError, one_line
from graphsurgery.onnx.files.axes import Given, axes_of, given_sizes
from graphsurgery.onnx.files.macs import Shape, macs
from graphsurgery.onnx.files.model_file import SMALL, OnnxFile
from graphsurgery.onnx.files.parameters import Parameters, learnt_inside

_SHOWN = 80


@dataclass(frozen=True)
class OnnxNode:
    """One node, for a batch of one.

    Attributes:
        name: its own, or that of its first output.
        operator: such as `Conv`; with its domain where that is not ONNX's own.
        inputs: names of the values that it reads, weights left out.
        outputs: names of the values that it writes.
        shapes: those of the outputs; None where shape inference finds none.
        weights: the shapes of the weights (initializers) that it reads, by name.
        parameters: learnt numbers that it reads, and those in the graphs inside it; see `Parameters`.
        macs: multiply-accumulates; None where they are not counted.
        attributes: by name, as text; tensors and long lists by a digest.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[Shape | None, ...]
    weights: Mapping[str, tuple[int, ...]]
    parameters: int
    macs: int | None
    attributes: Mapping[str, str]

    @property
    def layer(self) -> str:
        """The layer that its weights belong to, by their names; empty where they do not tell."""
        owners = {name.rpartition(".")[0] for name in self.weights}
        return owners.pop() if len(owners) == 1 else ""


@dataclass(frozen=True)
class OnnxGraph:
    """The nodes of a file in the order in which they run.

    Attributes:
        nodes: the nodes of the main graph.
        inputs: the shapes of the inputs by name, free sizes by their names.
        outputs: the same of the outputs.
        parameters: learnt numbers, as `Parameters` counts them.
        batch: the examples that the file is fixed at; 1 where it is free.
        types: of the inputs and outputs, such as `float`, by name.
    """

    nodes: tuple[OnnxNode, ...]
    inputs: Mapping[str, Shape | None]
    outputs: Mapping[str, Shape | None]
    parameters: int
    batch: int = 1
    types: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of all nodes that are counted, for one example."""
        return sum(node.macs or 0 for node in self.nodes) // self.batch

    @cached_property
    def uncounted(self) -> tuple[str, ...]:
        """The nodes whose multiply-accumulates are not known."""
        return tuple(f"{node.name} ({node.operator})" for node in self.nodes if node.macs is None)


def read_nodes(file: OnnxFile, shapes: Given | None = None, known: Mapping[str, Shape] | None = None) -> OnnxGraph:
    """The nodes of a file, with shapes for a batch of one: a free first axis of the inputs becomes 1.

    Shapes come from ONNX's shape inference. What stands inside branches and loops counts among the parameters only.

    Args:
        file: the file.
        shapes: of its inputs, where it leaves more than the batch free: of one example of its only input, without the
            batch; or whole ones, by name.
        known: shapes of values, where inference finds none.

    Raises:
        CheckpointError: a node or a weight is damaged.
        SpecError: a shape does not fit the input.
    """
    weights = {tensor.name for tensor in file.model.graph.initializer}
    inputs = [value for value in file.model.graph.input if value.name not in weights]
    axes = {value.name: axes_of(value, file.path) for value in inputs} if shapes is not None else {}
    sizes = given_sizes(file.path, axes, shapes)
    try:
        return _read_nodes(file, sizes, known or {})
    except Exception as cause:  # the file may be anything, so anything may be wrong with it
        raise CheckpointError(
            f"{file.path}: its nodes cannot be read ({type(cause).__name__}: {one_line(cause)})"
        ) from cause


def _read_nodes(file: OnnxFile, sizes: Mapping[str, int], known: Mapping[str, Shape]) -> OnnxGraph:
    graph = file.model.graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    weights |= {sparse.values.name: tuple(sparse.dims) for sparse in graph.sparse_initializer}
    shapes = {**_shapes(file.model, sizes), **known, **weights}
    learnt = Parameters(graph)
    nodes = [_node(node, weights, shapes, learnt) for node in graph.node]
    inside = sum(map(learnt_inside, graph.node))
    return OnnxGraph(
        nodes=tuple(nodes),
        inputs={value.name: _declared(value) for value in graph.input if value.name not in weights},
        outputs={value.name: _declared(value) for value in graph.output},
        parameters=learnt.total(graph.node) + inside,
        batch=fixed_batch([value for value in graph.input if value.name not in weights]),
        types={value.name: _type(value) for value in (*graph.input, *graph.output)},
    )


def _node(
    node: onnx.NodeProto, weights: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Shape | None], learnt: Parameters
) -> OnnxNode:
    outputs = tuple(name for name in node.output if name)
    return OnnxNode(
        name=node.name or (outputs[0] if outputs else node.op_type),
        operator=node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}",
        inputs=tuple(name for name in node.input if name and name not in weights),
        outputs=outputs,
        shapes=tuple(shapes.get(name) for name in outputs),
        weights={name: weights[name] for name in node.input if name in weights},
        parameters=sum(count for _, count in learnt.of(node)) + learnt_inside(node),
        macs=macs(node, shapes),
        attributes={attribute.name: _text(attribute) for attribute in node.attribute},
    )


def fixed_batch(inputs: Sequence[onnx.ValueInfoProto]) -> int:
    """The number of examples that a file is fixed at; 1 where it leaves it open, or no first axis is one."""
    firsts = {axes[0].dim_value for value in inputs if (axes := value.type.tensor_type.shape.dim)}
    return max(1, firsts.pop()) if len(firsts) == 1 else 1


def shape_text(shape: Shape | None) -> str:
    """A shape for people: `[1, 64, 56, 56]`, with `?` for what is not known."""
    return "?" if shape is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _shapes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, Shape | None]:
    """The shapes of all values, with these sizes of free axes, and a batch of one where there is none among them."""
    light = _without_weights(model)
    known = dict(sizes)
    inputs = [
        (place, axis.dim_param or f"{value.name}[{place}]", axis)
        for value in light.graph.input
        for place, axis in enumerate(value.type.tensor_type.shape.dim)
    ]
    for place, name, axis in inputs:
        if place == 0 and axis.dim_value <= 0:
            known.setdefault(name, 1)
    others = (*light.graph.value_info, *light.graph.output)
    named = [(axis.dim_param, axis) for value in others for axis in value.type.tensor_type.shape.dim]
    for name, axis in (*((name, axis) for _, name, axis in inputs), *named):
        if axis.dim_value <= 0 and name in known:
            axis.dim_value = known[name]
    # Inference refuses what it does not understand: then the shapes in the file have to do.
    with contextlib.suppress(Exception):
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    return {v.name: _declared(v) for v in (*light.graph.value_info, *light.graph.input, *light.graph.output)}


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large weights have shapes alone."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    for name in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, name).extend(getattr(model.graph, name))
    light.graph.name = model.graph.name or "graph"
    for tensor in model.graph.initializer:
        small = math.prod(tensor.dims) <= SMALL
        empty = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        light.graph.initializer.append(tensor if small else empty)
    return light


def _declared(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    sizes = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in sizes)


def _type(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    return onnx.TensorProto.DataType.Name(kind).lower() if kind else str(value.type.WhichOneof("value") or "?")


def _text(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        text = value.decode(errors="replace")
    elif isinstance(value, int | float):
        # As many digits as tell one from its neighbours.
        text = str(np.float32(value)).removesuffix(".0") if isinstance(value, float) else str(value)
    elif attribute.ints or attribute.floats:
        text = str(list(value))
    else:
        text = ""
    if text and len(text) <= _SHOWN:
        return text
    kind = onnx.AttributeProto.AttributeType.Name(attribute.type).lower()
    content = attribute.SerializeToString(deterministic=True)
    return f"{kind} {hashlib.blake2b(content, digest_size=6).hexdigest()}"
