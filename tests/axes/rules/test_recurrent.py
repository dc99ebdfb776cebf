"""Recurrent layers and cells."""

import copy

import pytest
import torch
from contracts import Network, assert_contracts, assert_permutes, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrences import CELLS, LAYERS, Packed, recurrent
from torch import nn

import graphsurgery as gs
from graphsurgery.axes import algebra as ax
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.channels.planned_cost import PlannedCost, Widths
from graphsurgery.surgery.deviation import deviation


def around(layer, width):
    return Network(lambda n, x: n.b(n.r(torch.tanh(n.a(x)))[0]), a=nn.Linear(3, 8), r=layer, b=nn.Linear(width, 2))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
def test_inputs_and_hidden_units(kind, layers, both):
    network = around(kind(8, 6, layers, batch_first=True, bidirectional=both), 6 * (1 + both))
    graph = assert_contracts(network, (5, 3))
    assert [(s.size, s.scalable, bool(s.mixed)) for s in graph.spaces] == [(8, True, False), (6, True, False)]
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


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    graph = assert_contracts(recurrent(name), (3, 3))
    assert [(s.size, s.scalable, bool(s.mixed)) for s in graph.spaces] == [(8, True, False), (6, True, False)]
    assert not graph.frozen
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    assert deviation(widen(graph, to={"a": 11, "r": 9})(x), graph(x)) < 1e-12


def _masked(graph, network, kept):
    """A network with 0 in every weight that reads a unit that is not kept."""
    masked = copy.deepcopy(network)
    stored = dict(masked.named_parameters())
    with torch.no_grad():
        for access in graph.types.readers:
            name, axis = access.weight
            for space in graph.spaces:
                weights = torch.zeros(space.size).index_fill(0, torch.as_tensor(kept[space.name]), 1.0)
                terms = ax.resolve(access.axis)
                mask = torch.cat([weights if space.dim in term else torch.ones(ax.term_size(term)) for term in terms])
                stored[name].mul_(mask.double().reshape([-1 if k == axis else 1 for k in range(2)]))
    return masked


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([*LAYERS, *CELLS]), st.integers(0, 10**6), st.integers(2, 5), st.integers(2, 5))
def test_a_cut_is_the_network_with_masked_reads(name, seed, inputs, hidden):
    """Every weight that reads a unit that goes is 0 there: the recurrent ones, too."""
    graph, x, network = typed(recurrent(name, inputs, hidden, seed), (3, 3), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    kept = {
        s.name: torch.randperm(s.size, generator=generator)[: (s.size + 1) // 2].sort().values for s in graph.spaces
    }
    with torch.no_grad():
        masked = _masked(graph, network, kept)
        assert deviation(compress(graph, kept)(*x), masked(*x)) < 1e-12


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_networks_side_by_side(name):
    graphs = []
    for seed, hidden in enumerate((6, 6, 4)):
        graph, x, _ = typed(recurrent(name, hidden=hidden, seed=seed), (3, 3), seed=seed)
        graphs.append(graph)
    with torch.no_grad():
        mean = torch.stack([graph(*x) for graph in graphs]).mean(0)
        whole = concatenate(graphs)
        assert deviation(whole(*x), mean) < 1e-12
    assert whole.module.get_submodule("r").hidden_size == 16
    assert whole.module.get_submodule("b").in_features == sum(g.module.get_submodule("b").in_features for g in graphs)


def test_states_that_are_outputs_stay_apart_up_to_the_end():
    """A recurrence is not linear, so the mean of weights would not give the mean of the outputs."""

    def one(seed):
        torch.manual_seed(seed)
        network = Network(lambda n, x: n.r(torch.tanh(n.a(x)))[0], a=nn.Linear(3, 8), r=nn.GRU(8, 4, batch_first=True))
        return typed(network, (5, 3), seed=seed)

    (a, x, _), (b, _, _) = one(0), one(1)
    with torch.no_grad():
        assert deviation(concatenate([a, b])(*x), (a(*x) + b(*x)) / 2) < 1e-12


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_costs_before_and_after(name):
    graph, _, _ = typed(recurrent(name), (3, 3))
    small = compress(graph, {s.name: list(range(s.size // 2)) for s in graph.spaces})
    planned = PlannedCost(graph)
    widths = Widths({space.dim: space.size // 2 for space in graph.spaces})
    assert planned.macs(widths) == cost(small).macs
    assert planned.parameters(widths) == cost(small).parameters


@pytest.mark.parametrize(
    ("kind", "ends", "whole", "options"),
    [
        (nn.LSTM, True, False, {}),
        (nn.GRU, False, True, {"num_layers": 2, "bidirectional": True}),
        (nn.RNN, False, False, {}),
        (nn.LSTM, False, True, {"bidirectional": True}),
    ],
)
def test_packed_sequences(kind, ends, whole, options, tmp_path):
    network = Packed(kind, ends=ends, whole=whole, options=options).double().eval()
    x = torch.randn(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([2, 4, 3])
    graph = gs.trace(network, [x[:2], lengths[:2]])
    other = (x[:, :4].repeat(2, 1, 1), torch.tensor([1, 3, 3, 2, 3, 1]))
    for inputs in ((x, lengths), other):
        assert deviation(graph(*inputs), network(*inputs)) < 1e-13
    assert [space.size for space in graph.spaces] == [8, 6]
    assert not graph.frozen
    assert_permutes(graph, [x, lengths])
    assert deviation(widen(graph, 1.5)(x, lengths), graph(x, lengths)) < 1e-12
    kept = {"a": [0, 2, 3, 7], "r": [1, 2, 5]}
    small = compress(graph, kept)
    assert deviation(small(x, lengths), _masked(graph, network, kept)(x, lengths)) < 1e-12
    gs.save(small, tmp_path / "n.pt")
    torch.testing.assert_close(gs.load(tmp_path / "n.pt")(x, lengths), small(x, lengths), rtol=0, atol=0)
    planned = PlannedCost(graph).at(Widths({graph.space(name).dim: len(indices) for name, indices in kept.items()}))
    assert planned == cost(small)
    with pytest.raises(gs.SurgeryError, match="ONNX has no packed sequences"):
        gs.export_onnx(small, tmp_path / "n.onnx")


def test_packed_sequences_side_by_side():
    graphs = []
    x, lengths = torch.randn(3, 5, 3, dtype=torch.float64), torch.tensor([2, 5, 3])
    for seed in range(2):
        network = Packed(nn.GRU, ends=True, whole=False, options={}).double().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
        graphs.append(gs.trace(network, [x, lengths]))
    with torch.no_grad():
        mean = (graphs[0](x, lengths) + graphs[1](x, lengths)) / 2
        assert deviation(concatenate(graphs)(x, lengths), mean) < 1e-12


@pytest.mark.parametrize("name", ["LSTMCell", "LSTM"])
def test_saved_and_exported(name, tmp_path):
    x = torch.randn(2, 3, 3)
    graph = compress(gs.trace(recurrent(name).eval(), x), 0.5)
    gs.save(graph, tmp_path / "n.pt")
    assert torch.equal(gs.load(tmp_path / "n.pt")(x), graph(x))
    gs.export_onnx(graph, tmp_path / "n.onnx")
    gs.check_onnx(graph, tmp_path / "n.onnx")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("first", [True, False])
def test_steps_of_time_stay_even_where_all_are_given_the_same(kind, first):
    """What is stretched has an axis that nothing else fixes; the units are other ones at every step."""

    def forward(net, x):
        steps = torch.tanh(net.a(x)).unsqueeze(1).expand(-1, 4, -1)
        found = net.r(steps if first else steps.transpose(0, 1))[0]
        return net.b((found if first else found.transpose(0, 1)).flatten(1))

    network = Network(forward, a=nn.Linear(3, 8), r=kind(8, 6, batch_first=first), b=nn.Linear(24, 2))
    graph = assert_contracts(network, (3,))
    assert [space.size for space in graph.spaces] == [8, 6]
    assert [frozen.reason for frozen in graph.frozen] == ["an axis of time"]
