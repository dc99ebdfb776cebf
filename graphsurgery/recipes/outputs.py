"""How far two modules' outputs lie apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from graphsurgery.outputs import named_outputs, run
from graphsurgery.recipes.contracts import UnlikeError
from graphsurgery.verify import deviation

__all__ = ["apart", "named_outputs", "run"]


def apart(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, over: Callable[[list[float]], float] = max
) -> float:
    """The relative deviation of the outputs, each in proportion to its own largest value: the largest, or another.

    Raises:
        UnlikeError: they are not the same outputs, or not of the same shapes.
    """
    missing = [name for name in expected if name not in found]
    added = [name for name in found if name not in expected]
    if missing or added:
        differences = [f"{word} {', '.join(names)}" for word, names in (("lacks", missing), ("adds", added)) if names]
        raise UnlikeError(
            f"it gives {len(found)} outputs where {len(expected)} are expected: {' and '.join(differences)}"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise UnlikeError(f"output {name} has the shape {list(found[name].shape)}, expected {list(tensor.shape)}")
    return over([deviation(found[name], tensor) for name, tensor in expected.items()] or [0.0])
