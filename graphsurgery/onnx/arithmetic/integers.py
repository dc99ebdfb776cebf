"""A quantised file in integer arithmetic of one's choice, so that what it computes does not depend on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.onnx.arithmetic.sums import exact, overflowing, saturating
from graphsurgery.onnx.importing.operators.padding import pads_of, per_axis
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.runtime.sessions import open_session, run_session

Array = np.ndarray[Any, Any]
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_EIGHT_BITS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


class IntegerNetwork:
    """What a file of QuantizeLinear and DequantizeLinear computes, with exact or with saturating sums.

    Every Conv, Gemm and MatMul of a quantised value with quantised weights is computed here, as the sum of its 8-bit
    products; `sums` says how processors differ in it. All other operators run in ONNX Runtime.

    What is known: which instruction adds pairs in 16 bits, and that the pairs are neighbours along the rows of a
    matrix, and along the input channels of a convolution, inside one position of the kernel or across two where their
    number is odd; that a depthwise convolution has kernels of its own, which are exact. It is so in the sources of
    ONNX Runtime, and its outputs without VNNI are these. What is a model: numbers between the sums are scaled in
    float64 and rounded once to float32, while ONNX Runtime scales in float32, so that a value just between two steps of
    8 bits may be rounded to the other one.

    Args:
        path: the file, as `quantize_onnx` writes it.

    Raises:
        SurgeryError: it cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.model = onnx.load(path)
        except Exception as cause:  # whatever a damaged file raises
            raise SurgeryError(f"{path}: is no whole ONNX file: {one_line(cause)}") from cause
        self._constants = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._makers = {name: node for node in self.model.graph.node for name in node.output}
        found = (self._product(node) for node in self.model.graph.node)
        self.products = {product.output: product for product in found if product is not None}
        self._parts = self._split()

    @cached_property
    def overflowing(self) -> int:
        """How many pairs of weights saturate for some activations; where there are none, all sums are exact."""
        return sum(len(overflowing(matrix)[0]) for product in self.products.values() for matrix in product.paired)

    @property
    def kinds(self) -> tuple[bool, ...]:
        """The values of `saturates` for which it computes different things."""
        return (False, True) if self.overflowing else (False,)

    def run(self, inputs: Sequence[Tensor], *, saturates: bool) -> list[Tensor]:
        """The outputs.

        Args:
            inputs: each `[batch, ...]`, in the file's order.
            saturates: whether the sums of signed weights saturate, as on x86 processors without VNNI.

        Raises:
            SurgeryError: there are more or fewer inputs, or ONNX Runtime does not run the other operators on them.
        """
        graph = self.model.graph
        fed = [value.name for value in graph.input if value.name not in self._constants]
        if len(inputs) != len(fed):
            raise SurgeryError(f"{self.path}: found {len(inputs)} inputs, expected {len(fed)}: {', '.join(fed)}")
        values: dict[str, Array] = {name: x.numpy() for name, x in zip(fed, inputs, strict=True)}
        for part in self._parts:
            part.run(values)
            for product in part.products:
                values[product.output] = product.compute(values, saturates)
        return [torch.from_numpy(values[value.name]) for value in graph.output]

    def _split(self) -> list[_Part]:
        """The file as turns of other operators, then of products that read what is known by then."""
        kept = self._kept()
        levels: dict[str, int] = {}
        turns: dict[int, tuple[list[onnx.NodeProto], list[_Product]]] = {}
        for node in kept:
            product = self.products.get(node.output[0])
            reads = node.input if product is None else product.reads
            level = max((levels.get(name, 0) for name in reads), default=0)
            nodes, products = turns.setdefault(level, ([], []))
            if product is None:
                nodes.append(node)
            else:
                products.append(product)
            levels.update(dict.fromkeys(node.output, level if product is None else level + 1))
        needed = {value.name for value in self.model.graph.output}
        parts: list[_Part] = []
        for level in sorted(turns, reverse=True):
            nodes, products = turns[level]
            needed.update(name for product in products for name in product.reads)
            parts.append(_Part(self, nodes, products, [n for node in nodes for n in node.output if n in needed]))
            needed.update(name for node in nodes for name in node.input)
        return parts[::-1]

    def _kept(self) -> list[onnx.NodeProto]:
        """The nodes without those that only bring weights to products."""
        needed = {value.name for value in self.model.graph.output}
        kept = []
        for node in reversed(self.model.graph.node):
            if needed.isdisjoint(node.output):
                continue
            product = self.products.get(node.output[0])
            needed.update(node.input if product is None else product.reads)
            kept.append(node)
        return kept[::-1]

    def _product(self, node: onnx.NodeProto) -> _Product | None:
        """A node as a sum of 8-bit products, if it is one."""
        if node.op_type not in _PRODUCTS or node.domain not in ("", "ai.onnx"):
            return None
        values, weights = (self._quantised(name) for name in node.input[:2])
        if values is None or weights is None or weights.name not in self._constants:
            return None
        if self._constants[weights.name].data_type not in _EIGHT_BITS:
            return None
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        name = node.name or node.output[0]
        operator = Operator(name, node.op_type, tuple(node.input), tuple(node.output), attributes, 0, 0)
        bias = node.input[2] if len(node.input) > 2 else ""
        constant = self._array(bias) if bias in self._constants else None
        return _Product(operator, values, weights, self._array(weights.name), bias, constant)

    def _quantised(self, name: str) -> _Quantised | None:
        """The 8-bit numbers behind a value."""
        node = self._makers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in self._constants:
            return None
        scale = self._array(node.input[1]).astype(np.float64)
        zero = self._array(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        return _Quantised(node.input[0], scale, zero.astype(np.int64))

    def _array(self, name: str) -> Array:
        return numpy_helper.to_array(self._constants[name])

    def constants_of(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.TensorProto]:
        """The constants that nodes read."""
        read = dict.fromkeys(name for node in nodes for name in node.input if name in self._constants)
        return [self._constants[name] for name in read]


@dataclass(frozen=True)
class _Quantised:
    """8-bit numbers, and what they stand for: `scale * (number - zero)`."""

    name: str
    scale: Array
    zero: Array


@dataclass(frozen=True)
class _Product:
    """A Conv, Gemm or MatMul of 8-bit numbers.

    Attributes:
        operator: the node.
        values: what it reads, uint8.
        weights: what their numbers stand for.
        numbers: the weights, as in the file.
        bias: the name of a value that is added, if any.
        constant: its numbers, where they stand in the file.
    """

    operator: Operator
    values: _Quantised
    weights: _Quantised
    numbers: Array
    bias: str
    constant: Array | None

    @property
    def output(self) -> str:
        return self.operator.outputs[0]

    @property
    def reads(self) -> list[str]:
        """The values that it is computed from."""
        return [self.values.name, *([self.bias] if self.bias and self.constant is None else [])]

    @cached_property
    def matrices(self) -> list[Array]:
        """The weights `[terms, columns]` of each group, in the order in which terms are added."""
        if self.operator.kind != "Conv":
            return [self.numbers.T if self.operator.attributes.get("transB") else self.numbers]
        groups = np.split(self.numbers, self._groups)
        return [np.moveaxis(group, (0, 1), (-1, -2)).reshape(-1, len(group)) for group in groups]

    @property
    def paired(self) -> list[Array]:
        """Those of the matrices whose terms are added in pairs."""
        depthwise = self.operator.kind == "Conv" and self._groups > 1 and self.numbers.shape[1] == 1
        return [] if depthwise and len(self.numbers) == self._groups else self.matrices

    @property
    def _columns(self) -> int:
        return sum(matrix.shape[1] for matrix in self.matrices)

    @property
    def _groups(self) -> int:
        return int(self.operator.attributes.get("group", 1))

    def compute(self, values: dict[str, Array], saturates: bool) -> Array:
        """The output, float32."""
        add = saturating if saturates and self.paired else exact
        rows, shape = self._rows(values[self.values.name])
        zeros = np.split(np.broadcast_to(self.weights.zero, self._columns), len(self.matrices))
        sums = [
            self._without_zeros(add(a, w), a, w, zero) for a, w, zero in zip(rows, self.matrices, zeros, strict=True)
        ]
        found = np.concatenate(sums, axis=1) * (self.values.scale * self.weights.scale)
        found = found.reshape(*shape, found.shape[1]) * self.operator.attributes.get("alpha", 1.0)
        if self.bias:
            bias = values[self.bias] if self.constant is None else self.constant
            found = found + bias.astype(np.float64) * self.operator.attributes.get("beta", 1.0)
        return np.ascontiguousarray(np.moveaxis(found, -1, 1) if self.operator.kind == "Conv" else found, np.float32)

    def _without_zeros(self, sums: Array, a: Array, w: Array, zero: Array) -> Array:
        """`sum (a - zero of a) (w - zero)` from `sum a w`."""
        of_rows, of_columns = a.sum(1, dtype=np.int64)[:, None], w.sum(0, dtype=np.int64)
        return sums - self.values.zero * of_columns - of_rows * zero + self.values.zero * zero * len(w)

    def _rows(self, x: Array) -> tuple[list[Array], tuple[int, ...]]:
        """The activations `[rows, terms]` of each group, and the shape of what the rows are."""
        if self.operator.kind != "Conv":
            x = x.T if self.operator.attributes.get("transA") else x
            return [x.reshape(-1, x.shape[-1])], x.shape[:-1]
        windows = self._windows(x)  # [batch, channels, *output, *kernel]
        dims = x.ndim - 2
        shape = (len(x), *windows.shape[2 : 2 + dims])
        groups = np.split(windows, self._groups, axis=1)
        return [np.moveaxis(group, 1, -1).reshape(int(np.prod(shape)), -1) for group in groups], shape

    def _windows(self, x: Array) -> Array:
        kernel, dims = self.numbers.shape[2:], x.ndim - 2
        pads = pads_of(self.operator, x.shape[2:], kernel)
        sides = [(0, 0), (0, 0), *zip(pads[:dims], pads[dims:], strict=True)]
        x = np.pad(x, sides, constant_values=int(self.values.zero))
        strides, dilations = (per_axis(self.operator, name, dims) for name in ("strides", "dilations"))
        reach = tuple((n - 1) * d + 1 for n, d in zip(kernel, dilations, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, tuple(range(2, 2 + dims)))
        steps = (*(slice(None, None, n) for n in strides), *(slice(None, None, n) for n in dilations))
        return windows[(slice(None), slice(None), *steps)]


class _Part:
    """Operators that ONNX Runtime runs in one go, and the products behind them."""

    def __init__(
        self,
        network: IntegerNetwork,
        nodes: Sequence[onnx.NodeProto],
        products: Sequence[_Product],
        outputs: Sequence[str],
    ) -> None:
        self.network, self.nodes, self.products, self.outputs = network, nodes, products, list(outputs)
        self.constants = network.constants_of(nodes)
        inside = {tensor.name for tensor in self.constants} | {name for node in nodes for name in node.output} | {""}
        self.inputs = list(dict.fromkeys(name for node in nodes for name in node.input if name not in inside))
        self._session: Any = None

    def run(self, values: dict[str, Array]) -> None:
        """Add what these operators give to the values."""
        if not self.outputs:
            return
        if self._session is None:
            self._session = self._opened(values)
        feed = {name: torch.from_numpy(values[name]) for name in self.inputs}
        found = run_session(self._session, feed, self.network.path.name, self.outputs)
        values.update((name, tensor.numpy()) for name, tensor in zip(self.outputs, found, strict=True))

    def _opened(self, values: dict[str, Array]) -> Any:
        model = self.network.model
        graph = onnx.helper.make_graph(
            self.nodes,
            "part",
            [_described(name, values[name]) for name in self.inputs],
            [onnx.ValueInfoProto(name=name) for name in self.outputs],
            self.constants,
        )
        alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        return open_session(self.network.path, threads=1, content=alone.SerializeToString())


def _described(name: str, array: Array) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, [None] * array.ndim)
