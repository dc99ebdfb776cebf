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

from graphsurgery.onnx.dequantizing.values import Array, Scheme, Values
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

    def only_reader(self, name: str, kind: str = "") -> int | None:
        """The node that alone reads a value, if it is of this kind, or of any."""
        readers = self.readers[name]
        alone = len(readers) == 1 and readers[0] >= 0
        return readers[0] if alone and kind in ("", self.nodes[readers[0]].op_type) else None

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
    sums, absorbed, bias = node.output[0], [], None
    add = paths.only_reader(sums, "Add")
    if add is not None:
        bias = _rounded_bias(paths, paths.other(add, sums))
        sums, absorbed = paths.nodes[add].output[0], [add]
    cast = paths.only_reader(sums, "Cast")
    if cast is None or (add is not None and (bias is None or node.op_type != "ConvInteger")):
        return None
    numbers = paths.nodes[cast].output[0]
    scaled = paths.only_reader(numbers, "Mul")
    scales = None if scaled is None else paths.maker(paths.other(scaled, numbers), "Mul")
    if scaled is None or scales is None:
        return None
    absorbed += [cast, scaled, scales]
    found = Product(node, list(paths.nodes[scales].input), absorbed, paths.nodes[scaled].output[0])
    if bias is not None:
        return bias.behind(found, paths, values)
    return _with_bias(paths, values, found) if node.op_type == "ConvInteger" else found


@dataclass(frozen=True)
class _RoundedBias:
    """A bias that is divided by the scales of the products, rounded, and added to their sums.

    Attributes:
        name: of the bias.
        scales: the place of the node that multiplies both scales.
        laid: the place of the `Reshape` that lays it out; None where there is none.
        absorbed: the places of all nodes that make it.
    """

    name: str
    scales: int
    laid: int | None
    absorbed: Sequence[int]

    def behind(self, product: Product, paths: _Paths, values: Values) -> Product | None:
        """The product with it; None where it is scaled by other numbers."""
        first, second = (sorted(map(str, names)) for names in (product.scales, paths.nodes[self.scales].input))
        same = (values.are_same(Scheme(a), Scheme(b)) for a, b in zip(first, second, strict=True))
        shape = None if self.laid is None else values.constant(paths.nodes[self.laid].input[1])
        if not all(same) or not _is_of_channels(values.constant(self.name), shape):
            return None
        return replace(product, absorbed=[*product.absorbed, *self.absorbed], bias=self.name)


def _rounded_bias(paths: _Paths, name: str) -> _RoundedBias | None:
    """A bias in whole numbers, as ONNX Runtime's quantiser wrote it before 1.8."""
    absorbed: list[int] = []
    laid = paths.maker(name, "Reshape")
    if laid is not None:
        absorbed, name = [laid], paths.nodes[laid].input[0]
    for kind in ("Cast", "Floor", "Div"):
        at = paths.maker(name, kind)
        if at is None or paths.only_reader(name) is None:
            return None
        absorbed.append(at)
        name = paths.nodes[at].input[0]
    scales = paths.maker(paths.nodes[absorbed[-1]].input[1], "Mul")
    return None if scales is None else _RoundedBias(name, scales, laid, [*absorbed, scales])


def _with_bias(paths: _Paths, values: Values, product: Product) -> Product:
    """A convolution with the bias that is added behind it, one number for each channel, where there is one."""
    add = paths.only_reader(product.output, "Add")
    laid = "" if add is None else paths.other(add, product.output)
    reshape = paths.maker(laid, "Reshape")
    if add is None or reshape is None or paths.only_reader(laid) is None:
        return product
    name, shape = paths.nodes[reshape].input
    if not _is_of_channels(values.constant(name), values.constant(shape)):
        return product
    return replace(product, absorbed=[*product.absorbed, reshape, add], output=paths.nodes[add].output[0], bias=name)


def _is_of_channels(bias: Array | None, shape: Array | None) -> bool:
    """Whether a vector is laid out as `[1, channels, 1, ...]`."""
    if bias is None or shape is None or bias.ndim != 1 or shape.size < 3:
        return False
    batch, channels, *sides = shape.tolist()
    return channels in (-1, bias.size) and {batch, *sides} == {1}
