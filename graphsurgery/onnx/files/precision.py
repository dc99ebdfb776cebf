"""Files in half or double precision, opened in single precision and written back as they were.

A network is computed in float32 whatever its file is stored in. So all floating numbers of a model are made float32 as
it is read, with the type that each had noted by its name; after an edit they get it back, and new ones that of most.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.helper import tensor_dtype_to_np_dtype

from graphsurgery.onnx.files.model_file import bodies
from graphsurgery.onnx.files.storage import Weights, refill, save_model

_FLOAT = onnx.TensorProto.FLOAT
_OTHERS = frozenset((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE))
_NAMING = ("to", "dtype")
"""Attributes that name a type."""

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Callable[[], Array]]


@dataclass(frozen=True)
class Precision:
    """What the floating numbers of a model were before they were made float32.

    Attributes:
        kinds: the type of each weight and of each value that is declared, by name; of what a node names or holds by the
            name of its result and the attribute.
        usual: the type of most floating weights, which new ones get.
    """

    kinds: Mapping[str, int]
    usual: int = _FLOAT

    @property
    def is_single(self) -> bool:
        """Whether all were float32 already."""
        return not _OTHERS.intersection(self.kinds.values())

    @property
    def words(self) -> str:
        """The type of most floating weights, such as `float16`."""
        return onnx.TensorProto.DataType.Name(self.usual).lower()

    def restored(self, model: onnx.ModelProto, arrays: Arrays) -> tuple[onnx.ModelProto, Arrays]:
        """A copy of a float32 model in the types that it had, and what gives the numbers that it lacks.

        Args:
            model: its initializers may lack their numbers.
            arrays: gives the numbers of those that do, by name.
        """
        if self.is_single:
            return model, arrays
        found = onnx.ModelProto()
        found.CopyFrom(model)
        given = dict(arrays)
        for graph in _graphs(found.graph):
            for tensor in graph.initializer:
                kind = self.kinds.get(tensor.name, self.usual)
                if tensor.data_type != _FLOAT or kind == _FLOAT:
                    continue
                if tensor.name in arrays:
                    tensor.data_type = kind
                    given[tensor.name] = partial(_cast, arrays[tensor.name], kind)
                else:
                    _recast(tensor, kind)
            for key, attribute in _naming(graph):
                if attribute.name in _NAMING and attribute.i == _FLOAT:
                    attribute.i = self.kinds.get(key, _FLOAT)
                elif attribute.HasField("t") and attribute.t.data_type == _FLOAT:
                    _recast(attribute.t, self.kinds.get(key, self.usual))
            for value in _declared(graph):
                if value.type.tensor_type.elem_type == _FLOAT:
                    value.type.tensor_type.elem_type = self.kinds.get(value.name, _FLOAT)
        return found, given


def in_single(model: onnx.ModelProto, weights: Weights) -> Precision:
    """Make the floating numbers of a model float32, in place; gives what they were."""
    kinds = _inferred(model)
    counts: Counter[int] = Counter()
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_type not in (*_OTHERS, _FLOAT):
                continue
            kinds[tensor.name] = tensor.data_type
            counts[tensor.data_type] += math.prod(tensor.dims)
            if tensor.data_type == _FLOAT:
                continue
            if tensor.name in weights.arrays:
                weights.arrays[tensor.name] = weights.arrays[tensor.name].astype(np.float32)
                tensor.data_type = _FLOAT
            else:
                _recast(tensor, _FLOAT)
        for key, attribute in _naming(graph):
            if attribute.name in _NAMING and attribute.i in _OTHERS:
                kinds[key], attribute.i = attribute.i, _FLOAT
            elif attribute.HasField("t") and attribute.t.data_type in (*_OTHERS, _FLOAT):
                kinds[key] = attribute.t.data_type
                counts[attribute.t.data_type] += math.prod(attribute.t.dims)
                _recast(attribute.t, _FLOAT)
        for value in _declared(graph):
            if value.type.tensor_type.elem_type in _OTHERS:
                kinds[value.name] = value.type.tensor_type.elem_type
                value.type.tensor_type.elem_type = _FLOAT
    return Precision(kinds, max(counts, key=lambda kind: counts[kind], default=_FLOAT))


def _inferred(model: onnx.ModelProto) -> dict[str, int]:
    """The types of the floating values that a model computes, where not all are float32."""
    graph = model.graph
    stated = {tensor.data_type for tensor in graph.initializer} | {v.type.tensor_type.elem_type for v in graph.input}
    named = {a.t.data_type if a.HasField("t") else a.i for inner in _graphs(graph) for _, a in _naming(inner)}
    if not _OTHERS & (stated | named):
        return {}
    try:
        found = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # of a file with operators of others; what is not known is taken for what is usual
        return {}
    kinds = {value.name: value.type.tensor_type.elem_type for value in _declared(found)}
    return {name: kind for name, kind in kinds.items() if kind in (*_OTHERS, _FLOAT)}


@contextmanager
def passing_file(model: onnx.ModelProto, arrays: Arrays) -> Iterator[Path]:
    """A file of a model and its large weights, which lie beside it, that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "model.onnx")
        found = onnx.ModelProto()
        found.CopyFrom(model)
        save_model(found, arrays, place, Path(folder, "weights"))
        yield place


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from _graphs(body)


def _naming(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.AttributeProto]]:
    """The attributes of nodes that name a type or hold a tensor, each with a key."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _NAMING or attribute.HasField("t"):
                yield f"{node.output[0] if node.output else ''}\0{attribute.name}", attribute


def _declared(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.value_info, *graph.output)


def _recast(tensor: onnx.TensorProto, kind: int) -> None:
    """Give a tensor that holds its numbers another type."""
    if tensor.data_type != kind:
        refill(tensor, numpy_helper.to_array(tensor).astype(tensor_dtype_to_np_dtype(kind)))


def _cast(array: Callable[[], Array], kind: int) -> Array:
    return array().astype(tensor_dtype_to_np_dtype(kind))
