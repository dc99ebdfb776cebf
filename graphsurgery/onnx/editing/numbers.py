"""Sizes and counts that a file says otherwise than by the arguments of a network, and that are others after an edit."""

from __future__ import annotations

import operator as op
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, fx

from graphsurgery.errors import UnsupportedError
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.editing.places import Edge, Places
from graphsurgery.onnx.importing.importer import Imported
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.recurrent import STATES_AT, is_start
from graphsurgery.onnx.importing.sources import FilePlace

_OF_LAYERS = {
    **dict.fromkeys(("Conv", "ConvTranspose"), ("group", "groups")),
    "GroupNormalization": ("num_groups", "num_groups"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), ("hidden_size", "hidden_size")),
}  # fmt: skip
"""The attribute of an operator that is one of its layer, and what it is called there."""
_SHAPES_AT = {"Expand": 1, "Resize": 3, "MaxUnpool": 2}
"""The input that is the shape of what an operator gives, though no argument of the network."""
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")


class Numbers:
    """The numbers of one file that a network has others for, and that no argument says.

    Args:
        imported: what the file was.
        graph: what has become of it.
        places: of the numbers.
    """

    def __init__(self, imported: Imported, graph: ModelGraph, places: Places) -> None:
        self.imported, self.file, self.graph, self.places = imported, imported.file, graph, places
        self.old = {node.name: node for node in imported.graph.module.graph.nodes}
        self.new = {node.name: node for node in graph.module.graph.nodes}

    def find(self, stays: Callable[[Operator], bool]) -> None:
        """Find them in the operators that stay."""
        for operator in filter(stays, self.file.operators):
            if operator.index in self.imported.layers:
                self._layer(operator, self.imported.layers[operator.index])
            elif operator.kind == "Split":
                self._even_split(operator)
            elif operator.kind.startswith("com.microsoft.") and "num_heads" in operator.attributes:
                self._attention(operator)
            elif _SHAPES_AT.get(operator.kind, len(operator.inputs)) < len(operator.inputs):
                self._shape(operator, _SHAPES_AT[operator.kind])

    def computed(self, stays: Callable[[Operator], bool]) -> dict[Edge, tuple[str, np.ndarray[Any, Any]]]:
        """The numbers that the network calculates with, and the file computes: the name there, and the numbers."""
        found = {}
        for operator in self.file.operators:
            node = self.value(self.new, operator.outputs[0])
            if operator.kind not in _ARITHMETIC or node is None or len(node.args) != 2 or not stays(operator):
                continue
            for at, (name, operand) in enumerate(zip(map(self.file.name, operator.inputs), node.args, strict=True)):
                if name in self.imported.lengths and isinstance(operand, (int, float)):
                    found[operator.index, at] = name, np.asarray(operand)
                elif name in self.imported.lengths and isinstance(operand, fx.Node) and operand.op == "get_attr":
                    found[operator.index, at] = name, self._tensors[str(operand.target)].detach().cpu().numpy()
                elif name in self.imported.lengths and isinstance(operand, fx.Node) and operand.name not in self.old:
                    raise UnsupportedError(
                        f"{self.file.path}: {operator.name} calculates with a number that holds a width and the batch;"
                        " leave out the spaces that it is computed from, or write a .pt file"
                    )
        return found

    @cached_property
    def _tensors(self) -> Mapping[str, Tensor]:
        return self.graph.tensors()

    def value(self, nodes: Mapping[str, fx.Node], name: str) -> fx.Node | None:
        """The node that computes a tensor of the file."""
        node = nodes.get(self.imported.values.get(name, ""))
        return node if node is not None and isinstance(node.meta["value"], Tensor) else None

    def _pair(self, name: str) -> tuple[fx.Node, fx.Node] | None:
        """The node that computes a tensor of the file, before and after the edit."""
        before, after = self.value(self.old, name), self.value(self.new, name)
        return None if before is None or after is None else (before, after)

    def _shape(self, operator: Operator, at: int) -> None:
        """The entries of the shape that an operator is asked for."""
        pair = self._pair(operator.outputs[0])
        if pair is None or not operator.inputs[at]:
            return
        before, after = (tuple(node.meta["value"].shape) for node in pair)
        offset = len(before) - self.places.length(operator.inputs[at])
        for axis in range(max(0, offset), len(before)):
            place = FilePlace(operator.index, at, axis - offset)
            if before[axis] != after[axis] and self.places.says(place) == before[axis]:
                self.places.want(place, before[axis], after[axis])

    def _even_split(self, operator: Operator) -> None:
        """Parts that have been even, and are not any more, get sizes."""
        if "split" in operator.attributes or (len(operator.inputs) > 1 and operator.inputs[1]):
            return
        parts = next(filter(None, (self._parts(operator, name) for name in operator.outputs)), [])
        if len(set(parts)) < 2 or ("num_outputs" in operator.attributes and parts == _even(parts)):
            return
        self.places.operators.attributes[operator.index, "num_outputs"] = None
        if operator.opset < 13:
            self.places.operators.attributes[operator.index, "split"] = parts
        else:
            self.places.edges[operator.index, 1] = np.array(parts, np.int64)

    def _parts(self, operator: Operator, name: str) -> list[int] | None:
        """How much of the axis that is split goes into each output, read or not."""
        pair = self._pair(name)
        whole = pair[1].args[0] if pair is not None and pair[1].target is op.getitem else None
        if pair is None or not isinstance(whole, fx.Node) or not isinstance(whole.meta["value"], (tuple, list)):
            return None
        axis, before = operator.attributes.get("axis", 0), pair[0].args[0].meta["value"]  # type: ignore[union-attr]
        parts = [int(tensor.shape[axis]) for tensor in whole.meta["value"]]
        return None if parts == [int(tensor.shape[axis]) for tensor in before] else parts

    def _layer(self, operator: Operator, path: str) -> None:
        """A count that is an attribute of a layer, and the zeros that a recurrent one may start with."""
        if operator.kind not in _OF_LAYERS:
            return
        name, called = _OF_LAYERS[operator.kind]
        layers = (graph.module.get_submodule(path) for graph in (self.imported.graph, self.graph))
        old, new = (getattr(layer, called) for layer in layers)
        if old == new:
            return
        if called != "hidden_size" or name in operator.attributes:
            self.places.operators.attributes[operator.index, name] = new
        for at in STATES_AT if called == "hidden_size" else ():
            array = self.file.constants.get(self.file.name(operator.inputs[at])) if at < len(operator.inputs) else None
            if array is not None and is_start(array):
                self.places.edges[operator.index, at] = np.zeros((*array.shape[:-1], new), array.dtype)

    def _attention(self, operator: Operator) -> None:
        """The scale of an attention, where heads have another size and it follows that, and widths that were equal."""
        pair = self._pair(operator.outputs[0])
        old, new = (None, None) if pair is None else (_behind(node, F.scaled_dot_product_attention) for node in pair)
        if old is None or new is None:
            return
        before, after = ([node.meta["value"].shape for node in each.all_input_nodes[:3]] for each in (old, new))
        size = after[0][-1]
        if size != before[0][-1] and not operator.attributes.get("scale"):
            scale = new.kwargs.get("scale")
            self.places.operators.attributes[operator.index, "scale"] = size**-0.5 if scale is None else scale
        widths = [shape[1] * shape[3] for shape in after]
        packed = operator.kind == "com.microsoft.Attention" and "qkv_hidden_sizes" not in operator.attributes
        if packed and len(set(widths)) > 1:
            self.places.operators.attributes[operator.index, "qkv_hidden_sizes"] = widths


def _behind(node: fx.Node, function: Any) -> fx.Node | None:
    """The call of a function whose result a node only moves; None where there is none."""
    while node.target is not function:
        if node.op != "call_method" or not node.all_input_nodes:
            return None
        node = node.all_input_nodes[0]
    return node


def _even(parts: Sequence[int]) -> list[int]:
    """What an even split into as many parts would give."""
    size = -(-sum(parts) // len(parts))
    return [max(0, min(size, sum(parts) - index * size)) for index in range(len(parts))]
