"""The values of a quantised model, each with what it stands for, and the nodes of the floating one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphsurgery.errors import UnsupportedError
from graphsurgery.onnx.files.model_file import tensors_of
from graphsurgery.onnx.files.storage import Weights

_POSITIVE = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Softplus"})
"""Operators that give nothing below 0, so that no ReLU has gone."""
_SIX, _NEAR_SIX = 6.0, 0.05
"""Where a ReLU6 ends."""
_ADDED = ("_Output", "_QuantizeLinear", "_DequantizeLinear", "_quantized", "_quant")
"""What quantisers put behind the names of weights and nodes."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Scheme:
    """How numbers in integers stand for floating ones, `(number - zero) · scale`: by two values of the model.

    Attributes:
        scale: name of one number, or of one for each index of an axis.
        zero: name of as many; empty where it is 0.
        axis: of the numbers, that several belong to.
        block: how many indices of that axis have one scale; 0 for one each.
    """

    scale: str
    zero: str = ""
    axis: int = 1
    block: int = 0


class Values:
    """What is known of the values of a model, and its floating nodes so far.

    Args:
        model: that is quantised; its large weights may be missing.
        weights: these.
        where: what errors name first.

    Attributes:
        nodes: the floating ones.
        standing: by name, how a value in integers stood for the floating one that now has its name.
        renamed: the names of values and weights in floating numbers, by what they were in integers.
    """

    def __init__(self, model: onnx.ModelProto, weights: Weights, where: str) -> None:
        self.where = where
        self.nodes: list[onnx.NodeProto] = []
        self.standing: dict[str, Scheme] = {}
        self.renamed: dict[str, str] = {}
        self.weights = weights
        self._held = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self._held[node.output[0]] = node.attribute[0].t
        self._makers = {name: node.op_type for node in model.graph.node for name in node.output}
        self._taken = {tensor.name for tensor in tensors_of(model.graph)} | set(self._makers)
        self._nodes = {node.name for node in model.graph.node}
        self._taken |= {value.name for value in model.graph.input}
        self._floating: dict[tuple[str, Scheme], str] = {}

    def constant(self, name: str) -> Array | None:
        """A constant; None for what is none."""
        if name in self.weights.arrays:
            return self.weights.arrays[name]
        return numpy_helper.to_array(self._held[name]) if name in self._held else None

    def number(self, name: str, node: onnx.NodeProto) -> Array:
        """A constant that a node needs.

        Raises:
            UnsupportedError: it is computed.
        """
        found = self.constant(name)
        if found is None:
            raise self.refused(node, "is quantised by numbers that are computed")
        return found

    def refused(self, node: onnx.NodeProto, why: str) -> UnsupportedError:
        """The error that names a node, and what helps."""
        return UnsupportedError(f"{self.where}: {node.name or node.output[0]} {why}; give the file before quantisation")

    def are_same(self, scheme: Scheme, other: Scheme) -> bool:
        """Whether two schemes are of the same numbers."""
        for name, second in ((scheme.scale, other.scale), (scheme.zero, other.zero)):
            if name == second:
                continue
            a, b = (np.zeros(1) if not n else self.constant(n) for n in (name, second))
            if a is None or b is None or (a.shape != b.shape and max(a.size, b.size) > 1) or (a != b).any():
                return False
        scale = self.constant(scheme.scale)
        along = (scheme.axis, scheme.block) == (other.axis, other.block)
        return along or scale is None or scale.size == 1

    def now(self, name: str) -> str:
        """What a value is called in floating numbers."""
        return self.renamed.get(name, name)

    def read(self, node: onnx.NodeProto, name: str, scheme: Scheme) -> str:
        """The floating value in place of one in integers that a node reads: itself, or a weight in floating numbers.

        Raises:
            UnsupportedError: it is neither, or stands for other numbers than the node takes it for.
        """
        if name in self.standing:
            if not self.are_same(self.standing[name], scheme):
                raise self.refused(node, f"reads {name} by other numbers than it was quantised by")
            return self.now(name)
        array = self.constant(name)
        if array is None:
            raise self.refused(node, "dequantises what is no weight")
        key = (name, scheme)
        if key not in self._floating:
            self._floating[key] = self.hold(self.floating(node, array, scheme), name)
        return self._floating[key]

    def stand(self, node: onnx.NodeProto, name: str, array: Array, scheme: Scheme) -> None:
        """Let a weight in integers stand for the floating one, under a name of its own, for what moves it."""
        self.standing[name] = scheme
        self.renamed[name] = self.hold(self.floating(node, array, scheme), name)

    def floating(self, node: onnx.NodeProto, array: Array, scheme: Scheme) -> Array:
        """What a weight is in floating numbers: `(weight - zero) · scale`."""
        scale = self.number(scheme.scale, node)
        zero = self.number(scheme.zero, node) if scheme.zero else np.zeros((), array.dtype)
        return in_floating(array, *(_along(numbers, array, scheme) for numbers in (scale, zero)))

    def hold(self, array: Array, name: str) -> str:
        """A new constant; gives the name that it got."""
        free = self.free(name)
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), free)
        self.nodes.append(helper.make_node("Constant", [], [free], free, value=tensor))
        return free

    def free(self, name: str) -> str:
        """A name like this one, without what quantisers put behind it, that nothing has yet."""
        name = bare(name)
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any) -> None:
        """A floating node; its inputs may be called as they were in integers."""
        own = name if bare(name) in self._nodes else bare(name)
        self._nodes.add(own)
        self.nodes.append(helper.make_node(kind, list(map(self.now, inputs)), outputs, own, **attributes))

    def straight(self, node: onnx.NodeProto, x: str, y: str, scheme: Scheme, maker: str = "") -> None:
        """What a value is once it is quantised: itself, or its ReLU where nothing below 0 can be stated.

        Who quantises leaves out a ReLU where the range of what follows begins at 0, and does its work: here it is back.

        Args:
            node: that quantises.
            x: the value.
            y: its name in integers, which stands for it from now on.
            scheme: by constants, or computed.
            maker: the operator that `x` comes from; otherwise the one of that name in the model.
        """
        self.standing[y] = scheme
        scale, zero = self.constant(scheme.scale), self.constant(scheme.zero) if scheme.zero else None
        least, most = _range(node, zero)
        starts_at_zero = (zero is None and least == 0) or (
            zero is not None and zero.size == 1 and int(zero.reshape(-1)[0]) == least
        )
        positive = (maker or self._makers.get(x, "")) in _POSITIVE
        if scale is None or scale.size != 1 or not starts_at_zero or positive:
            self.renamed[y] = self.now(x)
            return
        self.renamed[y] = self.free(y)
        if abs(float(scale.reshape(-1)[0]) * (most - least) - _SIX) > _NEAR_SIX:
            self.add("Relu", [x], [self.now(y)], node.name)
        else:
            limits = [self.hold(np.asarray(n, scale.dtype), f"{self.now(y)}/{n}") for n in (0, int(_SIX))]
            self.add("Clip", [x, *limits], [self.now(y)], node.name)


def _range(node: onnx.NodeProto, zero: Array | None) -> tuple[float, float]:
    """The least and the largest number that a value is quantised to."""
    if zero is None:
        kinds = [a.i for a in node.attribute if a.name == "output_dtype"]
        kind = helper.tensor_dtype_to_np_dtype(kinds[0]) if kinds and kinds[0] else np.dtype(np.uint8)
    else:
        kind = zero.dtype
    info = ml_dtypes.iinfo(kind) if _is_whole(kind) else ml_dtypes.finfo(kind)
    return float(info.min), float(info.max)


def _is_whole(kind: np.dtype[Any]) -> bool:
    try:
        ml_dtypes.iinfo(kind)
    except ValueError:
        return False
    return True


def in_floating(array: Array, scale: Array, zero: Array) -> Array:
    """`(array - zero) · scale`, in the type of the scale."""
    return np.asarray((array.astype(scale.dtype) - zero.astype(scale.dtype)) * scale)


def bare(name: str) -> str:
    """A name before quantisation."""
    for ending in _ADDED:
        name = name.removesuffix(ending) or name
    return name


def _along(array: Array, weight: Array, scheme: Scheme) -> Array:
    """Scales or zeros in a shape that meets the weight: one, one for each index of an axis, or for each block of it."""
    if array.size == 1:
        return array.reshape(())
    if scheme.block:
        return np.take(array, np.arange(weight.shape[scheme.axis]) // scheme.block, scheme.axis)
    if array.ndim == weight.ndim:
        return array
    return array.reshape([-1 if at == scheme.axis % weight.ndim else 1 for at in range(weight.ndim)])
