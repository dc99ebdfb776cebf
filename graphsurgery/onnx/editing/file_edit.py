"""The file that an edited network came from, with the network's operators, weights and sizes: a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.helper import tensor_dtype_to_np_dtype

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.editing.inserting import Insertion
from graphsurgery.onnx.editing.numbers import Numbers
from graphsurgery.onnx.editing.operator_changes import declare_weights, drop_behind, drop_unread
from graphsurgery.onnx.editing.places import Edge, Places
from graphsurgery.onnx.exporting.exporter import note_lineage
from graphsurgery.onnx.files.storage import Array, Weights, bare, refill
from graphsurgery.onnx.importing.building import computed_sizes
from graphsurgery.onnx.importing.importer import Imported
from graphsurgery.onnx.importing.reading import program_of
from graphsurgery.onnx.importing.sources import assembled

_ROUNDING = 1e-6


def edited(imported: Imported, graph: ModelGraph) -> onnx.ModelProto:
    """The file that a network came from with the weights and sizes of the network, in memory, not proved.

    Raises:
        SurgeryError: as for `rewrite_onnx`.
    """
    rewriting = FileEdit(imported, graph)
    model = rewriting.model()
    for tensor in model.graph.initializer:
        if tensor.name in rewriting.arrays:
            refill(tensor, rewriting.arrays[tensor.name]())
    return imported.file.texts.restored(imported.file.precision.restored(model, {})[0])


class FileEdit:
    """One file that is given the operators, weights and sizes of a network."""

    def __init__(self, imported: Imported, graph: ModelGraph) -> None:
        self.imported, self.file, self.graph = imported, imported.file, graph
        self.tensors = graph.tensors()
        self.places = Places(imported)
        self.numbers = Numbers(imported, graph, self.places)
        self.insertion = Insertion(imported, graph, self.places, self._constant)
        self.replaced: dict[str, tuple[str, ...]] = {}
        """The parameters that a constant holds by now, one or all its parts, by the constant's name."""
        self.arrays: dict[str, Callable[[], Array]] = {}
        """What gives the numbers of a weight that the model is left without, by its name."""

    def model(self) -> onnx.ModelProto:
        """The file, edited, without its large weights."""
        self._weights()
        self._computed()
        self.insertion.compare()
        self.numbers.find(self.insertion.stays)
        self.places.settle()
        self.insertion.find()
        model = onnx.ModelProto()
        model.CopyFrom(self.file.model)
        replaced = self._put_weights(model)
        self._put_numbers(model)
        self.arrays |= self.insertion.changes().apply(model)
        drop_behind(model, replaced)
        self._settle(model)
        drop_unread(model, self.file.model)
        declare_weights(model)
        self._shapes(model)
        note_lineage(model, self.graph)
        return model

    def _settle(self, model: onnx.ModelProto) -> None:
        """Keep the numbers that the file computes from its shapes, such as the scale of an attention, as they were."""
        computed = self.numbers.computed(self.insertion.stays)
        if not computed or self.imported.batch is not None:
            return
        large = [tensor for tensor in model.graph.initializer if tensor.name in self.arrays]
        kinds = {tensor.name: tensor_dtype_to_np_dtype(tensor.data_type) for tensor in large}
        empty = {tensor.name: np.broadcast_to(np.zeros((), kinds[tensor.name]), tensor.dims) for tensor in large}
        examples = [torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in self.graph.inputs]
        try:
            found = computed_sizes(program_of(model, Weights(empty), self.file.path), examples)
        except SurgeryError:  # the file is not run yet; ONNX Runtime has the last word
            return
        nodes = {name: node for node in model.graph.node for name in node.output}
        outputs = {operator.index: operator.outputs[0] for operator in self.file.operators}
        for (index, at), (name, wanted) in computed.items():
            if name not in found:
                continue
            computed_now = found[name].astype(np.float64)
            fits = wanted.ndim == 0 or wanted.shape == computed_now.shape
            if fits and np.allclose(computed_now, wanted, rtol=_ROUNDING, atol=0):
                continue
            node = nodes[outputs[index]]
            node.input[at] = self.insertion.writer.fresh(f"{name}_before")
            value = self.numbers.value(self.numbers.new, outputs[index])
            floating = value is not None and value.meta["value"].is_floating_point()
            array = wanted if wanted.ndim else np.broadcast_to(wanted, computed_now.shape)
            array = array.astype(np.float32 if floating else np.int64)
            model.graph.initializer.append(numpy_helper.from_array(array, node.input[at]))

    def _constant(self, name: str) -> Array:
        """What a constant of the file holds after the edit."""
        return self._written(self.replaced[name]) if name in self.replaced else self.file.constants[name]

    def _written(self, paths: Sequence[str]) -> Array:
        """A parameter, or the parts of a constant, as the file holds them."""
        sources = [self.imported.sources[path] for path in paths]
        return assembled(sources, [self.tensors[path] for path in paths], self.file.constants[sources[0].constant])

    def _weights(self) -> None:
        """The constants that are parameters; one that several layers share by chance is split where they differ."""
        found: dict[str, dict[tuple[int, bool | str], list[str]]] = {}
        for path, source in self.imported.sources.items():
            if path in self.tensors:
                # The parts of a constant go together; whole ones may be read twice by one node.
                key = self.imported.readers[path], source.part is not None or path
                found.setdefault(source.constant, {}).setdefault(key, []).append(path)
        for constant, readers in found.items():
            first, *others = readers.values()
            array = self._written(first)
            if all(np.array_equal(array, self._written(paths)) for paths in others):
                if not np.array_equal(array, self.file.constants[constant]):
                    self.replaced[constant] = tuple(first)
                continue
            for paths in readers.values():
                for edge in self._readers(paths[0], constant):
                    self.places.edges[edge] = self._written(paths)

    def _computed(self) -> None:
        """Numbers that were computed once when the file was read, and are others now: constants of their readers."""
        before = self.imported.graph.tensors()
        for (index, at), path in self.insertion.plan.made.items():
            if path in self.imported.sources or path not in self.tensors or path not in before:
                continue
            old, new = before[path].detach().cpu(), self.tensors[path].detach().cpu()
            if old.shape != new.shape or not torch.equal(old.to(new.dtype), new):
                self.places.edges[index, at] = new.float().numpy() if new.is_floating_point() else new.numpy()

    def _put_weights(self, model: onnx.ModelProto) -> list[str]:
        """Put the constants that have changed into a model; the large ones are given when it is saved.

        Returns:
            The values that the file has computed from constants, and that are constants now, by their new names.
        """
        large = self.file.weights.arrays
        for tensor in model.graph.initializer:
            name = tensor.name
            if name in large:
                self.arrays[name] = partial(self._constant, name)
                bare(tensor)
                tensor.dims[:] = self._constant(name).shape
            elif name in self.replaced:
                refill(tensor, self._constant(name))
        for node in model.graph.node:
            if node.op_type == "Constant" and node.output[0] in self.replaced:
                _fill(node, self._constant(node.output[0]))
        return [name for node in model.graph.node if node.op_type != "Constant" for name in self._instead(model, node)]

    def _instead(self, model: onnx.ModelProto, node: onnx.NodeProto) -> Iterable[str]:
        """Put constants in place of what a node gives; gives the names that its values have from then on."""
        for at, name in enumerate(node.output):
            if name in self.replaced:
                node.output[at] = self.insertion.writer.fresh(f"{name}_before")
                model.graph.initializer.append(numpy_helper.from_array(self._constant(name), name))
                yield node.output[at]

    def _put_numbers(self, model: onnx.ModelProto) -> None:
        """Put new sizes and attributes into a model."""
        graph = model.graph
        for (index, at), array in self.places.edges.items():
            node = graph.node[index]
            name = node.input[at] if at < len(node.input) else f"{node.name or node.output[0]}/sizes"
            new = self.insertion.writer.fresh(name)
            node.input[at:] = [new, *node.input[at + 1 :]]
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), new))
        for (index, name), number in self.places.attributes.items():
            node = graph.node[index]
            kept = [attribute for attribute in node.attribute if attribute.name != name]
            del node.attribute[:]
            node.attribute.extend(kept)
            if number is not None:
                node.attribute.append(onnx.helper.make_attribute(name, number))

    def _readers(self, path: str, constant: str) -> Iterable[Edge]:
        """The inputs that a parameter is read by."""
        index = self.imported.readers[path]
        node = self.file.model.graph.node[index]
        for at, name in enumerate(node.input):
            if self.file.name(name) == constant:
                yield index, at

    def _shapes(self, model: onnx.ModelProto) -> None:
        """The shapes that a file notes beside its values; those that are no longer known go."""
        noted = [value for value in model.graph.value_info if not self._note(value)]
        inferred = _inferred(model) if noted else {}
        gone = {value.name for value in noted if not _noted_anew(value, inferred.get(value.name))}
        kept = [value for value in model.graph.value_info if value.name not in gone]
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


def _fill(node: onnx.NodeProto, array: np.ndarray[Any, Any]) -> None:
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(array)))


def _inferred(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The values of a model as they follow from its inputs and weights alone, by name."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.value_info[:]
    for value in asked.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(asked, data_prop=True)
    except Exception:  # of operators that are not of the standard
        return {}
    return {value.name: value for value in found.graph.value_info}


def _noted_anew(value: onnx.ValueInfoProto, inferred: onnx.ValueInfoProto | None) -> bool:
    """Bring a shape up to date by an inferred one; whether that says all that was noted."""
    dims = value.type.tensor_type.shape.dim
    new = [] if inferred is None else inferred.type.tensor_type.shape.dim
    if len(new) != len(dims) or any(
        old.HasField("dim_value") > n.HasField("dim_value") for old, n in zip(dims, new, strict=True)
    ):
        return False
    for old, size in zip(dims, new, strict=True):
        if old.HasField("dim_value"):
            old.dim_value = size.dim_value
    return True
