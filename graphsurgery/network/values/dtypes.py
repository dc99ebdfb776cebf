"""What tensors hold: numbers, real or complex, that surgery may move and average, or indices and flags."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

_FLOATING = frozenset((torch.float16, torch.bfloat16, torch.float32))
_CASTS = frozenset(("float", "half", "bfloat16"))
"""Methods that ask for a floating dtype."""


def holds_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds real or complex numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def in_double(tensor: Tensor) -> Tensor:
    """Numbers in double precision; indices and flags as they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def literals_in_double(arguments: Any) -> Any:
    """Arguments of a call in which float64 stands for every dtype of floating numbers."""
    return fx.node.map_aggregate(arguments, _literal_in_double)


def _literal_in_double(argument: Any) -> Any:
    return torch.float64 if isinstance(argument, torch.dtype) and argument in _FLOATING else argument


def method_in_double(name: str) -> str:
    """The method that casts to float64 in place of one that casts to another floating dtype; others as they are."""
    return "double" if name in _CASTS else name


@contextmanager
def made_in_double() -> Iterator[None]:
    """Floating numbers that a call makes of none are in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
