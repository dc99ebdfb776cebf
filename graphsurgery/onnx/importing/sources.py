"""Where in an `.onnx` file the parameters of a network stand, and each argument: the record by which an edit goes back.

While a network is traced, what an operator reads is at hand beside the nodes that it becomes. A literal that stands in
the file is a number that knows its place (`Placed`), which torch and the trace hand on as any other, whatever the rule
of the operator does with it. A tensor, and a size that is computed, is known by its node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

Layout = Literal["same", "transposed", "flat"]

Arrays = Mapping[str, np.ndarray[Any, Any]]

_NOTED = "what of a file its arguments are"
_SIZED = frozenset(("group", "num_groups", "num_heads", "kv_num_heads", "qkv_hidden_sizes", "split", "starts", "ends"))
"""Attributes that say how many there are, or where they lie."""


@dataclass(frozen=True)
class RecurrentPart:
    """A piece of a constant `[directions, pieces · gates · hidden, ...]` of a recurrent operator.

    Attributes:
        direction: which one.
        piece, pieces: which of the equal pieces of its rows.
        order: where the gates of the parameter stand in the constant.
    """

    direction: int
    order: tuple[int, ...]
    piece: int = 0
    pieces: int = 1

    def taken(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The parameter `[gates · hidden, ...]`."""
        gates, inner = len(self.order), array.shape[2:]
        rows = array[self.direction].reshape(self.pieces, gates, -1, *inner)[self.piece]
        return np.ascontiguousarray(rows[list(self.order)].reshape(-1, *inner))

    def placed(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The rows of the parameter in the order of the constant."""
        gates = rows.reshape(len(self.order), -1, *rows.shape[1:])
        return gates[np.argsort(self.order)].reshape(rows.shape)


@dataclass(frozen=True)
class Source:
    """Where in the file a parameter or buffer stands.

    Attributes:
        constant: name of the initializer or constant.
        layout: how the parameter's axes lie in it: the same, transposed, or with axes of one added or taken.
        part: which part of the constant it is, where it is not the whole.
    """

    constant: str
    layout: Layout = "same"
    part: RecurrentPart | None = None

    def read(self, array: np.ndarray[Any, Any]) -> Tensor:
        """The parameter from the constant."""
        tensor = torch.from_numpy(np.array(array) if self.part is None else self.part.taken(array))
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        if self.layout == "transposed":
            return tensor.t().contiguous()
        return tensor.flatten() if self.layout == "flat" else tensor

    def written(self, tensor: Tensor, old: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The constant from the parameter, with as many axes as it had; where it is a part, the rows of that."""
        array = tensor.detach().cpu().numpy().astype(old.dtype)
        if self.part is not None:
            return self.part.placed(array)
        if self.layout == "transposed":
            return np.ascontiguousarray(array.T)
        if self.layout == "flat":
            return array.reshape([-1 if size == old.size else 1 for size in old.shape] if old.size > 1 else old.shape)
        return array


def assembled(sources: Sequence[Source], tensors: Sequence[Tensor], old: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The constant that is made up of these parameters: one, or all its parts in any order.

    Args:
        sources: of one constant.
        tensors: the parameters.
        old: the constant in the file.
    """
    pieces = [source.written(tensor, old) for source, tensor in zip(sources, tensors, strict=True)]
    if sources[0].part is None:
        return pieces[0]
    found: dict[int, dict[int, np.ndarray[Any, Any]]] = {}
    for source, piece in zip(sources, pieces, strict=True):
        assert source.part is not None
        found.setdefault(source.part.direction, {})[source.part.piece] = piece
    return np.stack([np.concatenate([rows[at] for at in sorted(rows)]) for _, rows in sorted(found.items())])


@dataclass(frozen=True)
class Layer:
    """A layer without its weights, and where they stand."""

    module: nn.Module
    sources: Mapping[str, Source]


def stored(names: Sequence[str], constants: Arrays) -> bool:
    """Whether all of these inputs are floating constants or left out, and the first is there."""
    return bool(names[0]) and all(
        not name or (name in constants and constants[name].dtype.kind == "f") for name in names
    )


class FilePlace(NamedTuple):
    """Where a file says what an argument is.

    Attributes:
        operator: the number of the node.
        at: the number of its input, or the name of its attribute.
        entry: which number of that; None where it is a tensor, or the attribute is one number.
    """

    operator: int
    at: int | str
    entry: int | None = None


class Placed(int):
    """A literal that stands in the file; what is computed from it is an ordinary number."""

    place: FilePlace

    @classmethod
    def of(cls, number: int, place: FilePlace) -> Placed:
        found = cls(number)
        found.place = place
        return found


class FileOrigin(NamedTuple):
    """Which operator has become a node, and where it says each argument; nowhere is what it does not say.

    Attributes:
        operator: the number of the operator's node in the file.
        places: of every leaf of the arguments (`leaves`). Several where it reads one value more than once, and all are
            read alike.
    """

    operator: int
    places: tuple[tuple[FilePlace, ...], ...]


def leaves(node: fx.Node) -> list[Any]:
    """The arguments of a node, one after the other: what stands in lists, slices and dicts by itself."""
    found: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda leaf: found.append(leaf))
    return found


def is_literal(number: Any) -> bool:
    """Whether a number stands in the file, or follows from one that does, and is no size of a tensor."""
    return type(number) in (int, Placed)


def placed(array: Any, operator: int, at: int) -> Any:
    """Sizes whose literals know where an input says them; what is no array of integers as it is."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iO":
        return array
    found = np.empty(array.size, object)
    for entry, number in enumerate(array.reshape(-1).tolist()):
        found[entry] = Placed.of(number, FilePlace(operator, at, entry)) if is_literal(number) else number
    return found.reshape(array.shape)


def placed_attribute(value: Any, operator: int, name: str) -> Any:
    """The same of an attribute."""
    if name not in _SIZED:
        return value
    if type(value) is int:
        return Placed.of(value, FilePlace(operator, name))
    return [Placed.of(number, FilePlace(operator, name, entry)) for entry, number in enumerate(value)]


class FileRecorder:
    """Notes in the nodes of a trace what of the file they read; without a trace, nothing.

    Args:
        inputs: what the network is given.

    Attributes:
        sizes: what the operator that is run was given for sizes, by its inputs.
    """

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.sizes: dict[int, Any] = {}
        self.graph = next((x.node.graph for x in inputs if isinstance(x, fx.Proxy)), None)
        self.last = None if self.graph is None else next(iter(reversed(self.graph.nodes)))

    def known(self, operator: int) -> int | None:
        """The number of an operator whose attributes have to know where they stand."""
        return None if self.graph is None else operator

    def placed(self, operator: int, values: Sequence[Any], sizes_at: Collection[int] | None = None) -> list[Any]:
        """What an operator is given, with literals that know their places in those inputs that are sizes.

        By default all are, where one of them follows a size of a tensor.
        """
        symbolic = any(isinstance(value, np.ndarray) and value.dtype == object for value in values)
        known = (range(len(values)) if symbolic else ()) if sizes_at is None else sizes_at
        known = known if self.graph is not None else ()
        return [placed(value, operator, at) if at in known else value for at, value in enumerate(values)]

    def note(self, operator: int, read: Iterable[tuple[int, int, Any]]) -> None:
        """Note of the nodes that have come since the last time that they are this operator.

        Args:
            operator: its number.
            read: the values that it is given, each behind the number of the node that reads it and of the input there.
        """
        if self.graph is None:
            return
        given: dict[fx.Node, list[FilePlace]] = {}
        for node, at, value in read:
            symbolic = isinstance(value, np.ndarray) and value.dtype == object
            for entry, part in enumerate(value.reshape(-1).tolist() if symbolic else [value]):
                if isinstance(part, fx.Proxy):
                    given.setdefault(part.node, []).append(FilePlace(node, at, entry if symbolic else None))
        self.sizes = {}
        new = list(takewhile(lambda node: node is not self.last, reversed(self.graph.nodes)))[::-1]
        self.last = new[-1] if new else self.last
        found: dict[fx.Node, list[tuple[dict[int, tuple[FilePlace, ...]], int]]] = {}
        for made in new:
            places: dict[int, tuple[FilePlace, ...]] = {}
            made.meta[_NOTED] = operator, places
            for number, leaf in enumerate(leaves(made)):
                if isinstance(leaf, fx.Node) and leaf in given:
                    found.setdefault(leaf, []).append((places, number))
        for source, readers in found.items():
            each = len(readers) == len(given[source])
            for count, (places, number) in enumerate(readers):
                places[number] = (given[source][count],) if each else tuple(given[source])


def origins_of(graph: fx.Graph) -> dict[str, FileOrigin]:
    """The record of a traced network, by the names of its nodes; its literals are ordinary numbers afterwards."""
    found = {}
    for node in graph.nodes:
        operator, noted = node.meta.pop(_NOTED, (None, {}))
        own = leaves(node)
        if operator is not None and node.op.startswith("call"):
            places = ((leaf.place,) if isinstance(leaf, Placed) else noted.get(at, ()) for at, leaf in enumerate(own))
            found[node.name] = FileOrigin(operator, tuple(places))
        if any(isinstance(leaf, Placed) for leaf in own):
            node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), _plain)
    return found


def _plain(leaf: Any) -> Any:
    return int(leaf) if isinstance(leaf, Placed) else leaf
