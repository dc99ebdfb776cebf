"""The table of operators on tensors, and how sizes are read in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from graphsurgery.onnx.sizes import Size

Value = Any
"""A tensor, or a number in its place."""

_Rule = Callable[..., Any]
RULES: dict[str, _Rule] = {}

SIZES_AT: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Split": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "TopK": (1,),
    "CumSum": (1,), "Trilu": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3), "Resize": (1, 2, 3), "Upsample": (1,),
    "Clip": (1, 2), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Dropout": (1, 2),
}  # fmt: skip
"""Which inputs of an operator are sizes and options, not data."""


class UnlikeTorchError(Exception):
    """An operator has options that no torch expression has here."""


def rule(*kinds: str) -> Callable[[_Rule], _Rule]:
    def add(function: _Rule) -> _Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return add


def rank(x: Value) -> int:
    return int(x.dim()) if isinstance(x, (Tensor, fx.Proxy)) else 0  # type: ignore[arg-type]


def shape_of(x: Value) -> tuple[int, ...]:
    """The sizes of the trace, for decisions that do not depend on the batch."""
    return tuple((x.node.meta["value"] if isinstance(x, fx.Proxy) else x).shape)


def size_of(x: Value, axis: int) -> Any:
    """One size: symbolic in a trace."""
    shape: Any = x.shape
    return shape[axis] if isinstance(x, fx.Proxy) else Size(shape[axis])
