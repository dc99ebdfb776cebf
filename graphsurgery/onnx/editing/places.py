"""Where in a file a number stands, and what is put there."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import onnx

from graphsurgery.errors import UnsupportedError
from graphsurgery.onnx.importing.importer import Imported
from graphsurgery.onnx.importing.program import Operator

Edge = tuple[int, int]
"""An input of a node: the number of the node in the file, and of its input."""


class Places:
    """The numbers that operators of a file read, each at its place.

    Entry 1 of what `Reshape(x, target)` is given is looked for in the file: `target` is no constant, its maker is a
    Concat, whose first input has one entry, so entry 1 of the whole is entry 0 of the second input. That is the
    constant `[12, 64]`. What is written is for this one input of this one node, `edges[(concat, 1)] = [8, 64]`, as
    another Concat may share the constant and keep its 12.

    Args:
        imported: what the file was.

    Attributes:
        edges: constants for single inputs.
    """

    def __init__(self, imported: Imported) -> None:
        self.imported, self.file = imported, imported.file
        self.edges: dict[Edge, np.ndarray[Any, Any]] = {}
        self._written: dict[tuple[Edge, int], int] = {}

    def known(self, name: str) -> np.ndarray[Any, Any] | None:
        """Numbers that stand in the file, or that it computes from such alone."""
        found = self.file.constants.get(name)
        return self.imported.fixed.get(name) if found is None else found

    def length(self, name: str) -> int:
        """How many sizes there are under a name."""
        name = self.file.name(name)
        return self.file.constants[name].size if name in self.file.constants else self.imported.lengths[name]

    def replace(self, operator: Operator, at: int, place: int, old: int, new: int) -> None:
        """Put a number where an entry of an input stands, unless the file computes it.

        Raises:
            UnsupportedError: the input would have to be two numbers.
        """
        edge, entry = self._located((operator.index, at), place)
        known = self.known(self._name(edge))
        if known is not None and known.reshape(-1)[entry] == old:
            self._write(operator, edge, entry, new)

    def put(self, operator: Operator, at: int, place: int, new: int) -> None:
        """Put a number in a constant, or in place of one that the file computes.

        Raises:
            UnsupportedError: the file computes it together with others, or the input would have to be two numbers.
        """
        self._write(operator, *self._located((operator.index, at), place), new)

    def _write(self, operator: Operator, edge: Edge, entry: int, new: int) -> None:
        name = self._name(edge)
        old = self.known(name)
        if old is None and self.length(name) > 1:
            raise UnsupportedError(
                f"{self.file.path}: {operator.name} computes a shape in which a size has become {new}"
            )
        array = self.edges.setdefault(edge, np.zeros(1, self._dtype(name)) if old is None else old.copy())
        if self._written.setdefault((edge, entry), new) != new:
            raise UnsupportedError(f"{self.file.path}: {operator.name} shares a shape with others that need {array}")
        array.reshape(-1)[entry] = new

    def _name(self, edge: Edge) -> str:
        """The first name of what an input reads."""
        return self.file.name(self.file.model.graph.node[edge[0]].input[edge[1]])

    def _dtype(self, name: str) -> np.dtype[Any]:
        """The integers that the file computes under a name."""
        code = self.file.kinds.get(name, 0)
        return np.dtype(np.int32 if code == onnx.TensorProto.INT32 else np.int64)

    def _located(self, edge: Edge, place: int) -> tuple[Edge, int]:
        """The constant in which an entry of a shape stands, and its place there; or the input that is computed."""
        name = self._name(edge)
        maker = self._makers.get(name)
        if name not in self.file.constants and maker is not None and maker.kind == "Cast":
            return self._located((maker.index, 0), place)
        if name in self.file.constants or maker is None or maker.kind != "Concat":
            return edge, place
        for at, part in enumerate(maker.inputs):
            length = self.length(part)
            if place < length:
                return self._located((maker.index, at), place)
            place -= length
        return edge, place

    @cached_property
    def _makers(self) -> dict[str, Operator]:
        return {name: operator for operator in self.file.operators for name in operator.outputs}
