"""Operators along a sequence: attention, softmax, recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis, Clash
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.rules.contraction import set_argument
from graphsurgery.axes.rules.pointwise import broadcast, parts_again, tie_parts
from graphsurgery.axes.types import Resize, TensorType, tensor_types
from graphsurgery.network.gated_layers import GATED


@rule(F.scaled_dot_product_attention)
def attention(
    infer: Inference,
    query: TensorType,
    key: TensorType,
    value: TensorType,
    attn_mask: TensorType | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> TensorType:
    """`q [..., L, d]`, `k [..., S, d]`, `v [..., S, e]`: d is summed over; the scale stays when d changes.

    With grouped queries every head of k and v serves as many heads of q, which come after each other.
    """
    if enable_gqa and ax.size_of(query[-3]) != ax.size_of(key[-3]):
        copies = ax.fixed(ax.size_of(query[-3]) // ax.size_of(key[-3]))
        infer.unify(key[-3], value[-3])
        key, value = (typed.replace(-3, ax.product([typed[-3], copies])) for typed in (key, value))
    infer.unify(query[-1], key[-1])
    infer.unify(key[-2], value[-2])
    if is_causal:
        infer.freeze_axis("an axis along which attention looks back", query[-2], key[-2])
    infer.reads(0, len(query) - 1, query[-1], None, 0)
    _weigh(infer, key[-2])
    lead = broadcast(infer, TensorType(query.axes[:-2]), TensorType(key.axes[:-2]), TensorType(value.axes[:-2]))
    for channels in (query[-1], value[-1]):
        infer.multiplies(*lead.axes, query[-2], key[-2], channels)
    if attn_mask is not None:
        broadcast(infer, TensorType([*lead.axes, query[-2], key[-2]]), attn_mask)
    if scale is None:
        width = ax.size_of(query[-1])

        def keep_scale(node: fx.Node, new: Resize) -> None:
            if new.size(query[-1]) != width:
                set_argument(node, 6, "scale", 1 / math.sqrt(width))

        infer.on_rebuild(keep_scale)
    return TensorType([*lead.axes, query[-2], value[-1]])


def _weigh(infer: Inference, axis: ax.Axis, dim: int | None = None) -> None:
    """A softmax mixes an axis, number `dim` of its tensor; learned tokens beside fixed positions are positions too."""
    if any(all(dim.fixed for dim in term) for term in ax.resolve(axis)):
        infer.fix(axis)
    infer.mixes(axis, "softmax", dim)


@rule(nn.Softmax, nn.LogSoftmax, nn.Softmin)
def softmax_module(infer: Inference, input: TensorType) -> TensorType:
    """Mixes one axis."""
    dim = _named(infer.submodule.dim, input)
    _weigh(infer, input[dim], dim % len(input))
    return TensorType(input.axes)


@rule(nn.Softmax2d)
def softmax_channels(infer: Inference, input: TensorType) -> TensorType:
    """Mixes the channels at every position."""
    _weigh(infer, input[-3], len(input) - 3)
    return TensorType(input.axes)


def _named(dim: Any, input: TensorType) -> int:
    """The axis of a softmax; where none is named, the one that torch takes."""
    return dim if isinstance(dim, int) else 0 if len(input) in (0, 1, 3) else 1


@rule(
    F.softmax, F.log_softmax, F.softmin, torch.softmax, torch.log_softmax, "softmax", "log_softmax",
    torch.special.softmax, torch.special.log_softmax,
)  # fmt: skip
def softmax(infer: Inference, input: TensorType, dim: Any = None, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """Mixes one axis."""
    dim = _named(dim, input)
    _weigh(infer, input[dim], dim % len(input))
    return TensorType(input.axes)


_GATES: dict[type, int] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}
_GATES |= {gated: _GATES[plain] for plain, gated in GATED.items()}


@rule(*(kind for kind in _GATES if issubclass(kind, nn.RNNBase)))
def recurrent(infer: Inference, input: Any, hx: Any = None, gates: Any = None) -> Any:
    """`x [..., in]`; `weight_ih [gates·h, in]`, `weight_hh [gates·h, h]`; all layers and directions share h.

    The hidden units also read each other, by `weight_hh`, inside the layer, which is given what gates them there.
    """
    module = infer.submodule
    assert isinstance(module, nn.RNNBase)
    if module.proj_size:
        raise Clash("projections of the hidden units")
    hidden, directions = ax.free(module.hidden_size), 2 if module.bidirectional else 1
    written = ax.product([ax.fixed(_GATES[type(module)]), hidden])
    data = input if isinstance(input, TensorType) else input[0]
    if isinstance(input, TensorType):
        infer.freeze_axis("an axis of time", input[1 if module.batch_first and len(input) == 3 else 0])
    output = data[-1]
    for layer in range(module.num_layers):
        for direction in ("", "_reverse")[:directions]:
            # What is packed is no tensor that a factor could be put in front of.
            _layer(infer, f"l{layer}{direction}", output, hidden, written, own=layer > 0 or data is not input)
        output = ax.concat([hidden] * directions)
    infer.attribute("input_size", data[-1])
    infer.attribute("hidden_size", hidden)
    _gated(infer, gates)
    return _results(infer, input, output, hidden, hx)


@rule(*(kind for kind in _GATES if issubclass(kind, nn.RNNCellBase)))
def cell(infer: Inference, input: TensorType, hx: Any = None, gates: Any = None) -> Any:
    """One step of a recurrent layer: `x [..., in]` and states `[..., h]` to states."""
    hidden = ax.free(infer.submodule.hidden_size)  # type: ignore[arg-type]
    written = ax.product([ax.fixed(_GATES[type(infer.submodule)]), hidden])
    weight, recurrent = infer.parameter("weight_ih"), infer.parameter("weight_hh")
    assert weight is not None
    assert recurrent is not None
    infer.tie("weight_ih", written, input[-1])
    infer.tie("weight_hh", written, hidden)
    infer.tie("bias_ih", written)
    infer.tie("bias_hh", written)
    infer.writes(written)
    infer.multiplies(written, input[-1])
    infer.multiplies(written, hidden)
    infer.reads(0, len(input) - 1, input[-1], weight, 1)
    # The states also go on by themselves, so a factor in front of the cell is none on its weight.
    infer.reads_inside(hidden, recurrent, 1)
    infer.attribute("input_size", input[-1])
    infer.attribute("hidden_size", hidden)
    _gated(infer, gates)
    typed = input.replace(-1, hidden)
    for given in tensor_types(hx):
        for own, axis in zip(given.axes, typed.axes, strict=True):
            infer.unify(own, axis)
    return (typed, typed) if isinstance(infer.submodule, nn.LSTMCell) else typed


def _results(infer: Inference, input: Any, output: Axis, hidden: Axis, hx: Any) -> Any:
    """All outputs, and the last states, whose type those at the start have too."""
    outputs, last = infer.value
    states = [last] if isinstance(last, Tensor) else list(last)
    if isinstance(input, TensorType):
        batch = [] if len(input) == 2 else [input[0] if infer.submodule.batch_first else input[1]]
    else:
        batch = [ax.fixed(states[0].shape[1])]
    typed = TensorType([ax.fixed(states[0].shape[0]), *batch, hidden])
    for given in tensor_types(hx):
        for own, axis in zip(given.axes, typed.axes, strict=True):
            infer.unify(own, axis)
    ends: Any = typed if isinstance(last, Tensor) else tuple(typed for _ in states)
    if not isinstance(input, TensorType):
        return (input[0].replace(-1, output), *input[1:]), ends
    assert len(outputs.shape) == len(input)
    return input.replace(-1, output), ends


@rule(pack_padded_sequence)
def packed(infer: Inference, input: TensorType, lengths: Any, *others: Any, **options: Any) -> tuple[Any, ...]:  # noqa: ARG001
    """The tokens of all sequences, one after the other; which they are is a matter of positions."""
    infer.freeze_axis("an axis of sequences that are packed", *input.axes[:2])
    data, *rest = infer.value
    axes = [ax.fixed(data.shape[0]), *input.axes[2:]]
    return (TensorType(axes), *(t if t is None else TensorType([ax.fixed(n) for n in t.shape]) for t in rest))


@rule(pad_packed_sequence)
def unpacked(infer: Inference, sequence: Any, *others: Any, **options: Any) -> tuple[TensorType, TensorType]:  # noqa: ARG001
    """The sequences as rows again, and their lengths."""
    padded, lengths = infer.value
    axes = [*(ax.fixed(n) for n in padded.shape[:2]), *sequence[0].axes[1:]]
    return TensorType(axes), TensorType([ax.fixed(n) for n in lengths.shape])


def _gated(infer: Inference, gates: Mapping[str, Any] | None) -> None:
    """The columns of some weights are scaled by masks, which are laid out as they are."""
    if not gates:
        return
    for name, parts in gates.items():
        weight = infer.parameter(name)
        assert weight is not None
        tie_parts(infer, weight[-1], parts)

    def relayout(node: fx.Node, new: Resize) -> None:
        written = cast("Mapping[str, Any]", node.kwargs["gates"])
        node.update_kwarg("gates", {name: parts_again(written[name], parts, new) for name, parts in gates.items()})

    infer.on_rebuild(relayout)


def _layer(infer: Inference, suffix: str, source: Axis, hidden: Axis, written: Axis, *, own: bool) -> None:
    """One layer in one direction; only the first reads what stands outside."""
    weight, recurrent = infer.parameter(f"weight_ih_{suffix}"), infer.parameter(f"weight_hh_{suffix}")
    assert weight is not None
    assert recurrent is not None
    infer.tie(f"weight_ih_{suffix}", written, source)
    infer.tie(f"weight_hh_{suffix}", written, hidden)
    infer.tie(f"bias_ih_{suffix}", written)
    infer.tie(f"bias_hh_{suffix}", written)
    infer.writes(written)
    infer.multiplies(written, source)
    infer.multiplies(written, hidden)
    infer.reads_inside(hidden, recurrent, 1)
    if own:
        infer.reads_inside(source, weight, 1)
    else:
        infer.reads(0, len(infer.value[0].shape) - 1, source, weight, 1)
