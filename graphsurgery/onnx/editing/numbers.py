"""Sizes and counts that stand as numbers in a file, and are others after an edit."""

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
from graphsurgery.onnx.importing.recurrent import RECURRENT, STATES_AT, is_start
from graphsurgery.onnx.importing.sizes import axes_of

_GROUPS_AT = 6
"""Where torch's convolutions have their groups."""

_ATTENTION = ("com.microsoft.MultiHeadAttention", "com.microsoft.GroupQueryAttention")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")


class Numbers:
    """The numbers of one file that a network has others for.

    A file says `Reshape(x, target)`, and `target` is what `Concat(batch, [12, 64])` gives: 12 heads of 64. Now 8 heads
    are left. The network says so itself: its `reshape(x, batch, 12, 64)` has become `reshape(x, batch, 8, 64)`. Entry 1
    is another number (`_reshape`), so it is looked for in the file, and put there (`places`).

    A number that the file computes (`Shape`, `Gather`, `Mul`, …) and that gives the new size by itself is left alone;
    where it does not, a constant takes its place. Where one input would have to be two numbers, the edit is refused.

    Args:
        imported: what the file was.
        graph: what has become of it.

    Attributes:
        places: constants for single inputs.
        attributes: of operators, by the number of the node and the name; None for one that goes.
    """

    def __init__(self, imported: Imported, graph: ModelGraph) -> None:
        self.imported, self.file, self.graph = imported, imported.file, graph
        self.old = {node.name: node for node in imported.graph.module.graph.nodes}
        self.new = {node.name: node for node in graph.module.graph.nodes}
        self.places = Places(imported)
        self.attributes: dict[tuple[int, str], Any] = {}

    def find(self, stays: Callable[[Operator], bool]) -> None:
        """Find them in the operators that stay.

        Raises:
            UnsupportedError: one is no number in the file.
        """
        for operator in self.file.operators:
            if stays(operator):
                self._of(operator)

    def _of(self, operator: Operator) -> None:
        if operator.kind == "Split":
            self._split(operator)
            return
        if operator.kind in RECURRENT:
            self._recurrent(operator)
            return
        before, after = self.value(self.old, operator.outputs[0]), self.value(self.new, operator.outputs[0])
        if before is None or after is None:
            return
        if operator.kind in ("Conv", "ConvTranspose", "GroupNormalization"):
            self._groups(operator, after)
        elif operator.kind in _ATTENTION:
            self._heads(operator, before, after)
        elif operator.kind == "Reshape":
            self._reshape(operator, before, after)
        elif operator.kind == "Slice":
            self._slice(operator, before, after)
        elif tuple(before.meta["value"].shape) != tuple(after.meta["value"].shape):
            at = {"Expand": 1, "ConstantOfShape": 0, "Resize": 3, "MaxUnpool": 2}.get(operator.kind)
            if at is not None and at < len(operator.inputs) and operator.inputs[at]:
                self._shape(operator, at, before.meta["value"].shape, after.meta["value"].shape)

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

    def _shape(self, operator: Operator, at: int, before: Any, after: Any) -> None:
        """The entries of a shape that have changed."""
        offset = len(before) - self.places.length(operator.inputs[at])
        for axis, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new and axis >= offset:
                self.places.replace(operator, at, axis - offset, old, new)

    def _reshape(self, operator: Operator, before: fx.Node, after: fx.Node) -> None:
        """The entries of the target that are other numbers now, or are numbers now."""
        old, new = _entries(before), _entries(after)
        if old is None or new is None or len(old) != len(new):
            if tuple(before.meta["value"].shape) != tuple(after.meta["value"].shape):
                raise UnsupportedError(f"{self.file.path}: {operator.name} is written in another way now")
            return
        for place, (was, now) in enumerate(zip(old, new, strict=True)):
            if isinstance(now, int) and was != now:
                self.places.put(operator, 1, place, now)

    def _split(self, operator: Operator) -> None:
        """The sizes of the parts; where they have been even, and are not any more, they get to be numbers."""
        before, after = self._parts(self.old, operator), self._parts(self.new, operator)
        if before is None or after is None or before == after:
            return
        if "split" in operator.attributes:
            self.attributes[operator.index, "split"] = after
        elif len(operator.inputs) > 1 and operator.inputs[1]:
            for index, (old, new) in enumerate(zip(before, after, strict=True)):
                self.places.replace(operator, 1, index, old, new)
        elif len(set(after)) > 1 and ("num_outputs" not in operator.attributes or after != _even(after)):
            self.attributes[operator.index, "num_outputs"] = None
            if operator.opset < 13:
                self.attributes[operator.index, "split"] = after
            else:
                self.places.edges[operator.index, 1] = np.array(after, np.int64)

    def _groups(self, operator: Operator, after: fx.Node) -> None:
        """The number of groups of a layer, or of a function that takes it as its last or last but one argument."""
        if after.op == "call_module":
            module: Any = self.graph.module.get_submodule(str(after.target))
            count = module.num_groups if operator.kind == "GroupNormalization" else module.groups
        elif operator.kind != "GroupNormalization" and len(after.args) > _GROUPS_AT:
            count = after.args[_GROUPS_AT]
        else:
            return
        name, usual = ("num_groups", None) if operator.kind == "GroupNormalization" else ("group", 1)
        if count != operator.attributes.get(name, usual):
            self.attributes[operator.index, name] = count

    def _recurrent(self, operator: Operator) -> None:
        """The number of hidden units, and of the zeros that it may start with."""
        path = self.imported.layers.get(operator.index)
        if path is None:
            return
        before: Any = self.imported.graph.module.get_submodule(path)
        after: Any = self.graph.module.get_submodule(path)
        if before.hidden_size == after.hidden_size:
            return
        if "hidden_size" in operator.attributes:
            self.attributes[operator.index, "hidden_size"] = after.hidden_size
        for at in STATES_AT:
            array = self.file.constants.get(self.file.name(operator.inputs[at])) if at < len(operator.inputs) else None
            if array is not None and is_start(array):
                self.places.edges[operator.index, at] = np.zeros((*array.shape[:-1], after.hidden_size), array.dtype)

    def _heads(self, operator: Operator, before: fx.Node, after: fx.Node) -> None:
        """The number of heads of an attention, and its scale where heads have another size."""
        old, new = (_behind(node, F.scaled_dot_product_attention) for node in (before, after))
        if old is None or new is None:
            return
        heads, size = new.meta["value"].shape[1], new.all_input_nodes[0].meta["value"].shape[-1]
        if heads != old.meta["value"].shape[1]:
            self.attributes[operator.index, "num_heads"] = int(heads)
        if "kv_num_heads" in operator.attributes:
            groups = int(new.all_input_nodes[1].meta["value"].shape[1])
            if groups != operator.attributes["kv_num_heads"]:
                self.attributes[operator.index, "kv_num_heads"] = groups
        if size != old.all_input_nodes[0].meta["value"].shape[-1] and not operator.attributes.get("scale"):
            scale = new.kwargs.get("scale")
            self.attributes[operator.index, "scale"] = size**-0.5 if scale is None else scale

    def _parts(self, nodes: Mapping[str, fx.Node], operator: Operator) -> list[int] | None:
        """How much of the axis that is split goes into each output, read or not."""
        for name in operator.outputs:
            part = self.value(nodes, name)
            whole = part.args[0] if part is not None and part.target is op.getitem else None
            if isinstance(whole, fx.Node) and isinstance(whole.meta["value"], (tuple, list)):
                return [int(tensor.shape[operator.attributes.get("axis", 0)]) for tensor in whole.meta["value"]]
        return None

    def _slice(self, operator: Operator, before: fx.Node, after: fx.Node) -> None:
        if before.target is not op.getitem or before.args[1] == after.args[1]:
            return
        known = self.places.known(self.file.name(operator.inputs[3])) if len(operator.inputs) > 3 else None
        axes = axes_of(operator, known)
        if axes is None and len(operator.inputs) > 3:
            raise UnsupportedError(f"{self.file.path}: {operator.name} slices axes that are computed")
        old, new = _tuple(before.args[1]), _tuple(after.args[1])
        rank = before.meta["value"].dim()
        for place, axis in enumerate(range(len(old)) if axes is None else [axis % rank for axis in axes]):
            for word, at, name in (("start", 1, "starts"), ("stop", 2, "ends")):
                was, now = getattr(old[axis], word), getattr(new[axis], word)
                if was == now or not isinstance(now, int):
                    continue
                if name in operator.attributes:
                    key = operator.index, name
                    self.attributes.setdefault(key, list(operator.attributes[name]))[place] = now
                elif isinstance(was, fx.Node):
                    self.places.put(operator, at, place, now)
                else:
                    self.places.replace(operator, at, place, was, now)


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


def _entries(node: fx.Node) -> list[Any] | None:
    """The target of a reshape: numbers, and nodes that compute one."""
    given = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (list, tuple)) else node.args[1:]
    return list(given) if node.target == "reshape" and isinstance(given, (list, tuple)) else None


def _tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)
