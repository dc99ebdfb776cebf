"""Products in 32 bits of values that are quantised as they come, as the floating products that they stand for.

What `DynamicQuantizeLinear` gives goes into a `MatMulInteger` or a `ConvInteger`; its sums are cast, and multiplied by
the scales of both operands, which are multiplied beforehand. All of that is one floating product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import helper

from graphsurgery.onnx.dequantizing.values import Scheme, Values
from graphsurgery.onnx.files.model_file import read_outside

_KINDS: Mapping[str, str] = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


@dataclass(frozen=True)
class Product:
    """A product, and what brings its sums back to floating numbers.

    Attributes:
        node: that multiplies integers.
        scales: names of the two that its sums are multiplied by.
        absorbed: the places of the nodes that cast and scale the sums, and add the bias of a convolution.
        output: name of the floating result.
        bias: name of that bias; empty where there is none.
    """

    node: onnx.NodeProto
    scales: Sequence[str]
    absorbed: Sequence[int]
    output: str
    bias: str = ""

    def write(self, values: Values) -> None:
        """The floating product.

        Raises:
            UnsupportedError: an operand was quantised by other numbers than these.
        """
        node = self.node
        scales = list(self.scales)
        first = values.standing.get(node.input[0])
        if first is not None and first.scale != scales[0]:
            scales.reverse()
        zeros = [*node.input[2:], "", ""][:2]
        axis = 0 if node.op_type == "ConvInteger" else -1
        operands = zip(node.input[:2], scales, zeros, strict=True)
        inputs = [values.read(node, name, Scheme(scale, zero, axis)) for name, scale, zero in operands]
        inputs += [self.bias] if self.bias else []
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        values.add(_KINDS[node.op_type], inputs, [self.output], node.name, **attributes)


def products_of(model: onnx.ModelProto, values: Values) -> dict[int, Product]:
    """The products of a model, by the place of their node; those whose sums go another way are left out."""
    paths = _Paths(model)
    found = {}
    for at, node in enumerate(model.graph.node):
        if node.op_type in _KINDS:
            product = _product(paths, values, node)
            if product is not None:
                found[at] = product
    return found


class _Paths:
    """Which nodes read and make the values of a model, by their places."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = model.graph.node
        self.readers: dict[str, list[int]] = defaultdict(list)
        self.makers: dict[str, int] = {}
        for at, node in enumerate(model.graph.node):
            for name in (*node.input, *read_outside(node)):
                self.readers[name].append(at)
            self.makers.update(dict.fromkeys(node.output, at))
        for value in model.graph.output:
            self.readers[value.name].append(-1)

    def only_reader(self, name: str, kind: str) -> int | None:
        """The node that alone reads a value, if it is of this kind."""
        readers = self.readers[name]
        alone = len(readers) == 1 and readers[0] >= 0 and self.nodes[readers[0]].op_type == kind
        return readers[0] if alone else None

    def maker(self, name: str, kind: str) -> int | None:
        """The node that makes a value, if it is of this kind."""
        at = self.makers.get(name)
        return at if at is not None and self.nodes[at].op_type == kind else None

    def other(self, at: int, name: str) -> str:
        """What a node of two operands reads beside a value."""
        first, second = self.nodes[at].input
        return second if first == name else first


def _product(paths: _Paths, values: Values, node: onnx.NodeProto) -> Product | None:
    """A product whose sums are cast and scaled, and go nowhere else."""
    cast = paths.only_reader(node.output[0], "Cast")
    if cast is None:
        return None
    sums = paths.nodes[cast].output[0]
    scaled = paths.only_reader(sums, "Mul")
    if scaled is None:
        return None
    scales = paths.maker(paths.other(scaled, sums), "Mul")
    if scales is None:
        return None
    found = Product(node, list(paths.nodes[scales].input), [cast, scaled, scales], paths.nodes[scaled].output[0])
    return _with_bias(paths, values, found) if node.op_type == "ConvInteger" else found


def _with_bias(paths: _Paths, values: Values, product: Product) -> Product:
    """A convolution with the bias that is added behind it, one number for each channel, where there is one."""
    add = paths.only_reader(product.output, "Add")
    if add is None:
        return product
    laid = paths.other(add, product.output)
    reshape = paths.maker(laid, "Reshape")
    if reshape is None or paths.only_reader(laid, "Add") is None:
        return product
    bias, shape = map(values.constant, paths.nodes[reshape].input)
    if bias is None or shape is None or bias.ndim != 1 or shape.size < 3:
        return product
    batch, channels, *sides = shape.tolist()
    if channels not in (-1, bias.size) or {batch, *sides} != {1}:
        return product
    absorbed = [*product.absorbed, reshape, add]
    return replace(product, absorbed=absorbed, output=paths.nodes[add].output[0], bias=paths.nodes[reshape].input[0])
