"""Networks that write their code when it is asked for, by whoever asks."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import fx, nn

import graphsurgery as gs
from graphsurgery.network.assembly import Network, assembled

X = torch.randn(2, 3)


def network() -> Network:
    """Two layers, and a buffer and a constant in a module of their own."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_module("a.first", (x,))
    y = graph.call_function(torch.add, (y, graph.get_attr("a.shift")))
    graph.output(graph.call_module("second", (y,)))
    torch.manual_seed(0)
    parts = {"a.first": nn.Linear(3, 4), "a.shift": torch.ones(4), "second": nn.Linear(4, 2)}
    return assembled(parts, graph, "Example")


def is_written(net: fx.GraphModule) -> bool:
    return "_code" in net.__dict__


def expected() -> torch.Tensor:
    parts = network()
    return parts.get_submodule("second")(parts.get_submodule("a.first")(X) + 1)


def test_it_is_not_written_before_it_is_asked_for():
    net = network()
    assert not is_written(net)
    torch.testing.assert_close(net(X), expected())
    assert is_written(net)
    assert type(net).__name__ == "Example"
    assert sorted(net.state_dict()) == ["a.first.bias", "a.first.weight", "a.shift", "second.bias", "second.weight"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda net: net(X),
        lambda net: net.forward(X),
        lambda net: type(net).forward(net, X),
        lambda net: copy.deepcopy(net)(X),
        lambda net: pickle.loads(pickle.dumps(net))(X),
        lambda net: fx.symbolic_trace(net)(X),
        lambda net: fx.Transformer(net).transform()(X),
        lambda net: fx.Interpreter(net).run(X),
        lambda net: gs.trace(net, X)(X),
        lambda net: gs.trace(nn.Sequential(net), X)(X),
        lambda net: torch.func.functional_call(net, {}, (X,)),
        lambda net: torch.export.export(net, (X,)).module()(X),
        lambda net: torch.compile(net, backend="eager", fullgraph=True)(X),
        lambda net: torch.compile(nn.Sequential(net), backend="eager", fullgraph=True)(X),
    ],
)  # fmt: skip
def test_whoever_asks(ask):
    torch.testing.assert_close(ask(network()), expected())


def test_its_signature_and_its_code():
    assert list(inspect.signature(network().forward).parameters) == ["x"]
    assert "torch.add" in network().code
    assert "torch.add" in str(network())
    assert "second" in network().print_readable(print_output=False)


def test_a_new_graph_and_a_changed_one():
    net = network()
    net(X)
    changed = fx.Graph()
    changed.output(changed.call_module("a.first", (changed.placeholder("x"),)))
    net.graph = changed
    assert not is_written(net)
    assert net(X).shape == (2, 4)
    node = next(node for node in net.graph.nodes if node.op == "output")
    with net.graph.inserting_before(node):
        node.args = (net.graph.call_function(torch.neg, node.args),)
    net.recompile()
    torch.testing.assert_close(net(X), -net.get_submodule("a.first")(X))


def test_a_name_that_every_network_has_is_refused():
    graph = fx.Graph()
    graph.output(graph.call_module("graph", (graph.placeholder("x"),)))
    with pytest.raises(KeyError, match="attribute 'graph' already exists"):
        assembled({"graph": nn.Linear(3, 3)}, graph, "Example")
