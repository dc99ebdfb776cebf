"""The table of operators on tensors, and how sizes are read in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from graphsurgery.onnx.importing.sizes import Size, Sizes

Value = Any
"""A tensor, or a number in its place."""

_Rule = Callable[..., Any]
OPERATORS: dict[str, _Rule] = {}

SIZES_AT: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Split": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "TopK": (1,),
    "CumSum": (1,), "Trilu": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3), "Resize": (1, 2, 3), "Upsample": (1,),
    "Clip": (1, 2), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Dropout": (1, 2), "MaxUnpool": (2,),
    "com.microsoft.GroupQueryAttention": (6,),
}  # fmt: skip
"""Which inputs of an operator are sizes and options, not data."""


_KIND = onnx.TensorProto
FLOATING: tuple[int, ...] = (_KIND.FLOAT, _KIND.FLOAT16, _KIND.BFLOAT16, _KIND.DOUBLE)
"""The codes of numbers that a network has in its own precision, whichever that is."""
_DTYPES: Mapping[int, torch.dtype] = {
    _KIND.FLOAT: torch.float32, _KIND.FLOAT16: torch.float32, _KIND.BFLOAT16: torch.float32,
    _KIND.DOUBLE: torch.float64, _KIND.BOOL: torch.bool, _KIND.UINT8: torch.uint8, _KIND.INT8: torch.int8,
    _KIND.INT16: torch.int16, _KIND.INT32: torch.int32, _KIND.INT64: torch.int64,
}  # fmt: skip


def torch_dtype(code: int) -> torch.dtype:
    """The dtype of torch for a type of the standard.

    Raises:
        UnlikeTorchError: torch does not compute with it.
    """
    if code not in _DTYPES:
        raise UnlikeTorchError(f"a tensor of {_KIND.DataType.Name(code)}")
    return _DTYPES[code]


class UnlikeTorchError(Exception):
    """An operator has options that no torch expression has here."""


def rule(*kinds: str) -> Callable[[_Rule], _Rule]:
    def add(function: _Rule) -> _Rule:
        OPERATORS.update(dict.fromkeys(kinds, function))
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


def tensor_of(sizes: Sizes, dtype: torch.dtype) -> Value:
    """Computed sizes as a tensor of their shape."""
    entries = sizes.reshape(-1).tolist()
    if len(entries) == 1:
        return torch.full(sizes.shape, entries[0], dtype=dtype)
    return torch.cat([torch.full((1,), entry, dtype=dtype) for entry in entries]).reshape(sizes.shape)
