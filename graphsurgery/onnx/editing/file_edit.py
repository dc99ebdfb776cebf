"""The file that an edited network came from, with the network's operators, weights and sizes: a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.helper import tensor_dtype_to_np_dtype
from torch import Tensor

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.editing.file_graph import FileGraph, declare_weights
from graphsurgery.onnx.editing.inserting import Insertion
from graphsurgery.onnx.editing.numbers import Numbers
from graphsurgery.onnx.editing.places import Places
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


class _Constants:
    """What the constants of a file hold after an edit; apart from the edit, of which it knows nothing.

    Attributes:
        replaced: the parameters that a constant holds by now, one or all its parts, by the constant's name.
    """

    def __init__(self, imported: Imported, tensors: Mapping[str, Tensor]) -> None:
        self.replaced: dict[str, tuple[str, ...]] = {}
        self._sources, self._before, self._tensors = imported.sources, imported.file.constants, tensors

    def of(self, name: str) -> Array:
        """What one holds."""
        return self.written(self.replaced[name]) if name in self.replaced else self._before[name]

    def written(self, paths: Sequence[str]) -> Array:
        """A parameter, or the parts of a constant, as the file holds them."""
        sources = [self._sources[path] for path in paths]
        return assembled(sources, [self._tensors[path] for path in paths], self._before[sources[0].constant])


class FileEdit:
    """One file that is given the operators, weights and sizes of a network."""

    def __init__(self, imported: Imported, graph: ModelGraph) -> None:
        self.imported, self.file, self.graph = imported, imported.file, graph
        self.tensors = graph.tensors()
        self.constants = _Constants(imported, self.tensors)
        self.operators = FileGraph(self.file.model)
        self.places = Places(imported, self.operators)
        self.numbers = Numbers(imported, graph, self.places)
        self.insertion = Insertion(imported, graph, self.operators, self.places, self.constants.of)
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
        model = self._built()
        if self._settle(model):
            model = self._built()
        self.operators.let_go()
        declare_weights(model)
        self._shapes(model)
        note_lineage(model, self.graph)
        return model

    def _built(self) -> onnx.ModelProto:
        """The file with the weights and operators that have been found."""
        model = onnx.ModelProto()
        model.CopyFrom(self.file.model)
        self._put_weights(model)
        self.arrays |= self.operators.put_into(model)
        return model

    def _settle(self, model: onnx.ModelProto) -> bool:
        """Keep the numbers that the file computes from its shapes, such as the scale of an attention, as they were.

        Returns:
            Whether some are constants by now, because the file would compute others.
        """
        computed = self.numbers.computed(self.insertion.stays)
        if not computed or self.imported.batch is not None:
            return False
        large = [tensor for tensor in model.graph.initializer if tensor.name in self.arrays]
        kinds = {tensor.name: tensor_dtype_to_np_dtype(tensor.data_type) for tensor in large}
        empty = {tensor.name: np.broadcast_to(np.zeros((), kinds[tensor.name]), tensor.dims) for tensor in large}
        examples = [torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in self.graph.inputs]
        try:
            found = computed_sizes(program_of(model, Weights(empty), self.file.path), examples)
        except SurgeryError:  # the file is not run yet; ONNX Runtime has the last word
            return False
        changed = False
        for (index, at), (name, wanted) in computed.items():
            now = found[name].astype(np.float64) if name in found else wanted
            if (wanted.ndim == 0 or wanted.shape == now.shape) and np.allclose(now, wanted, rtol=_ROUNDING, atol=0):
                continue
            value = self.numbers.value(self.numbers.new, self.file.model.graph.node[index].output[0])
            floating = value is not None and value.meta["value"].is_floating_point()
            array = np.array(wanted if wanted.ndim else np.broadcast_to(wanted, now.shape))
            constant = self.operators.constant(array.astype(np.float32 if floating else np.int64), f"{name}_before")
            self.operators.read(index, at, constant)
            changed = True
        return changed

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
            array = self.constants.written(first)
            if all(np.array_equal(array, self.constants.written(paths)) for paths in others):
                if not np.array_equal(array, self.file.constants[constant]):
                    self.constants.replaced[constant] = tuple(first)
                continue
            for paths in readers.values():
                index = self.imported.readers[paths[0]]
                for at, value in enumerate(self.operators.nodes[index].inputs):
                    if self.file.name(value.name) == constant:
                        self.places.edges[index, at] = self.constants.written(paths)

    def _computed(self) -> None:
        """Numbers that were computed once when the file was read, and are others now: constants of their readers."""
        before = self.imported.graph.tensors()
        for (index, at), path in self.insertion.plan.made.items():
            if path in self.imported.sources or path not in self.tensors or path not in before:
                continue
            old, new = before[path].detach().cpu(), self.tensors[path].detach().cpu()
            if old.shape != new.shape or not torch.equal(old.to(new.dtype), new):
                self.places.edges[index, at] = new.float().numpy() if new.is_floating_point() else new.numpy()

    def _put_weights(self, model: onnx.ModelProto) -> None:
        """Put the constants that have changed into a model; the large ones are given when it is saved."""
        large = self.file.weights.arrays
        for tensor in model.graph.initializer:
            name = tensor.name
            if name in large:
                self.arrays[name] = partial(self.constants.of, name)
                bare(tensor)
                tensor.dims[:] = self.constants.of(name).shape
            elif name in self.constants.replaced:
                refill(tensor, self.constants.of(name))
        for node in model.graph.node:
            for name in self.constants.replaced.keys() & {*node.output}:
                if node.op_type == "Constant":
                    _fill(node, self.constants.of(name))
                else:
                    self.operators.be_constant(name, self.constants.of(name))

    def _shapes(self, model: onnx.ModelProto) -> None:
        """The shapes that a file notes beside its values; those that are no longer known go."""
        unknown = [value for value in model.graph.value_info if not self._note(value)]
        inferred = _inferred(model) if unknown else {}
        gone = set()
        for value in unknown:
            sizes = value.type.tensor_type.shape.dim
            if not _renew(value, [size.dim_value for size in sizes], inferred.get(value.name, ())):
                gone.add(value.name)
        kept = [value for value in model.graph.value_info if value.name not in gone]
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)
        for value in model.graph.output:
            self._note(value)

    def _note(self, value: onnx.ValueInfoProto) -> bool:
        """Bring the shape that is noted for a value up to date; whether the value is known."""
        name = self.file.name(value.name)
        nodes = [self.numbers.value(nodes, name) for nodes in (self.numbers.old, self.numbers.new)]
        shapes = [() if node is None else tuple(node.meta["value"].shape) for node in nodes]
        return None not in nodes and _renew(value, *shapes)


def _fill(node: onnx.NodeProto, array: np.ndarray[Any, Any]) -> None:
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(array)))


def _inferred(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """The shapes of a model as they follow from its inputs and weights alone, by name; None for a size that is free."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.value_info[:]
    for value in asked.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(asked, data_prop=True).graph.value_info
    except Exception:  # of operators that are not of the standard
        return {}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in found}
    return {name: [n.dim_value if n.HasField("dim_value") else None for n in dims] for name, dims in shapes.items()}


def _renew(value: onnx.ValueInfoProto, before: Sequence[int], after: Sequence[int | None]) -> bool:
    """Bring the shape that is noted for a value up to date, where it says a size from before; whether that is known."""
    sizes = value.type.tensor_type.shape.dim
    if not len(sizes) == len(before) == len(after):
        return False
    pairs = zip(sizes, before, after, strict=True)
    stated = [(size, new) for size, old, new in pairs if size.HasField("dim_value") and size.dim_value == old]
    for size, new in stated:
        size.dim_value = new or 0
    return all(new is not None for _, new in stated)
