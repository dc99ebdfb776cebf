"""Files that read or give texts, maps and sequences: these parts are taken off, and put back behind an edit.

Classical models (`ai.onnx.ml`) give labels as texts, and tokenisers read them. What handles these stands in front of
the network or behind it. The network between reads and gives tensors of numbers: those that the parts hand over become
its inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import onnx

from graphsurgery.errors import UnsupportedError
from graphsurgery.onnx.files.model_file import read_outside, replace_all

_TEXT = onnx.TensorProto.STRING
_Message = TypeVar("_Message", onnx.NodeProto, onnx.ValueInfoProto, onnx.TensorProto)


@dataclass(frozen=True)
class Texts:
    """The parts of a model that are no network.

    Attributes:
        front: nodes whose results the network reads.
        behind: nodes that read what the network gives, and all that reads these.
        inputs, outputs: of the whole model.
        initializers: of texts.
        values: the shapes that are noted of values which the network does not compute.
    """

    front: tuple[onnx.NodeProto, ...] = ()
    behind: tuple[onnx.NodeProto, ...] = ()
    inputs: tuple[onnx.ValueInfoProto, ...] = ()
    outputs: tuple[onnx.ValueInfoProto, ...] = ()
    initializers: tuple[onnx.TensorProto, ...] = ()
    values: tuple[onnx.ValueInfoProto, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.front or self.behind)

    def restored(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the model of the network with these parts around it."""
        if not self:
            return model
        found = onnx.ModelProto()
        found.CopyFrom(model)
        graph = found.graph
        weights = {tensor.name for tensor in graph.initializer}
        now = {value.name: value for value in model.graph.output}
        replace_all(graph.node, [*self.front, *model.graph.node, *self.behind])
        replace_all(graph.input, [*self.inputs, *(value for value in model.graph.input if value.name in weights)])
        replace_all(graph.output, [now.get(value.name, value) for value in self.outputs])
        graph.initializer.extend(self.initializers)
        graph.value_info.extend(self.values)
        return found


def take_off(model: onnx.ModelProto, where: str) -> Texts:
    """Leave a model with its network, in place; gives what was taken off, which is empty where all are numbers.

    Raises:
        UnsupportedError: nothing else is in the file, or a part hands the network something whose type is not known.
    """
    graph = model.graph
    kinds = _kinds(model)
    texts = {name for name, value in kinds.items() if _is_text(value)}
    texts |= {tensor.name for tensor in graph.initializer if tensor.data_type == _TEXT}
    if not texts:
        return Texts()
    front, behind = _parts(graph, texts)
    apart = {id(node) for node in (*front, *behind)}
    core = [node for node in graph.node if id(node) not in apart]
    if not core:
        raise UnsupportedError(f"{where}: all its operators read or give texts, maps or sequences; there is no network")
    weights = {tensor.name for tensor in graph.initializer}
    computed, read = _made(core), {name for node in core for name in _read(node)}
    ends = {value.name for value in graph.output}
    wanted = {name for node in behind for name in _read(node)} | ends
    handed = [name for node in front for name in node.output if name in read]
    given = [name for node in core for name in node.output if name in wanted]
    declared = {value.name: value for value in (*kinds.values(), *graph.output)}
    inputs = [value for value in graph.input if value.name in weights or not _is_text(value)]
    found = Texts(
        tuple(map(_copy, front)),
        tuple(map(_copy, behind)),
        tuple(_copy(value) for value in graph.input if value.name not in weights),
        tuple(map(_copy, graph.output)),
        tuple(_copy(tensor) for tensor in graph.initializer if tensor.data_type == _TEXT),
        tuple(_copy(value) for value in graph.value_info if value.name not in computed),
    )
    new_inputs = [*map(_copy, inputs), *(_known(kinds, name, where) for name in handed)]
    new_outputs = [_copy(declared.get(name, onnx.ValueInfoProto(name=name))) for name in given]
    kept = [_copy(value) for value in graph.value_info if value.name in computed]
    tensors = [_copy(tensor) for tensor in graph.initializer if tensor.data_type != _TEXT]
    replace_all(graph.node, list(map(_copy, core)))
    for field, values in (
        (graph.input, new_inputs), (graph.output, new_outputs), (graph.value_info, kept), (graph.initializer, tensors)
    ):  # fmt: skip
        replace_all(field, values)
    return found


def _parts(graph: onnx.GraphProto, texts: set[str]) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """The nodes in front of the network, and those behind it."""
    front, behind = [], []
    numbers, after = set[str](), set[str]()
    for node in graph.node:
        read = set(_read(node))
        if read & after or (texts & {*read, *node.output} and read & numbers):
            behind.append(node)
            after.update(node.output)
        elif texts & {*read, *node.output}:
            front.append(node)
        else:
            numbers.update(node.output)
    return front, behind


def _read(node: onnx.NodeProto) -> list[str]:
    return [name for name in (*node.input, *read_outside(node)) if name]


def _made(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.output if name}


def _is_text(value: onnx.ValueInfoProto) -> bool:
    """Whether a value is no tensor of numbers, as far as that is known."""
    kind = value.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or value.type.tensor_type.elem_type == _TEXT)


def _kinds(model: onnx.ModelProto) -> Mapping[str, onnx.ValueInfoProto]:
    """What is known of the values of a model, by name; nothing is inferred where all that is declared are numbers."""
    graph = model.graph
    declared = [*graph.value_info, *graph.input, *graph.output]
    texts = any(map(_is_text, declared)) or any(tensor.data_type == _TEXT for tensor in graph.initializer)
    if texts or any(node.domain == "ai.onnx.ml" for node in graph.node):
        try:
            found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
            declared = [*found.value_info, *found.input, *found.output]
        except Exception:  # of operators that are not of the standard
            pass
    return {value.name: value for value in declared}


def _known(kinds: Mapping[str, onnx.ValueInfoProto], name: str, where: str) -> onnx.ValueInfoProto:
    """What a part hands to the network."""
    value = kinds.get(name)
    if value is None or not value.type.tensor_type.elem_type:
        raise UnsupportedError(f"{where}: {name} is made of texts, and the file does not say its type")
    return _copy(value)


def _copy(message: _Message) -> _Message:
    found = type(message)()
    found.CopyFrom(message)
    return found
