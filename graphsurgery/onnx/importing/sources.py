"""Where in an `.onnx` file the parameters of a network stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

Layout = Literal["same", "transposed", "flat"]

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Part:
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
    part: Part | None = None

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
