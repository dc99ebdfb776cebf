"""Sequences of unlike lengths, packed: what torch's functions give for tensors without data.

How many numbers are packed depends on the lengths. Where these have no values, every sequence is as long as the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def _packed(input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> PackedSequence:  # noqa: ARG001
    batch, tokens = input.shape[:2] if batch_first else (input.shape[1], input.shape[0])
    data = input.new_empty((batch * tokens, *input.shape[2:]))
    order = None if enforce_sorted else torch.empty(batch, dtype=torch.int64, device=input.device)
    return PackedSequence(data, torch.full((tokens,), batch, device="cpu"), order, order)


def _padded(
    sequence: Any,
    batch_first: bool = False,
    padding_value: float = 0.0,  # noqa: ARG001
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    data, sizes = sequence[0], sequence[1]
    tokens = len(sizes) if total_length is None else total_length
    batch = len(data) // len(sizes)
    shape = (batch, tokens) if batch_first else (tokens, batch)
    return data.new_empty((*shape, *data.shape[1:])), torch.empty(batch, dtype=torch.int64, device=data.device)


STAND_INS: Mapping[Any, Callable[..., Any]] = {pack_padded_sequence: _packed, pad_packed_sequence: _padded}
"""What stands for each function where there is no data."""
