"""Weights that a file computes from its constants alone, computed once.

Exporters leave such parts where they cannot evaluate them, as for weights that are standardised in every run. A matrix
that is also read as it stands stays one: folding a transposed copy of it would untie the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from graphsurgery.errors import SurgeryError
from graphsurgery.onnx.sessions import open_session

if TYPE_CHECKING:
    from graphsurgery.onnx.reading import Operator

_Array = np.ndarray[Any, Any]


_WEIGHTS_AT = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "BatchNormalization": (1, 2, 3, 4),
    "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "PRelu": (1,),
}  # fmt: skip


def foldable(
    operators: Sequence[Operator], constants: Mapping[str, _Array], name: Callable[[str], str]
) -> list[Operator]:
    """The operators that only read constants and each other, and whose results are weights of layers; in order.

    Args:
        operators: of a file, in the order in which they can run.
        constants: by name.
        name: from the name of a value to its first one.
    """
    found = _on_constants(operators, constants, name)
    while True:
        inside = {operator.index for operator in found}
        rest = [operator for operator in operators if operator.index not in inside]
        others = {name(value) for o in rest for at, value in enumerate(o.inputs) if not _is_weight(o, at)}
        matrices = {v for o in rest for v in map(name, o.inputs) if v in constants and _is_matrix(constants[v])}
        left = [o for o in found if others.isdisjoint(o.outputs) and matrices.isdisjoint(map(name, o.inputs))]
        if len(left) == len(found):
            return found
        found = _on_constants(left, constants, name)


def _on_constants(
    operators: Sequence[Operator], constants: Mapping[str, _Array], name: Callable[[str], str]
) -> list[Operator]:
    known, found = set(constants), []
    for operator in operators:
        inputs = [name(value) for value in operator.inputs if value]
        if inputs and known.issuperset(inputs):
            found.append(operator)
            known.update(operator.outputs)
    return found


def _is_weight(operator: Operator, at: int) -> bool:
    return at in _WEIGHTS_AT.get(operator.kind, ())


def _is_matrix(array: _Array) -> bool:
    return array.size > max(array.shape, default=1)


def folded(
    model: onnx.ModelProto,
    operators: Sequence[Operator],
    constants: Mapping[str, _Array],
    name: Callable[[str], str],
    needed: set[str],
) -> dict[str, _Array]:
    """What these operators give, by the names that are needed; nothing where ONNX Runtime does not run them.

    Args:
        model: the file that they are from.
        operators: from `foldable`.
        constants: by name.
        name: from the name of a value to its first one.
        needed: names of values that others read.
    """
    outputs = [value for operator in operators for value in operator.outputs if value in needed]
    if not outputs:
        return {}
    nodes = []
    for operator in operators:
        node = onnx.NodeProto()
        node.CopyFrom(model.graph.node[operator.index])
        node.input[:] = [name(value) if value else "" for value in node.input]
        nodes.append(node)
    read = dict.fromkeys(value for node in nodes for value in node.input if value in constants)
    graph = onnx.helper.make_graph(
        nodes,
        "constants",
        [],
        [onnx.ValueInfoProto(name=value) for value in outputs],
        [onnx.numpy_helper.from_array(np.asarray(constants[value]), value) for value in read],
    )
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        session = open_session("constants", threads=1, content=alone.SerializeToString())
        return dict(zip(outputs, map(np.asarray, session.run(outputs, {})), strict=True))
    except (SurgeryError, ValueError, RuntimeError):  # of a custom operator, or beyond the size of a message
        return {}
