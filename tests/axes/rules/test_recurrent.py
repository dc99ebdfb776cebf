"""Recurrent layers."""

import pytest
import torch
from contracts import Network, assert_contracts, typed
from torch import nn

from graphsurgery.passes.compress import compress
from graphsurgery.surgery.deviation import deviation


def around(layer, width):
    return Network(lambda n, x: n.b(n.r(torch.tanh(n.a(x)))[0]), a=nn.Linear(3, 8), r=layer, b=nn.Linear(width, 2))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
def test_inputs_and_hidden_units(kind, layers, both):
    network = around(kind(8, 6, layers, batch_first=True, bidirectional=both), 6 * (1 + both))
    graph = assert_contracts(network, (5, 3))
    assert [(s.size, s.scalable, bool(s.mixed)) for s in graph.spaces] == [(8, True, False), (6, False, True)]
    assert not graph.frozen


def test_a_cut_unit_is_a_unit_that_nobody_reads():
    graph, x, network = typed(around(nn.LSTM(8, 6, batch_first=True), 6), (5, 3))
    small = compress(graph, {graph.spaces[1].name: [0, 2, 5]})
    assert small.module.get_submodule("r").hidden_size == 3
    with torch.no_grad():
        for gone in (1, 3, 4):
            network.r.weight_hh_l0[:, gone] = 0
            network.b.weight[:, gone] = 0
        assert deviation(small(*x), network(*x)) < 1e-12


def test_states_have_the_type_of_hidden_units():
    def forward(net, x):
        start = torch.tanh(net.s(x[:, 0]))[None]
        _, (h, c) = net.r(net.a(x).transpose(0, 1), (start, start * 0))
        return net.b(torch.cat([h[-1], c[-1]], -1))

    network = Network(forward, a=nn.Linear(3, 8), s=nn.Linear(3, 6), r=nn.LSTM(8, 6), b=nn.Linear(12, 2))
    graph = assert_contracts(network, (5, 3))
    assert sorted(s.size for s in graph.spaces) == [6, 8]


def test_projected_states_are_frozen():
    graph = assert_contracts(around(nn.LSTM(8, 6, proj_size=4, batch_first=True), 4), (5, 3))
    assert graph.frozen[0].reason == "LSTM: projections of the hidden units"
