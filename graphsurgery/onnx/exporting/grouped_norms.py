"""Where an `.onnx` file has norms of groups of channels, whose squares and small sums 8 bits would lose."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

_BETWEEN = frozenset({"Add", "Sqrt", "Reciprocal", "Pow", "Max", "Clip", "Transpose"})
_BEFORE = frozenset({"Mul", "Pow", "Abs", "ReduceMean", "Transpose"})
_AFTER = frozenset({"Sub", "Mul", "Transpose"})


def norm_operators(model: onnx.ModelProto) -> list[str]:
    """The names of the operators that `grouped_norm` has become, but for its bias.

    A product with the members sums over the channels of each group: no channel is in two. A later one hands a number of
    each group back to its channels. What lies between them, the squares before and the differences and products behind
    are the norm.
    """
    return sorted(_Norms(model).found())


class _Norms:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def found(self) -> set[str]:
        names: set[str] = set()
        for node in self.nodes:
            if not self._goes_over_groups(node, 1):
                continue
            for path in self._handed_back(node):
                around = [*self._before(path[0].input[0]), *self._after(path[-1].output[0])]
                names |= {part.name for part in (*path, *around)}
        return names

    def _goes_over_groups(self, node: onnx.NodeProto, axis: int) -> bool:
        """Whether a node is a product with a constant in which each channel, all along an axis, has one group."""
        tensor = self.constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if tensor is None or len(tensor.dims) != 2:
            return False
        return bool((np.count_nonzero(numpy_helper.to_array(tensor), axis=axis) <= 1).all())

    def _handed_back(self, node: onnx.NodeProto) -> Iterator[list[onnx.NodeProto]]:
        """The ways from a product that sums over groups to one that hands back."""
        for reader in self.readers.get(node.output[0], []):
            if self._goes_over_groups(reader, 0):
                yield [node, reader]
            elif reader.op_type in _BETWEEN:
                yield from ([node, *rest] for rest in self._handed_back(reader))

    def _before(self, value: str) -> Iterator[onnx.NodeProto]:
        maker = self.makers.get(value)
        if maker is not None and maker.op_type in _BEFORE:
            yield maker
            if maker.op_type in ("ReduceMean", "Transpose"):
                yield from self._before(maker.input[0])

    def _after(self, value: str) -> Iterator[onnx.NodeProto]:
        for reader in self.readers.get(value, []):
            if reader.op_type in _AFTER:
                yield reader
                if reader.op_type == "Transpose":
                    yield from self._after(reader.output[0])
