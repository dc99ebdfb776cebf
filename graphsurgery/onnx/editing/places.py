"""Where in a file a number stands, and what is put there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from graphsurgery.onnx.editing.file_graph import FileGraph
from graphsurgery.onnx.importing.importer import Imported
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.sources import FilePlace

Edge = tuple[int, int]
"""An input of a node: the number of the node in the file, and of its input."""


class Places:
    """The numbers that operators of a file read, each at its place.

    Entry 1 of what `Reshape(x, target)` is given is looked for in the file: `target` is no constant, its maker is a
    Concat, whose first input has one entry, so entry 1 of the whole is entry 0 of the second input. That is the
    constant `[12, 64]`. What is written is for this one input of this one node, `edges[(concat, 1)] = [8, 64]`, as
    another Concat may share the constant and keep its 12. Where readers of one Concat want unlike numbers, or the file
    computes the number together with others, the reader gets what it reads with another number in it.

    Args:
        imported: what the file was.
        operators: of the file; get the numbers.

    Attributes:
        edges: constants for single inputs.
    """

    def __init__(self, imported: Imported, operators: FileGraph) -> None:
        self.imported, self.file, self.operators = imported, imported.file, operators
        self.edges: dict[Edge, np.ndarray[Any, Any]] = {}
        self._wanted: dict[tuple[Edge, int], dict[tuple[Edge, int], tuple[Any, int]]] = {}

    def known(self, name: str) -> np.ndarray[Any, Any] | None:
        """Numbers that stand in the file, or that it computes from such alone."""
        found = self.file.constants.get(name)
        return self.imported.fixed.get(name) if found is None else found

    def length(self, name: str) -> int:
        """How many sizes there are under a name."""
        name = self.file.name(name)
        return self.file.constants[name].size if name in self.file.constants else self.imported.lengths[name]

    def want(self, place: FilePlace, old: Any, new: int) -> None:
        """Say what a number has to be; those that stay count where they share a place with others."""
        if isinstance(place.at, int):
            reader = (place.operator, place.at), place.entry or 0
            self._wanted.setdefault(self._located(*reader), {})[reader] = old, new
        elif old != new and place.entry is None:
            self.operators.attributes[place.operator, place.at] = new
        elif old != new:
            given = {a.name: list(a.ints) for a in self.file.model.graph.node[place.operator].attribute}
            self.operators.attributes.setdefault((place.operator, place.at), given[place.at])[place.entry] = new

    def says(self, place: FilePlace) -> int | None:
        """The number that stands at a place; None where the file computes it."""
        edge, entry = self._located((place.operator, int(place.at)), place.entry or 0)
        known = self.known(self._name(edge))
        return None if known is None else int(known.reshape(-1)[entry])

    def settle(self) -> None:
        """Put the numbers that are wanted."""
        overridden: dict[Edge, dict[int, int]] = {}
        for (edge, entry), readers in self._wanted.items():
            name = self._name(edge)
            known = self.known(name)
            changed = {reader: new for reader, (old, new) in readers.items() if new != old}
            wanted = {new for _, new in readers.values()}
            if not changed or (known is not None and wanted == {known.reshape(-1)[entry]}):
                continue
            if len(wanted) == 1 and (known is not None or self.length(name) == 1):
                array = np.zeros(1, self._dtype(name)) if known is None else known.copy()
                self.edges.setdefault(edge, array).reshape(-1)[entry] = wanted.pop()
                continue
            for (place, number), new in changed.items():
                overridden.setdefault(place, {})[number] = new
        for edge, array in self.edges.items():
            self.operators.read(
                *edge, self.operators.constant(np.ascontiguousarray(array), self.operators.named(*edge))
            )
        for edge, numbers in overridden.items():
            self._override(edge, numbers)

    def _override(self, edge: Edge, numbers: Mapping[int, int]) -> None:
        """Put numbers into what a single input is given."""
        given, name = self.operators.named(*edge), self._name(edge)
        length = range(self.length(name))
        there = self.operators.constant(np.array([entry in numbers for entry in length]), f"{given}/new")
        new = np.array([numbers.get(entry, 0) for entry in length], self._dtype(name))
        read = [there, self.operators.constant(new, f"{given}/sizes"), given]
        self.operators.read(*edge, self.operators.operator("Where", read, self.operators.fresh(f"{given}/Where"), {}))

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
