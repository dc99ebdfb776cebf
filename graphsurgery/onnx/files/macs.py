"""Multiply-accumulates of ONNX nodes, from their shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx

Shape = tuple[int | str | None, ...]
"""Sizes; a name where a size is free, None where nothing is known of it."""

UNCOUNTED = frozenset({"DeformConv", "If", "Loop", "Scan"})
"""Operators, besides all kinds of attention, that multiply matrices and are not counted."""


def macs(node: onnx.NodeProto, shapes: Mapping[str, Shape | None]) -> int | None:
    """The multiply-accumulates of the matrix product or convolution that a node is; 0 for every other operator.

    Args:
        node: a node.
        shapes: the shapes of all values by name.

    Returns:
        None where a shape is free or unknown, and for operators that are not counted.
    """
    if node.op_type in UNCOUNTED or "Attention" in node.op_type:
        return None
    if node.op_type not in _RULES:
        return 0
    rule, weight = _RULES[node.op_type]
    known = [shapes.get(name) for name in (node.input[0], *node.input[weight : weight + 1], node.output[0])]
    sizes = [[size for size in shape or (None,) if isinstance(size, int)] for shape in known]
    if len(known) < 3 or any(len(size) != len(shape or (None,)) for size, shape in zip(sizes, known, strict=True)):
        return None
    return rule(node, *sizes)


def _conv(_: onnx.NodeProto, __: Sequence[int], weight: Sequence[int], output: Sequence[int]) -> int:
    """Every output reads a patch of the channels of its group: the weight is `[output, input / groups, *kernel]`."""
    return math.prod(output) * math.prod(weight[1:])


def _transposed_conv(_: onnx.NodeProto, x: Sequence[int], weight: Sequence[int], __: Sequence[int]) -> int:
    """Every input writes a patch of the channels of its group: the weight is `[input, output / groups, *kernel]`."""
    return math.prod(x) * math.prod(weight[1:])


def _matmul(_: onnx.NodeProto, a: Sequence[int], __: Sequence[int], output: Sequence[int]) -> int:
    return math.prod(output) * a[-1]


def _gemm(node: onnx.NodeProto, a: Sequence[int], _: Sequence[int], output: Sequence[int]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(output) * a[0 if transposed else -1]


def _einsum(node: onnx.NodeProto, a: Sequence[int], b: Sequence[int], _: Sequence[int]) -> int | None:
    """Of two operands: the product of the sizes of all their letters."""
    equation = next((attribute.s.decode() for attribute in node.attribute if attribute.name == "equation"), "")
    letters = [list(term.strip()) for term in equation.partition("->")[0].split(",")]
    if len(node.input) != 2 or [len(term) for term in letters] != [len(a), len(b)] or "." in equation:
        return None
    return math.prod({**dict(zip(letters[0], a, strict=True)), **dict(zip(letters[1], b, strict=True))}.values())


def _recurrent(node: onnx.NodeProto, x: Sequence[int], weight: Sequence[int], _: Sequence[int]) -> int:
    """At every token `W [directions, gates · hidden, input]` reads the input, and as many rows the hidden units."""
    directions, rows, inputs = weight
    return math.prod(x[:2]) * directions * rows * (inputs + rows // _GATES[node.op_type])


def _turned(node: onnx.NodeProto, x: Sequence[int], weight: Sequence[int], output: Sequence[int]) -> int:
    """Of a recurrent operator whose weights are the other way round, `W [directions, input, gates · hidden]`."""
    return _recurrent(node, x, [weight[0], *weight[:0:-1]], output)


_GATES = {"DynamicQuantizeLSTM": 4, "LSTM": 4, "GRU": 3, "RNN": 1}
_Rule = Callable[[onnx.NodeProto, Sequence[int], Sequence[int], Sequence[int]], int | None]
_RULES: Mapping[str, tuple[_Rule, int]] = {
    "Conv": (_conv, 1),
    "ConvInteger": (_conv, 1),
    "ConvTranspose": (_transposed_conv, 1),
    "DynamicQuantizeLSTM": (_turned, 1),
    "DynamicQuantizeMatMul": (_matmul, 1),
    "Einsum": (_einsum, 1),
    "FusedConv": (_conv, 1),
    "FusedGemm": (_gemm, 1),
    "GRU": (_recurrent, 1),
    "Gemm": (_gemm, 1),
    "LSTM": (_recurrent, 1),
    "MatMul": (_matmul, 1),
    "MatMulInteger": (_matmul, 1),
    "MatMulIntegerToFloat": (_matmul, 1),
    "QGemm": (_gemm, 3),
    "QLinearConv": (_conv, 3),
    "QLinearMatMul": (_matmul, 3),
    "RNN": (_recurrent, 1),
}
"""How an operator is counted, and which of its inputs the weight (the second factor) is."""
