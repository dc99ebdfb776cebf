"""How many numbers of an ONNX file are learnt: counted as the network that is read from it has them.

Weights and biases count; sizes and options do not: whole numbers, single ones, factors of a resize, statistics of batch
norms, masks. A matrix counts once. A vector counts for every node that reads it: exporters store equal ones, such as
biases that are still 0, once, and that does not tie the layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx
from onnx import numpy_helper

from graphsurgery.onnx.files.model_file import bodies, read_outside

_KINDS = onnx.TensorProto
FLOATING = frozenset({_KINDS.FLOAT, _KINDS.DOUBLE, _KINDS.FLOAT16, _KINDS.BFLOAT16})
_SHORT = frozenset({_KINDS.INT8, _KINDS.UINT8, _KINDS.INT4, _KINDS.UINT4})
_WHOLE = _SHORT | {_KINDS.INT16, _KINDS.UINT16, _KINDS.INT32}
_QUANTISED: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,), "QLinearConv": (3, 8), "QLinearMatMul": (3,), "ConvInteger": (1,), "MatMulInteger": (1,),
    "QGemm": (3, 6), "DynamicQuantizeMatMul": (1,), "MatMulIntegerToFloat": (1,), "DynamicQuantizeLSTM": (1, 2),
    "QLinearAdd": (0, 3), "QLinearMul": (0, 3), "QAttention": (1,),
}  # fmt: skip
"""Which inputs are weights in whole numbers; of a `Gather` the table, in 8 bits or fewer."""
_OPTIONS: Mapping[str, Sequence[int]] = {
    "Resize": (1, 2, 3), "Upsample": (1,), "Pad": (2,), "Clip": (1, 2), "Range": (0, 1, 2), "Dropout": (1, 2),
    "BatchNormalization": (3, 4), "DequantizeLinear": (1, 2), "QuantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7), "QLinearMatMul": (1, 2, 4, 5, 6, 7), "DynamicQuantizeLSTM": range(8, 12),
    "QGemm": (1, 4, 7), "DynamicQuantizeMatMul": (2,), "MatMulIntegerToFloat": (2, 3), "QAttention": (3, 4),
}  # fmt: skip
"""Which inputs are floating numbers, and no weights."""
_SUMS = frozenset({"Add", "Where", "Sum"})
"""What adds masks to scores."""
_SMALLEST_MASK = -1e4


_SAME = frozenset({"Identity", "Reshape", "Transpose", "Unsqueeze"})
"""Operators that give the weight that they are given."""
_FEW = 8
"""A vector of so many numbers that is computed from constants is taken for sizes."""


class Parameters:
    """The learnt numbers of the main graph of a model.

    Args:
        graph: large weights may lack their numbers.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.dims = {name: tuple(tensor.dims) for name, tensor in self.tensors.items()}
        for sparse in graph.sparse_initializer:
            self.tensors[sparse.values.name], self.dims[sparse.values.name] = sparse.values, tuple(sparse.dims)
        self.origins: dict[str, tuple[str, ...]] = {}
        """The weights that a value is made of which is computed from weights alone, or is one by another name."""
        self.computed: set[str] = set()
        """Those that are not the same by another name, or in another shape."""
        self._scales = {node.output[1] for node in graph.node if node.op_type == "DynamicQuantizeLinear"}
        for node in graph.node:
            held = [attribute.t for attribute in node.attribute if attribute.HasField("t")]
            if node.op_type == "Constant" and held:
                self.tensors[node.output[0]], self.dims[node.output[0]] = held[0], tuple(held[0].dims)
            elif self._on_constants(node):
                names = dict.fromkeys(name for given in node.input for name in self._from(given))
                self.origins.update(dict.fromkeys(node.output, tuple(names)))
                self.computed.update(() if node.op_type in _SAME else node.output)

    def of(self, node: onnx.NodeProto) -> list[tuple[str, int]]:
        """The weights that a node reads, with how many numbers each has; none where it makes a weight of others."""
        scaled = node.op_type == "Mul" and not self._scales.isdisjoint(node.input)
        if node.op_type == "Constant" or self._on_constants(node) or scaled:
            return []
        found = []
        for at, given in enumerate(node.input):
            for name in self._from(given):
                count = self._count(node, at, name)
                if count > (_FEW if given in self.computed else 0):
                    found.append((name, count))
        outside = [origin for name in read_outside(node) for origin in self._from(name)]
        found += [(origin, learnt_in(self.tensors[origin])) for origin in outside]
        return [(name, count) for name, count in found if count]

    def total(self, nodes: Sequence[onnx.NodeProto]) -> int:
        """The numbers of all nodes: matrices once, vectors for each that reads them."""
        matrices: dict[str, int] = {}
        vectors = 0
        for name, count in (pair for node in nodes for pair in self.of(node)):
            if count > max(self.dims[name]):
                matrices[name] = count
            else:
                vectors += count
        return vectors + sum(matrices.values())

    def _on_constants(self, node: onnx.NodeProto) -> bool:
        read = (*node.input, *read_outside(node))
        known = [name in self.tensors or name in self.origins for name in read if name]
        return bool(known) and all(known)

    def _from(self, name: str) -> tuple[str, ...]:
        return (name,) if name in self.tensors else self.origins.get(name, ())

    def _count(self, node: onnx.NodeProto, at: int, name: str) -> int:
        tensor, dims = self.tensors[name], self.dims[name]
        floating = tensor.data_type in FLOATING and at not in _OPTIONS.get(node.op_type, ())
        whole = tensor.data_type in _WHOLE and at in _QUANTISED.get(node.op_type, ())
        whole |= tensor.data_type in _SHORT and node.op_type == "Gather" and at == 0
        if not dims or not (floating or whole) or (node.op_type in _SUMS and _is_mask(tensor)):
            return 0
        return math.prod(dims)


def learnt_in(tensor: onnx.TensorProto) -> int:
    """How many floating numbers a tensor holds, if it has axes."""
    return math.prod(tensor.dims) if tensor.data_type in FLOATING and tensor.dims else 0


def learnt_inside(node: onnx.NodeProto) -> int:
    """How many floating numbers the weights of the graphs inside a node hold."""
    found = 0
    for body in bodies(node):
        held = [attribute.t for inner in body.node for attribute in inner.attribute if attribute.HasField("t")]
        found += sum(map(learnt_in, (*body.initializer, *held))) + sum(map(learnt_inside, body.node))
    return found


def _is_mask(tensor: onnx.TensorProto) -> bool:
    """Whether numbers only say what an attention must not look at."""
    try:
        array = numpy_helper.to_array(tensor)
    except Exception:  # of weights that lie elsewhere, or of a damaged tensor, which others name
        return False
    return bool(array.size) and float(array.min()) <= _SMALLEST_MASK
