"""Recurrent operators as layers of torch: `LSTM`, `GRU`, `RNN`.

ONNX has one operator for each layer, with weights `W [directions, gates · hidden, input]`, `R [directions, gates ·
hidden, hidden]` and both biases in one `B [directions, 2 · gates · hidden]`; torch has its gates in another order, and
a parameter for each direction and each bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from graphsurgery.network.values.packing import STAND_INS
from graphsurgery.network.values.shapes import result_of
from graphsurgery.onnx.importing.operators import shape_of, size_of
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.sources import Arrays, Layer, RecurrentPart, Source, stored

_ORDERS: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where the gates of torch stand among those of ONNX: `i f g o` in `i o f c`, and `r z n` in `z r h`."""
_USUAL: Mapping[str, tuple[str, ...]] = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}
RECURRENT = frozenset(_ORDERS)
LENGTHS_AT = 4
STATES_AT = (5, 6)
_PEEPHOLES_AT = 7


def recurrent_layer(operator: Operator, constants: Arrays, _: int) -> Layer | None:
    """The layer of a recurrent operator; None for options that torch's layers do not have."""
    given = operator.attributes
    inputs = (*operator.inputs, *[""] * 8)[:8]
    weights = [inputs[at] for at in (1, 2, 3)]
    kind = _nonlinearity(operator)
    if not stored(weights, constants) or not weights[1] or kind is None or inputs[_PEEPHOLES_AT]:
        return None
    if given.get("clip") or given.get("input_forget") or given.get("activation_alpha") or given.get("activation_beta"):
        return None
    # The reset gate of torch's GRU acts behind the product.
    if operator.kind == "GRU" and not given.get("linear_before_reset"):
        return None
    way = given.get("direction", b"forward").decode()
    if given.get("layout") or (way == "reverse" and inputs[LENGTHS_AT]):
        return None
    shape = constants[weights[0]].shape
    hidden = given.get("hidden_size", constants[weights[1]].shape[-1])
    options: dict[str, Any] = {
        "bias": bool(weights[2]), "bidirectional": way == "bidirectional"
    }  # fmt: skip
    module: nn.Module
    if operator.kind == "RNN":
        module = nn.RNN(shape[-1], hidden, nonlinearity=kind, **options)
    else:
        module = (nn.LSTM if operator.kind == "LSTM" else nn.GRU)(shape[-1], hidden, **options)
    return Layer(module, dict(_sources(operator.kind, weights, shape[0])))


def _nonlinearity(operator: Operator) -> str | None:
    """What torch calls the activations of an operator, `tanh` where they are the usual ones; None where it has none."""
    way = operator.attributes.get("direction", b"forward").decode()
    names = [name.decode().lower() for name in operator.attributes.get("activations", ())]
    usual = _USUAL.get(operator.kind, ("tanh",))
    each = 2 if way == "bidirectional" else 1
    if not names or names == list(usual) * each:
        return "tanh"
    return "relu" if operator.kind == "RNN" and names == ["relu"] * each else None


def _sources(kind: str, weights: Sequence[str], directions: int) -> Any:
    order = _ORDERS[kind]
    for direction in range(directions):
        suffix = "_l0" + ("_reverse" if direction else "")
        yield f"weight_ih{suffix}", Source(weights[0], part=RecurrentPart(direction, order))
        yield f"weight_hh{suffix}", Source(weights[1], part=RecurrentPart(direction, order))
        if weights[2]:
            yield f"bias_ih{suffix}", Source(weights[2], part=RecurrentPart(direction, order, 0, 2))
            yield f"bias_hh{suffix}", Source(weights[2], part=RecurrentPart(direction, order, 1, 2))


def is_start(array: np.ndarray[Any, Any]) -> bool:
    """Whether a constant `[directions, batch, hidden]` is no start of its own: all its numbers are 0."""
    return not array.any()


def run_recurrent(operator: Operator, layer: Any, x: Any, lengths: Any, states: Sequence[Any]) -> tuple[Any, ...]:
    """What a recurrent operator gives: all outputs, and the last states.

    Args:
        operator: which one.
        layer: the layer that it has become.
        x: `[sequence, batch, input]`.
        lengths: of the sequences, `[batch]`; None for whole ones.
        states: `[directions, batch, hidden]` at the start; none for 0.
    """
    way = operator.attributes.get("direction", b"forward").decode()
    if way == "reverse":
        x = torch.flip(x, (0,))
    states = [_in_batch(state, x) for state in states]
    # By their names in torch, where a trace has others.
    pack, unpack = rnn.pack_padded_sequence, rnn.pad_packed_sequence
    if isinstance(x, Tensor) and x.is_meta:
        pack, unpack = STAND_INS[pack], STAND_INS[unpack]
    data = x if lengths is None else pack(x, lengths.long(), enforce_sorted=False)
    # Without states nothing is handed over, as by a module of Python.
    given = (tuple(states) if operator.kind == "LSTM" else states[0],) if states else ()
    known = result_of("call_module", layer, (data, *given), {}) if isinstance(data, Tensor) and data.is_meta else None
    outputs, last = layer(data, *given) if known is None else known
    if lengths is not None:
        outputs = unpack(outputs, total_length=size_of(x, 0))[0]
    if way == "reverse":
        outputs = torch.flip(outputs, (0,))
    both = way == "bidirectional"
    outputs = torch.stack(tuple(torch.chunk(outputs, 2, -1)), 1) if both else outputs.unsqueeze(1)
    found = (outputs, last[0], last[1]) if operator.kind == "LSTM" else (outputs, last)
    return found[: len(operator.outputs)]


def _in_batch(state: Any, x: Any) -> Any:
    """A state for each example: one that is a parameter serves all."""
    return state.expand(-1, size_of(x, 1), -1) if shape_of(state)[1] == 1 != shape_of(x)[1] else state
