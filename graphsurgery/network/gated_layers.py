"""Recurrent layers whose gates stand inside, in front of the weights that read what the layer itself has written.

A state is read by `weight_hh` where no other node can reach it, so the gates are given to the layer, which scales the
columns of that weight: `W (g · h) = (W diag(g)) h`. One weight serves the whole batch, so the gates do, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from graphsurgery.network.layers import scale_axis

__all__ = ["GatedGRU", "GatedGRUCell", "GatedLSTM", "GatedLSTMCell", "GatedRNN", "GatedRNNCell"]

Gates = Mapping[str, Sequence[tuple[Tensor | None, int, int]]]
"""By the name of a weight `[…, n]` the parts of its columns, as `scale_axis` takes them; the first mask serves all."""


class GatedRNN(nn.RNN):
    """An `nn.RNN` that may be given gates."""

    def forward(self, input: Any, hx: Any = None, gates: Gates | None = None) -> Any:
        """What the layer gives with its weights scaled."""
        return _run(self, nn.RNN, input, hx, gates)


class GatedLSTM(nn.LSTM):
    """An `nn.LSTM` that may be given gates."""

    def forward(self, input: Any, hx: Any = None, gates: Gates | None = None) -> Any:
        """What the layer gives with its weights scaled."""
        return _run(self, nn.LSTM, input, hx, gates)


class GatedGRU(nn.GRU):
    """An `nn.GRU` that may be given gates."""

    def forward(self, input: Any, hx: Any = None, gates: Gates | None = None) -> Any:
        """What the layer gives with its weights scaled."""
        return _run(self, nn.GRU, input, hx, gates)


class GatedRNNCell(nn.RNNCell):
    """An `nn.RNNCell` that may be given gates."""

    def forward(self, input: Any, hx: Any = None, gates: Gates | None = None) -> Any:
        """What the cell gives with its weights scaled."""
        return _run(self, nn.RNNCell, input, hx, gates)


class GatedLSTMCell(nn.LSTMCell):
    """An `nn.LSTMCell` that may be given gates."""

    def forward(self, input: Any, hx: Any = None, gates: Gates | None = None) -> Any:
        """What the cell gives with its weights scaled."""
        return _run(self, nn.LSTMCell, input, hx, gates)


class GatedGRUCell(nn.GRUCell):
    """An `nn.GRUCell` that may be given gates."""

    def forward(self, input: Any, hx: Any = None, gates: Gates | None = None) -> Any:
        """What the cell gives with its weights scaled."""
        return _run(self, nn.GRUCell, input, hx, gates)


GATED: Mapping[type[nn.Module], type[nn.Module]] = MappingProxyType(
    {
        nn.RNN: GatedRNN,
        nn.LSTM: GatedLSTM,
        nn.GRU: GatedGRU,
        nn.RNNCell: GatedRNNCell,
        nn.LSTMCell: GatedLSTMCell,
        nn.GRUCell: GatedGRUCell,
    }
)
"""The layer that may be given gates, by the plain one; it has the same weights under the same names."""


def _run(layer: nn.Module, plain: type[nn.Module], input: Any, hx: Any, gates: Gates | None) -> Any:
    """Run a stand-in for a layer that has the same settings and scaled weights."""
    # Under a mask the weights of a cell are computed.
    computed = cast("nn.ModuleDict", layer.parametrizations) if parametrize.is_parametrized(layer) else ()
    weights = {name: getattr(layer, name) for name in (*layer._parameters, *computed)}
    for name, parts in (gates or {}).items():
        weights[name] = scale_axis(weights[name], weights[name].dim() - 1, parts, batch=None)
    scaled = plain.__new__(plain)
    scaled.__dict__.update(layer.__dict__)
    scaled.__dict__.update(_parameters=weights, _modules={})
    return plain.forward(scaled, input, hx)
