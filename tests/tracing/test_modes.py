"""Train and eval in one graph; submodules that are kept whole; decisions that a trace has taken."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from contracts import Network, assert_contracts
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from zoo import googlenet, randomize

import graphsurgery as gs
from graphsurgery.checkpoint import load, save
from graphsurgery.network.assembly import as_evaluated
from graphsurgery.network.layers import either
from graphsurgery.network.outputs.naming import tensors_of
from graphsurgery.passes.compress import compress
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import deviation
from graphsurgery.tracing.modes import shared_runs


def outputs(module, x, training):
    torch.manual_seed(0)
    return tensors_of(module.train(training)(x))


def assert_follows(network, x, graph=None):
    """The trace gives what the network gives, in both modes, and learns the same statistics."""
    eager = copy.deepcopy(network)
    graph = gs.trace(network, x) if graph is None else graph
    for training in (False, True, False):
        found, expected = outputs(graph.module, x, training), outputs(eager, x, training)
        assert len(found) == len(expected)
        assert deviation(found, expected) < 1e-12
    return graph


def functional(net, x):
    h = net.bn(net.a(x))
    h = F.dropout(h, 0.3, net.training)
    h = F.alpha_dropout(h, 0.3, training=net.training)
    h = F.batch_norm(h, net.bn.running_mean, net.bn.running_var, training=net.training)
    return net.b(torchvision.ops.stochastic_depth(h, 0.5, "row", net.training))


def rate_by_mode(net, x):
    h = net.bn(net.a(x))
    return net.b(F.dropout(h, 0.4 if net.training else 0.0))


def branch(net, x):
    h = net.bn(net.a(x))
    if net.training:
        h = h + torch.rand_like(h)
    return net.b(h)


def auxiliary(net, x):
    h = torch.relu(net.bn(net.a(x)))
    return (net.b(h), net.c(F.relu(net.d(h), inplace=True))) if net.training else net.b(h)


def named(net, x):
    h = net.bn(net.a(x))
    return {"out": net.b(h), "more": [net.c(net.d(h))]} if not net.training else {"out": net.b(h), "more": [h]}


@pytest.mark.parametrize("forward", [functional, rate_by_mode, branch, auxiliary, named])
def test_both_modes_are_in_the_graph(forward):
    torch.manual_seed(0)
    layers = {"a": nn.Linear(4, 8), "bn": nn.BatchNorm1d(8), "b": nn.Linear(8, 3)}
    network = Network(forward, **layers, d=nn.Linear(8, 6), c=nn.Linear(6, 3)).double()
    randomize(network)
    x = torch.randn(5, 4, dtype=torch.float64)
    graph = assert_follows(network, x)
    assert "only as in evaluation" not in graph.lineage[0]
    if forward is not rate_by_mode:
        assert_contracts(copy.deepcopy(network).eval(), (4,))


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_runs_that_two_traces_share_are_alike_and_in_order(left, right):
    done = [0, 0]
    for first, second, length in shared_runs(left, right):
        assert first >= done[0]
        assert second >= done[1]
        assert left[first : first + length] == right[second : second + length]
        done = [first + length, second + length]
    assert done == [len(left), len(right)]


def test_what_both_have_once_is_found_where_it_stands():
    """Also where one has been moved, and what stands between is there many times."""
    runs = [run for run in shared_runs("xaxbxdxx", "bxaxxdx") if run[-1]]
    assert runs == [(3, 0, 1), (4, 1, 1), (5, 5, 1), (6, 6, 1)]


def test_every_module_has_a_mode_of_its_own():
    inner = Network(lambda n, x: F.dropout(n.a(x), 0.5, n.training), a=nn.Linear(4, 4))
    network = nn.Sequential(inner, Network(lambda n, x: F.alpha_dropout(x, 0.5, n.training))).train()
    network[0].eval()
    x = torch.ones(64, 4)
    graph = gs.trace(network, x)
    for found in (graph.module, network):
        torch.manual_seed(0)
        y = found(x)
        assert not torch.equal(y[0], y[1])
    network[1].eval()
    graph.module.get_submodule("1").eval()
    assert torch.equal(graph(x), network(x))


def test_auxiliary_heads_train_and_are_not_run_in_evaluation(tmp_path):
    torch.manual_seed(0)
    network = googlenet(aux=True).double()
    randomize(network)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    graph = gs.trace(network.eval(), x)
    small = compress(graph, 0.3)
    assert {s.name for s in graph.spaces} >= {"aux1.fc1", "aux2.fc1"}
    assert small.module.get_submodule("aux1.fc1").out_features == round(0.3 * 64)
    save(small, tmp_path / "small.pt")
    loaded = load(tmp_path / "small.pt")
    for training, count in ((False, 1), (True, 3)):
        found = outputs(loaded.module, x, training)
        assert len(found) == count
        assert deviation(found, outputs(small.module, x, training)) == 0
    assert cost(graph).macs == cost(gs.trace(googlenet().eval(), x.float())).macs
    evaluated = as_evaluated(graph.module)
    assert not any(str(node.target).startswith("aux") for node in evaluated.graph.nodes)
    assert deviation(outputs(evaluated, x, False), outputs(graph.module, x, False)) == 0


def test_what_writes_in_one_mode_only_is_traced_as_it_evaluates():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.seen.add_(1)
            return self.linear(x)

    graph = gs.trace(Counts(), torch.zeros(2, 4))
    lines = graph.lineage[0]["only as in evaluation"]
    assert "test_modes.py" in lines[0]
    assert "`if self.training:`" in lines[0]
    assert "writes into memory in one of the modes only" in lines[-1]
    assert not any(node.target is either for node in graph.module.graph.nodes)


class Noise(nn.Module):
    """Acts in training only, by a loop that a trace in training could not keep."""

    def forward(self, x):
        if not self.training:
            return x
        for _ in range(int(torch.randint(1, 3, ()))):
            x = x + torch.rand_like(x)
        return x


def test_what_acts_in_training_only_is_kept_whole_and_passes_channels():
    network = nn.Sequential(nn.Linear(4, 8), Noise(), nn.Linear(8, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    graph = assert_follows(network, x)
    assert [space.size for space in graph.spaces] == [8]
    assert graph.frozen == ()
    small = compress(graph, 0.5)
    assert small.module.get_submodule("1").training is False
    assert small(x).shape == (5, 3)


class Counting(nn.Module):
    """Its control flow depends on data."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else x * 2


def test_a_module_that_cannot_be_followed_is_kept_whole():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), Counting(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    graph = assert_follows(network, x)
    assert deviation(graph(-x), network(-x)) == 0
    assert [space.size for space in graph.spaces] == [6]
    (frozen,) = graph.frozen
    assert frozen.node == "1"
    assert "is kept whole" in frozen.reason
    assert "test_modes.py" in frozen.reason
    assert "return self.inner(x) if x.sum() > 0 else x * 2" in frozen.reason
    small = compress(graph, 0.5)
    assert small.module.get_submodule("2").out_features == 3
    assert any("is kept whole" in frozen.reason for frozen in small.frozen)
    assert_contracts(network.eval(), (4,))


def test_an_input_that_takes_another_way_is_refused():
    def forward(net, x):
        return net.b(net.a(x) if x.shape[1] > 5 else 2 * net.a(x)).mean(1)

    network = Network(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3))
    graph = gs.trace(network, torch.zeros(2, 7, 4))
    for tokens in (6, 9):
        x = torch.randn(3, tokens, 4)
        assert torch.equal(graph(x), network(x))
        assert compress(graph, 0.5)(x).shape == (3, 3)
    with pytest.raises(ValueError, match=r"test_modes\.py:\d+: `.*x\.shape\[1\] > 5.*` finds False where the trace"):
        graph(torch.randn(3, 5, 4))


def test_a_decision_by_a_width_stands_when_the_width_changes():
    def forward(net, x):
        h = torch.relu(net.a(x))
        return net.b(h if h.shape[-1] == 8 else h * 3) / int(h.shape[-1])

    network = Network(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3)).double()
    assert_contracts(network, (4,))
