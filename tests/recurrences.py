"""Networks around a recurrent layer or cell."""

import torch
from contracts import Network
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


def steps(n, x):
    """A cell over three steps, from a state that is given or from none."""
    x = torch.tanh(n.a(x))
    state = n.r(x[:, 0])
    for t in range(1, 3):
        state = n.r(x[:, t], state)
    return n.b(torch.cat(state, -1) if isinstance(state, tuple) else state)


LAYERS = {
    **{kind.__name__: (kind, {}) for kind in (nn.LSTM, nn.GRU, nn.RNN)},
    "both ways, in two layers": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "without biases": (nn.GRU, {"bias": False}),
}
CELLS = {
    "LSTMCell": (nn.LSTMCell, {}),
    "GRUCell": (nn.GRUCell, {}),
    "RNNCell": (nn.RNNCell, {"nonlinearity": "relu", "bias": False}),
}


def recurrent(name, inputs=8, hidden=6, seed=0):
    """A network around a recurrent layer or cell, by its name in `LAYERS` or `CELLS`."""
    torch.manual_seed(seed)
    if name in LAYERS:
        kind, options = LAYERS[name]
        directions = 1 + options.get("bidirectional", False)
        layer = kind(inputs, hidden, batch_first=True, **options)
        return Network(
            lambda n, x: n.b(n.r(torch.tanh(n.a(x)))[0]),
            a=nn.Linear(3, inputs),
            r=layer,
            b=nn.Linear(hidden * directions, 2),
        )
    kind, options = CELLS[name]
    head = nn.Linear(hidden * (1 + (kind is nn.LSTMCell)), 2)
    return Network(steps, a=nn.Linear(3, inputs), r=kind(inputs, hidden, **options), b=head)


class Packed(nn.Module):
    """Sequences of unlike lengths; the states at their ends, or all of them."""

    def __init__(self, kind, *, ends, whole, options):
        super().__init__()
        torch.manual_seed(0)
        directions = 1 + options.get("bidirectional", False)
        self.a, self.b = nn.Linear(3, 8), nn.Linear(6 * directions, 2)
        self.r = kind(8, 6, batch_first=True, **options)
        self.ends, self.whole = ends, whole

    def forward(self, x, lengths):
        sequence = pack_padded_sequence(torch.tanh(self.a(x)), lengths, batch_first=True, enforce_sorted=False)
        states, last = self.r(sequence)
        if self.ends:
            return self.b((last[0] if isinstance(last, tuple) else last)[-1])
        total = {"total_length": x.shape[1]} if self.whole else {}
        padded, found = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, **total)
        return self.b(padded), found
