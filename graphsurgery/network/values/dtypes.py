"""What tensors hold: numbers, real or complex, that surgery may move and average, or indices and flags."""

from __future__ import annotations

import torch
from torch import Tensor


def holds_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds real or complex numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def in_double(tensor: Tensor) -> Tensor:
    """Numbers in double precision; indices and flags as they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor
