"""An edited network, written back into the `.onnx` file that it came from.

Only what the edit has changed is touched: weights, the sizes that stand in the file as numbers, and the operators in
whose place there are others (`inserting`). Nodes, names, opset, metadata and free axes stay as they are, and the new
file is proved in ONNX Runtime before it is put in place.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from graphsurgery.atomic import atomic_write
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.checking import OnnxCheck, check_onnx
from graphsurgery.onnx.importing import Imported, import_onnx
from graphsurgery.onnx.inserting import Insertion
from graphsurgery.onnx.numbers import Edge, Numbers

_LARGEST = 2**31 - 1


def rewrite_onnx(original: Path | str, graph: ModelGraph, path: Path | str, *, rtol: float = 1e-4) -> OnnxCheck:
    """Write a network that came from a file as that file, with other weights and sizes.

    Args:
        original: the file that the network was imported from; it is not touched, unless `path` is the same.
        graph: the network after passes that resize, reorder or factorize, or training.
        path: the file to write; it is replaced in one step, and only if it does its job.
        rtol: largest deviation of ONNX Runtime from PyTorch, relative to the largest output.

    Returns:
        The comparison in ONNX Runtime, on random inputs of three batch sizes, or of the one that the file fixes.

    Raises:
        SurgeryError: the network has new operators that there is no writer for (`writers`), or sizes that are not
            numbers in the file.
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
    """One file that is given the operators, weights and sizes of a network."""

    def __init__(self, imported: Imported, graph: ModelGraph) -> None:
        self.imported, self.file, self.graph = imported, imported.file, graph
        self.numbers = Numbers(imported, graph)
        self.insertion = Insertion(imported, graph, self._constant)
        self.replaced: dict[str, np.ndarray[Any, Any]] = {}

    def model(self) -> onnx.ModelProto:
        """The file, edited."""
        self._weights()
        self.insertion.find()
        self.numbers.find(self.insertion.stays)
        model = onnx.ModelProto()
        model.CopyFrom(self.file.model)
        replaced = _apply(model, self.replaced, self.numbers.edges, self.numbers.attributes)
        behind = _behind(model, replaced)
        self.insertion.apply(model)
        _drop_unread(model, behind)
        self._shapes(model)
        record = [dict(entry) for entry in self.graph.lineage]
        kept = [entry for entry in model.metadata_props if entry.key != "graphsurgery.lineage"]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        entry = model.metadata_props.add()
        entry.key, entry.value = "graphsurgery.lineage", json.dumps(record, default=str)
        return model

    def _constant(self, name: str) -> np.ndarray[Any, Any]:
        """What a constant of the file holds after the edit."""
        return self.replaced[name] if name in self.replaced else self.file.constants[name]

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
                    self.numbers.edges[edge] = array

    def _readers(self, path: str, constant: str) -> Iterable[Edge]:
        """The inputs that a parameter is read by."""
        index = self.imported.readers[path]
        node = self.file.model.graph.node[index]
        for at, name in enumerate(node.input):
            if self.file.name(name) == constant:
                yield index, at

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
        before, after = self.numbers.value(self.numbers.old, name), self.numbers.value(self.numbers.new, name)
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
    edges: Mapping[Edge, np.ndarray[Any, Any]],
    attributes: Mapping[tuple[int, str], Any],
) -> set[str]:
    """Put new constants and attributes into a model; gives the values that a constant has taken the place of."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.name in replaced:
            tensor.CopyFrom(numpy_helper.from_array(replaced[tensor.name], tensor.name))
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in replaced:
            _fill(node, replaced[node.output[0]])
    taken = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    old = set()
    for node in graph.node:
        for at, name in enumerate(node.output):
            if name in replaced and node.op_type != "Constant":  # it was computed from constants
                node.output[at] = _fresh(f"{name}_before", taken)
                old.add(node.output[at])
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(replaced[name]), name))
    for (index, at), array in edges.items():
        node = graph.node[index]
        name = node.input[at] if at < len(node.input) else f"{node.name or node.output[0]}/sizes"
        new = _fresh(name, taken)
        node.input[at:] = [new, *node.input[at + 1 :]]
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), new))
    for (index, name), number in attributes.items():
        node = graph.node[index]
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        if number is not None:
            node.attribute.append(onnx.helper.make_attribute(name, number))
    return old


def _fresh(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    new = next(each for each in chain((name,), (f"{name}_{number}" for number in count(1))) if each not in taken)
    taken.add(new)
    return new


def _behind(model: onnx.ModelProto, values: set[str]) -> set[str]:
    """These values and all that they are computed from."""
    found, makers = set(values), {name: node for node in model.graph.node for name in node.output}
    waiting = list(values)
    while waiting:
        node = makers.get(waiting.pop())
        new = {name for name in node.input if name not in found} if node is not None else set()
        found |= new
        waiting += new
    return found


def _drop_unread(model: onnx.ModelProto, values: set[str]) -> None:
    """Remove the nodes and weights that give these values, where nobody reads them."""
    graph = model.graph
    now = _read(model)
    while True:
        gone = [i for i, node in enumerate(graph.node) if values & set(node.output) and not now & set(node.output)]
        if not gone:
            break
        for at in reversed(gone):
            del graph.node[at]
        now = _read(model)
    for at in reversed(range(len(graph.initializer))):
        name = graph.initializer[at].name
        if name in values and name not in now:
            del graph.initializer[at]


def _read(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}


def _fill(node: onnx.NodeProto, array: np.ndarray[Any, Any]) -> None:
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(array)))
