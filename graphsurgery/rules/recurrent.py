"""Recurrent layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphsurgery import axes as ax
from graphsurgery.axes import Axis, Clash
from graphsurgery.facts import TensorType, tensor_types
from graphsurgery.inference import Inference, rule

_GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


@rule(*_GATES)
def recurrent(infer: Inference, input: TensorType, hx: Any = None) -> Any:
    """`x [..., in]`; `weight_ih [gates·h, in]`, `weight_hh [gates·h, h]`; all layers and directions share h.

    The hidden units also read each other, inside the layer and out of reach of gates, so they are mixed.
    """
    module = infer.submodule
    assert isinstance(module, nn.RNNBase)
    if module.proj_size:
        raise Clash("projections of the hidden units")
    hidden, directions = ax.free(module.hidden_size), 2 if module.bidirectional else 1
    gates = ax.product([ax.fixed(_GATES[type(module)]), hidden])
    output = input[-1]
    for layer in range(module.num_layers):
        for direction in ("", "_reverse")[:directions]:
            _layer(infer, f"l{layer}{direction}", output, hidden, gates, own=layer > 0)
        output = ax.concat([hidden] * directions)
    infer.attribute("input_size", input[-1])
    infer.attribute("hidden_size", hidden)
    infer.mixes(hidden, "recurrence")
    return _results(infer, input, output, hidden, hx)


def _results(infer: Inference, input: TensorType, output: Axis, hidden: Axis, hx: Any) -> Any:
    """All outputs, and the last states, whose type those at the start have too."""
    outputs, last = infer.value
    states = [last] if isinstance(last, Tensor) else list(last)
    batch = [] if len(input) == 2 else [input[0] if infer.submodule.batch_first else input[1]]
    typed = TensorType([ax.fixed(states[0].shape[0]), *batch, hidden])
    for given in tensor_types(hx):
        for own, axis in zip(given.axes, typed.axes, strict=True):
            infer.unify(own, axis)
    assert len(outputs.shape) == len(input)
    return input.replace(-1, output), typed if isinstance(last, Tensor) else tuple(typed for _ in states)


def _layer(infer: Inference, suffix: str, source: Axis, hidden: Axis, gates: Axis, *, own: bool) -> None:
    """One layer in one direction; only the first reads what stands outside."""
    weight, recurrent = infer.parameter(f"weight_ih_{suffix}"), infer.parameter(f"weight_hh_{suffix}")
    assert weight is not None
    assert recurrent is not None
    infer.tie(f"weight_ih_{suffix}", gates, source)
    infer.tie(f"weight_hh_{suffix}", gates, hidden)
    infer.tie(f"bias_ih_{suffix}", gates)
    infer.tie(f"bias_hh_{suffix}", gates)
    infer.writes(gates)
    infer.reads_inside(hidden, recurrent, 1)
    if own:
        infer.reads_inside(source, weight, 1)
    else:
        infer.reads(0, len(infer.value[0].shape) - 1, source, weight, 1)
