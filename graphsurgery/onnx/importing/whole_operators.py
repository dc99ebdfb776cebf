"""Operators of an `.onnx` file by themselves, and weights that are computed from constants alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor

from graphsurgery.errors import SurgeryError
from graphsurgery.onnx.files.model_file import read_outside, rename_outside
from graphsurgery.onnx.runtime.sessions import open_session

if TYPE_CHECKING:
    from graphsurgery.onnx.importing.program import OnnxProgram, Operator


_FREE_WEIGHTS = 4
"""From this version of the format on weights need not be inputs."""


def alone(
    file: OnnxProgram,
    indices: Iterable[int],
    constants: Mapping[str, np.ndarray[Any, Any]],
    inputs: Mapping[str, Tensor | int],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """A model of some operators of a file.

    Args:
        file: that they are from.
        indices: the numbers of their nodes, in an order in which they can run.
        constants: what of their inputs is constant, by the first names of the values.
        inputs: the others, for their types; numbers are sizes.
        outputs: the values that it gives.
    """
    kinds = {
        name: onnx.helper.np_dtype_to_tensor_dtype(_numpy_type(value))
        if isinstance(value, Tensor)
        else file.kinds.get(name, onnx.TensorProto.INT64)
        for name, value in inputs.items()
    }
    graph = onnx.helper.make_graph(
        [_first_named(file, index) for index in indices],
        "operators",
        [onnx.helper.make_tensor_value_info(name, kind, [None] * _rank(inputs[name])) for name, kind in kinds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    version = max(file.model.ir_version, _FREE_WEIGHTS)
    return onnx.helper.make_model(graph, opset_imports=file.model.opset_import, ir_version=version)


def _first_named(file: OnnxProgram, index: int) -> onnx.NodeProto:
    """A copy of a node that reads values by their first names."""
    node = onnx.NodeProto()
    node.CopyFrom(file.model.graph.node[index])
    node.input[:] = [file.name(name) if name else "" for name in node.input]
    rename_outside(node, {name: file.name(name) for name in read_outside(node)})
    return node


def _rank(value: Tensor | int) -> int:
    return value.dim() if isinstance(value, Tensor) else 0


def _numpy_type(value: Tensor) -> np.dtype[Any]:
    return (
        np.dtype(np.float32)
        if value.is_floating_point()
        else torch.empty(0, dtype=value.dtype, device="cpu").numpy().dtype
    )


_Array = np.ndarray[Any, Any]

_WEIGHTS_AT = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "BatchNormalization": (1, 2, 3, 4),
    "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "PRelu": (1,),
    "LSTM": (1, 2, 3), "GRU": (1, 2, 3), "RNN": (1, 2, 3),
}  # fmt: skip


def foldable(file: OnnxProgram) -> list[Operator]:
    """The operators that only read constants and each other, and whose results are weights of layers; in order."""
    found = _on_constants(file, file.operators)
    while True:
        inside = {operator.index for operator in found}
        rest = [operator for operator in file.operators if operator.index not in inside]
        others = {file.name(value) for o in rest for at, value in enumerate(o.inputs) if not _is_weight(o, at)}
        read = {value for o in rest for value in map(file.name, o.inputs) if value in file.constants}
        matrices = {value for value in read if is_matrix(file.constants[value].shape)}
        left = [o for o in found if others.isdisjoint(o.outputs) and matrices.isdisjoint(map(file.name, o.inputs))]
        if len(left) == len(found):
            return found
        found = _on_constants(file, left)


def _on_constants(file: OnnxProgram, operators: Sequence[Operator]) -> list[Operator]:
    known, found = set(file.constants), []
    for operator in operators:
        inputs = [file.name(value) for value in operator.inputs if value]
        if inputs and known.issuperset(inputs):
            found.append(operator)
            known.update(operator.outputs)
    return found


def _is_weight(operator: Operator, at: int) -> bool:
    return at in _WEIGHTS_AT.get(operator.kind, ())


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether more than one axis counts anything."""
    return math.prod(shape) > max(shape, default=1)


def folded(file: OnnxProgram, operators: Sequence[Operator], needed: set[str]) -> dict[str, _Array]:
    """What these operators give, by the names that are needed; nothing where ONNX Runtime does not run them.

    Args:
        file: that they are from.
        operators: from `foldable`.
        needed: names of values that others read.
    """
    outputs = [value for operator in operators for value in operator.outputs if value in needed]
    if not outputs:
        return {}
    read = dict.fromkeys(file.name(value) for operator in operators for value in operator.inputs if value)
    constants = {value: file.constants[value] for value in read if value in file.constants}
    model = alone(file, [operator.index for operator in operators], constants, {}, outputs)
    try:
        session = open_session("constants", threads=1, content=model.SerializeToString())
        return dict(zip(outputs, map(np.asarray, session.run(outputs, {})), strict=True))
    except (SurgeryError, ValueError, RuntimeError):  # of a custom operator, or beyond the size of a message
        return {}
