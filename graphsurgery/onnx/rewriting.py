"""An edited network, written back into the `.onnx` file that it came from.

Only what the edit has changed is touched: weights, and the sizes that stand in the file as numbers. Nodes, names,
opset, metadata and free axes stay as they are, and the new file is proved in ONNX Runtime before it is put in place.
"""

from __future__ import annotations

import json
import operator as op
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor, fx

from graphsurgery.atomic import atomic_write
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.checking import OnnxCheck, check_onnx
from graphsurgery.onnx.importing import Imported, import_onnx
from graphsurgery.onnx.reading import Operator
from graphsurgery.onnx.sizes import axes_of

_LARGEST = 2**31 - 1

_Edge = tuple[int, int]
"""An input of a node: the number of the node in the file, and of its input."""


def rewrite_onnx(original: Path | str, graph: ModelGraph, path: Path | str, *, rtol: float = 1e-4) -> OnnxCheck:
    """Write a network that came from a file as that file, with other weights and sizes.

    Args:
        original: the file that the network was imported from; it is not touched, unless `path` is the same.
        graph: the network after passes that resize or reorder (compress, a permutation, widen without norms that mix)
            or training.
        path: the file to write; it is replaced in one step, and only if it does its job.
        rtol: largest deviation of ONNX Runtime from PyTorch, relative to the largest output.

    Returns:
        The comparison in ONNX Runtime, on random inputs of three batch sizes, or of the one that the file fixes.

    Raises:
        SurgeryError: the network has operators that the file has not, or sizes that are not numbers in the file.
        CheckFailedError: the new file would not give what the network gives.
    """
    imported = import_onnx(original, shape=graph.inputs[0].shape[1:] if len(graph.inputs) == 1 else None)
    path = Path(path)
    model = _Rewriting(imported, graph).model()
    fixed = imported.file.inputs[0].type.tensor_type.shape.dim[0]
    batches = (fixed.dim_value,) if fixed.HasField("dim_value") else (1, 3, 8)
    with atomic_write(path) as temporary:
        beside = _save(model, temporary, path)
        complaint = _complaint(temporary)
        if complaint and not _complaint(Path(original)):
            raise SurgeryError(f"{path}: the edited file is not valid: {complaint}")
        try:
            check = check_onnx(graph, temporary, batches=batches, rtol=rtol)
        except SurgeryError as cause:
            raise type(cause)(
                f"{path}: not written, because the edited file does not do what the network does; write a .pt, and "
                f"export that ({one_line(cause, 120)})"
            ) from cause
    assert beside is None or beside.is_file()
    return OnnxCheck(path, check.deviations, check.allowed, check.agreement)


def _save(model: onnx.ModelProto, temporary: Path, path: Path) -> Path | None:
    """Write a model, its weights beside it where one file cannot hold them."""
    if model.ByteSize() <= _LARGEST:
        temporary.write_bytes(model.SerializeToString())
        return None
    beside = path.with_name(f"{path.name}.{int(time.time())}.data")
    onnx.save_model(model, str(temporary), save_as_external_data=True, location=beside.name)
    return beside


def _complaint(path: Path) -> str:
    """What ONNX's checker, which is stricter than the runtimes, says of a file."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as cause:  # the checker's errors have no public base class
        return one_line(cause)
    return ""


class _Rewriting:
    """One file that is given the weights and sizes of a network."""

    def __init__(self, imported: Imported, graph: ModelGraph) -> None:
        self.imported = imported
        self.file = imported.file
        self.graph = graph
        self.old = {node.name: node for node in imported.graph.module.graph.nodes}
        self.new = {node.name: node for node in graph.module.graph.nodes}
        self.edges: dict[_Edge, np.ndarray[Any, Any]] = {}
        self.replaced: dict[str, np.ndarray[Any, Any]] = {}
        self.written: dict[tuple[_Edge, int], int] = {}
        self.attributes: dict[tuple[int, str], Any] = {}

    def model(self) -> onnx.ModelProto:
        """The file, edited."""
        self._refuse_new_operators()
        self._weights()
        for operator in self.file.operators:
            self._numbers(operator)
        model = onnx.ModelProto()
        model.CopyFrom(self.file.model)
        _apply(model, self.replaced, self.edges, self.attributes)
        self._shapes(model)
        record = [dict(entry) for entry in self.graph.lineage]
        kept = [entry for entry in model.metadata_props if entry.key != "graphsurgery.lineage"]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        entry = model.metadata_props.add()
        entry.key, entry.value = "graphsurgery.lineage", json.dumps(record, default=str)
        return model

    def _refuse_new_operators(self) -> None:
        """What a pass has put into the network has no place in the file."""
        for name, node in self.new.items():
            before = self.old.get(name)
            if before is None and isinstance(node.meta.get("value"), Tensor) and node.target is not op.getitem:
                raise SurgeryError(
                    f"{self.file.path}: {name} ({_word(node)}) is new, and nothing is put between the nodes of a file; "
                    "write a .pt, and export that"
                )
            if (
                before is not None
                and _word(before) != _word(node)
                and {_word(before), _word(node)} != {"chunk", "split"}
            ):
                raise SurgeryError(
                    f"{self.file.path}: {name} has become {_word(node)}, which the file has no operator for; "
                    "write a .pt, and export that"
                )

    def _weights(self) -> None:
        """The constants that are parameters; one that several layers share by chance is split where they differ."""
        tensors = self.graph.tensors()
        found: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        for path, source in self.imported.sources.items():
            if path in tensors:
                old = self.file.constants[source.constant]
                found.setdefault(source.constant, {})[path] = source.written(tensors[path], old)
        for constant, arrays in found.items():
            old, (first, *rest) = self.file.constants[constant], arrays.values()
            if all(np.array_equal(first, other) for other in rest):
                if not np.array_equal(first, old):
                    self.replaced[constant] = first
                continue
            for path, array in arrays.items():
                for edge in self._readers(path, constant):
                    self.edges[edge] = array

    def _readers(self, path: str, constant: str) -> Iterable[_Edge]:
        """The inputs that a parameter is read by."""
        index = self.imported.readers[path]
        node = self.file.model.graph.node[index]
        for at, name in enumerate(node.input):
            if self.file.name(name) == constant:
                yield index, at

    def _numbers(self, operator: Operator) -> None:
        """Sizes and counts that stand as numbers in the file."""
        if operator.kind in ("Conv", "ConvTranspose", "GroupNormalization") and operator.index in self.imported.layers:
            module: Any = self.graph.module.get_submodule(self.imported.layers[operator.index])
            if operator.kind == "GroupNormalization":
                self.attributes[operator.index, "num_groups"] = module.num_groups
            elif module.groups != operator.attributes.get("group", 1):
                self.attributes[operator.index, "group"] = module.groups
        before, after = self._value(self.old, operator.outputs[0]), self._value(self.new, operator.outputs[0])
        if before is None or after is None:
            return
        if operator.kind == "Reshape":
            self._reshape(operator, before, after)
        elif operator.kind == "Split":
            self._split(operator)
        elif operator.kind == "Slice":
            self._slice(operator, before, after)
        elif tuple(before.meta["value"].shape) != tuple(after.meta["value"].shape):
            at = {"Expand": 1, "ConstantOfShape": 0, "Resize": 3}.get(operator.kind)
            if at is not None and at < len(operator.inputs) and operator.inputs[at]:
                self._shape(operator, at, before.meta["value"].shape, after.meta["value"].shape)

    def _value(self, nodes: Mapping[str, fx.Node], name: str) -> fx.Node | None:
        """The node that computes a tensor of the file."""
        node = nodes.get(self.imported.values.get(name, ""))
        return node if node is not None and isinstance(node.meta["value"], Tensor) else None

    def _shape(self, operator: Operator, at: int, before: Any, after: Any) -> None:
        """The entries of a shape that have changed."""
        offset = len(before) - self._length(operator.inputs[at])
        for axis, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new and axis >= offset:
                self._set(operator, at, axis - offset, old, new)

    def _known(self, name: str) -> np.ndarray[Any, Any] | None:
        """Numbers that stand in the file, or that it computes from such alone."""
        found = self.file.constants.get(name)
        return self.imported.fixed.get(name) if found is None else found

    def _length(self, name: str) -> int:
        """How many sizes there are under a name."""
        name = self.file.name(name)
        return self.file.constants[name].size if name in self.file.constants else self.imported.lengths[name]

    def _reshape(self, operator: Operator, before: fx.Node, after: fx.Node) -> None:
        """The entries of the target that are other numbers now, or are numbers now."""
        old, new = _entries(before), _entries(after)
        if old is None or new is None or len(old) != len(new):
            if tuple(before.meta["value"].shape) != tuple(after.meta["value"].shape):
                raise SurgeryError(f"{self.file.path}: {operator.name} is written in another way now")
            return
        for place, (was, now) in enumerate(zip(old, new, strict=True)):
            if isinstance(now, int) and was != now:
                self._write(operator, *self._locate((operator.index, 1), place), now)

    def _split(self, operator: Operator) -> None:
        axis = operator.attributes.get("axis", 0)
        nodes = [(self._value(self.old, name), self._value(self.new, name)) for name in operator.outputs]
        if any(before is None or after is None for before, after in nodes):
            return
        sizes = [
            (b.meta["value"].shape[axis], a.meta["value"].shape[axis])
            for b, a in nodes
            if a is not None and b is not None
        ]
        if all(old == new for old, new in sizes):
            return
        if "split" in operator.attributes:
            self.attributes[operator.index, "split"] = [new for _, new in sizes]
        elif len(operator.inputs) > 1 and operator.inputs[1]:
            for index, (old, new) in enumerate(sizes):
                self._set(operator, 1, index, old, new)
        elif len({new for _, new in sizes}) > 1:
            raise SurgeryError(f"{self.file.path}: {operator.name} splits evenly, and its parts are no longer alike")

    def _slice(self, operator: Operator, before: fx.Node, after: fx.Node) -> None:
        if before.target is not op.getitem or before.args[1] == after.args[1]:
            return
        axes = (
            axes_of(operator, self.file.constants.get(self.file.name(operator.inputs[3])))
            if ("axes" in operator.attributes or len(operator.inputs) > 3)
            else None
        )
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
                else:
                    self._set(operator, at, place, was, now)

    def _set(self, operator: Operator, at: int, place: int, old: int, new: int) -> None:
        """Put a number where an entry of an input stands, unless the file computes it."""
        edge, entry = self._locate((operator.index, at), place)
        name = self.file.name(self.file.model.graph.node[edge[0]].input[edge[1]])
        known = self._known(name)
        if known is not None and known.reshape(-1)[entry] == old:
            self._write(operator, edge, entry, new)

    def _write(self, operator: Operator, edge: _Edge, entry: int, new: int) -> None:
        """Put a number in a constant, or in place of one that the file computes."""
        name = self.file.name(self.file.model.graph.node[edge[0]].input[edge[1]])
        old = self._known(name)
        if old is None and self._length(name) > 1:
            raise SurgeryError(f"{self.file.path}: {operator.name} computes a shape in which a size has become {new}")
        array = self.edges.setdefault(edge, np.zeros(1, np.int64) if old is None else old.copy())
        if self.written.setdefault((edge, entry), new) != new:
            raise SurgeryError(f"{self.file.path}: {operator.name} shares a shape with others that need {array}")
        array.reshape(-1)[entry] = new

    def _locate(self, edge: _Edge, place: int) -> tuple[_Edge, int]:
        """The constant in which an entry of a shape stands, and its place there; or the input that is computed."""
        name = self.file.name(self.file.model.graph.node[edge[0]].input[edge[1]])
        maker = self._makers.get(name)
        if name in self.file.constants or maker is None or maker.kind != "Concat":
            return edge, place
        for at, part in enumerate(maker.inputs):
            length = self._length(part)
            if place < length:
                return self._locate((maker.index, at), place)
            place -= length
        return edge, place

    @cached_property
    def _makers(self) -> dict[str, Operator]:
        return {name: operator for operator in self.file.operators for name in operator.outputs}

    def _shapes(self, model: onnx.ModelProto) -> None:
        """The shapes that a file notes beside its values; those that are no longer known go."""
        kept = []
        for value in model.graph.value_info:
            if self._note(value):
                kept.append(value)
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)
        for value in model.graph.output:
            self._note(value)

    def _note(self, value: onnx.ValueInfoProto) -> bool:
        """Bring the shape that is noted for a value up to date; whether the value is known."""
        name = self.file.name(value.name)
        before, after = self._value(self.old, name), self._value(self.new, name)
        dims = value.type.tensor_type.shape.dim
        if before is None or after is None or len(dims) != before.meta["value"].dim():
            return False
        for size, old, new in zip(dims, before.meta["value"].shape, after.meta["value"].shape, strict=True):
            if size.HasField("dim_value") and size.dim_value == old:
                size.dim_value = new
        return True


def _apply(
    model: onnx.ModelProto,
    replaced: Mapping[str, np.ndarray[Any, Any]],
    edges: Mapping[_Edge, np.ndarray[Any, Any]],
    attributes: Mapping[tuple[int, str], Any],
) -> None:
    """Put new constants and attributes into a model."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.name in replaced:
            tensor.CopyFrom(numpy_helper.from_array(replaced[tensor.name], tensor.name))
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in replaced:
            _fill(node, replaced[node.output[0]])
    taken = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    count: Counter[str] = Counter()
    for (index, at), array in edges.items():
        name = graph.node[index].input[at]
        new = name
        while new in taken:
            count[name] += 1
            new = f"{name}_{count[name]}"
        taken.add(new)
        graph.node[index].input[at] = new
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), new))
    for (index, name), number in attributes.items():
        node = graph.node[index]
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, number)])


def _fill(node: onnx.NodeProto, array: np.ndarray[Any, Any]) -> None:
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(array)))


def _word(node: fx.Node) -> str:
    """What a node does, in one word."""
    if node.op in ("placeholder", "output", "get_attr", "call_module"):
        return node.op
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _entries(node: fx.Node) -> list[Any] | None:
    """The target of a reshape: numbers, and nodes that compute one."""
    given = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (list, tuple)) else node.args[1:]
    return list(given) if node.target == "reshape" and isinstance(given, (list, tuple)) else None


def _tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)
