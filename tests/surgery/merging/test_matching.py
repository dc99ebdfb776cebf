"""Networks of one topology are matched whatever the order of their nodes; the first difference is named."""

import networkx as nx
import pytest
import torch
from contracts import Network
from torch import nn

import graphsurgery as gs
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.merging.matching import dataflow, kind_of, match_dims, match_nodes, match_parameters


def two_branches(forward, width=6):
    return Network(
        forward,
        a=nn.Conv2d(3, width, 1),
        b=nn.Conv2d(3, width, 3, padding=1),
        head=nn.Conv2d(width, 2, 1),
    ).double()


def a_first(net, x):
    a = net.a(x)
    b = torch.tanh(net.b(x))
    return net.head(a + b)


def b_first(net, x):
    b = torch.tanh(net.b(x))
    a = net.a(x)
    return net.head(a + b)


def swapped(net, x):
    return net.head(torch.tanh(net.b(x)) + net.a(x))


X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def graph_of(forward, seed=0, **options):
    torch.manual_seed(seed)
    return gs.trace(two_branches(forward, **options), X)


def test_the_dataflow_graph_has_kinds_and_places():
    graph = dataflow(graph_of(a_first).module)
    assert nx.is_directed_acyclic_graph(graph)
    add = next(n for n in graph if "add" in n.name)
    assert sorted(data["place"] for _, _, data in graph.in_edges(add, data=True)) == [0, 1]
    assert graph.nodes[add]["kind"] == "add((node, node), {})"


def test_reordered_nodes_are_matched():
    first, other = graph_of(a_first), graph_of(b_first, 1)
    nodes = match_nodes(first, other, 2)
    pairs = {str(n.target): str(m.target) for n, m in nodes.items() if n.op == "call_module"}
    assert pairs == {"a": "a", "b": "b", "head": "head"}
    big = concatenate([first, other])
    assert deviation(big(X), (first(X) + other(X)) / 2) < 1e-12


def test_names_and_widths_may_differ():
    first, other = graph_of(a_first), graph_of(a_first, 1, width=9)
    nodes = match_nodes(first, other, 2)
    names = match_parameters(first, other, nodes)
    dims = match_dims(first, other, names)
    assert {(d.size, e.size) for d, e in dims.items()} == {(6, 9)}


def test_inputs_are_matched_by_position():
    class Two(nn.Module):
        def __init__(self, turned):
            super().__init__()
            self.f, self.g, self.turned = nn.Linear(3, 4), nn.Linear(3, 4), turned

        def forward(self, x, y):
            left, right = (self.f(y), self.g(x)) if self.turned else (self.f(x), self.g(y))
            return left - right

    inputs = [torch.randn(2, 3), torch.randn(2, 3)]
    graphs = [gs.trace(Two(turned), inputs) for turned in (False, True)]
    with pytest.raises(gs.SurgeryError, match=r"have different topologies: f and f .* read different"):
        concatenate(graphs)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (swapped, r"a is Conv2d.*'kernel_size', \(1, 1\).*, b is Conv2d.*'kernel_size', \(3, 3\)"),
        (lambda net, x: net.head(net.a(x) + torch.sigmoid(net.b(x))), "tanh is tanh, sigmoid is sigmoid"),
        (lambda net, x: net.head(net.a(x) * torch.tanh(net.b(x))), "add is add, mul is mul"),
        (lambda net, x: net.head(net.a(x) + torch.tanh(net.b(x)) + 1), "head is Conv2d, add_1 is add"),
    ],
)
def test_the_first_difference_is_named(other, message):
    with pytest.raises(gs.SurgeryError, match=f"parents 1 and 3 have different topologies: .*{message}"):
        match_nodes(graph_of(a_first), graph_of(other), 3)


def test_operands_that_change_places_are_a_difference():
    first = graph_of(lambda net, x: net.head(net.a(x) - torch.tanh(net.b(x))))
    other = graph_of(lambda net, x: (lambda a, b: net.head(b - a))(net.a(x), torch.tanh(net.b(x))))
    with pytest.raises(gs.SurgeryError, match="sub and sub are both sub but read different nodes"):
        match_nodes(first, other, 2)


def test_settings_count_and_sizes_do_not():
    small, large = graph_of(a_first, width=4), graph_of(a_first, width=8)
    for left, right in zip(small.module.graph.nodes, large.module.graph.nodes, strict=True):
        assert kind_of(small.module, left) == kind_of(large.module, right)
    strided = gs.trace(nn.Sequential(nn.Conv2d(3, 4, 1, stride=2)), X.float())
    plain = gs.trace(nn.Sequential(nn.Conv2d(3, 4, 1)), X.float())
    with pytest.raises(gs.SurgeryError, match=r"0 is Conv2d.*'stride', \(1, 1\).*, 0 is Conv2d.*'stride', \(2, 2\)"):
        match_nodes(plain, strided, 2)


def test_a_weight_shared_in_one_parent_only_is_refused():
    def twice(net, x):
        return net.head(torch.relu(net.a(torch.relu(net.a(x)))))

    def apart(net, x):
        return net.head(torch.relu(net.b(torch.relu(net.a(x)))))

    graphs = [
        gs.trace(Network(f, a=nn.Linear(3, 3), b=nn.Linear(3, 3), head=nn.Linear(3, 2)), torch.zeros(2, 3))
        for f in (twice, apart)
    ]
    with pytest.raises(gs.SurgeryError, match=r"a\.weight is shared by several layers in one parent and not in the"):
        concatenate(graphs)


def test_other_parameters_are_named():
    graphs = [
        gs.trace(nn.Sequential(nn.Linear(3, 4, bias=b), nn.Linear(4, 2)), torch.zeros(2, 3)) for b in (True, False)
    ]
    with pytest.raises(gs.SurgeryError, match=r"0 has parameters \['weight', 'bias'\] in one parent and others in the"):
        concatenate(graphs)
