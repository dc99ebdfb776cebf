"""What recurrent layers give on meta tensors: torch takes every step of a sequence by itself, in Python.

A sequence of 100 steps takes it half a second.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphsurgery.network.values.spatial import new


def recurrent(layer: Any, x: Any, hx: Any = None, gates: Any = None) -> tuple[Any, ...] | None:  # noqa: ARG001
    """All outputs and the last states of an LSTM, GRU or RNN; None of packed sequences, and of one without a batch."""
    if not isinstance(x, Tensor) or not x.is_meta or x.dim() != 3 or 0 in x.shape:
        return None
    if x.shape[2] != layer.input_size or x.dtype != layer._parameters["weight_ih_l0"].dtype:
        return None
    batch, steps = x.shape[:2] if layer.batch_first else (x.shape[1], x.shape[0])
    ways, width = 2 if layer.bidirectional else 1, layer.proj_size or layer.hidden_size
    is_lstm = isinstance(layer, nn.LSTM)
    sizes = [width, layer.hidden_size] if is_lstm else [width]
    states: list[Any] = [new(x.dtype, (ways * layer.num_layers, batch, size)) for size in sizes]
    given = [] if hx is None else list(hx) if is_lstm else [hx]
    if hx is not None and [_kind(state) for state in given] != [_kind(state) for state in states]:
        return None
    outputs: Any = new(x.dtype, (steps, batch, ways * width))
    return outputs.transpose(0, 1) if layer.batch_first else outputs, tuple(states) if is_lstm else states[0]


def _kind(state: Tensor) -> tuple[Any, ...]:
    return tuple(state.shape), state.dtype, state.device
