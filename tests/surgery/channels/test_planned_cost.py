"""A planned network costs what the network that is really built costs."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from zoo import FEW, traced

import graphsurgery as gs
from graphsurgery.axes.maps import ChannelMap, Edit, MapInGroups, Widths
from graphsurgery.axes.polynomials import value
from graphsurgery.passes.gate import gate
from graphsurgery.surgery.channels.cost import cost, macs_by_node
from graphsurgery.surgery.channels.nesting import Nesting
from graphsurgery.surgery.channels.planned_cost import PlannedCost
from graphsurgery.surgery.remapping.remap import remap


def random_maps(graph, seed=0, inner=True):
    """A random part of every space."""
    generator = torch.Generator().manual_seed(seed)
    maps = {}
    for space in graph.spaces:
        if space.outer or inner:
            size = int(torch.randint(1, space.size + 1, (), generator=generator))
            maps[space.dim] = ChannelMap(torch.randperm(space.size, generator=generator)[:size])
    return maps


def assert_counts(graph, maps):
    assert PlannedCost(graph).at(Widths({})) == cost(graph)
    assert PlannedCost(graph).at(Edit(maps)) == cost(remap(graph, maps, {}))
    assert_polynomials(graph, Edit(maps))


def assert_polynomials(graph, widths):
    """The counts of all nodes, from the sizes of the spaces alone, are what is planned."""
    planned = PlannedCost(graph)
    nodes, named = planned.by_node().values(), {space.dim for space in graph.spaces}
    assert all(dim in named for node in nodes for part in node[:3] for dims in part for dim in dims)
    assert sum(value(node.parameters, widths) for node in nodes) + planned.held.parameters == planned.parameters(widths)
    assert sum(value(node.bytes, widths) for node in nodes) + planned.held.bytes == planned.bytes(widths)
    assert sum(value(node.macs, widths) // node.over for node in nodes) == planned.macs(widths)


@pytest.mark.parametrize("name", [*FEW, "resnext", "squeezenet1_1", "paper/lenet5", "paper/vgg11_bn?width=12"])
def test_of_networks(name):
    graph, _ = traced(name)
    assert_counts(graph, random_maps(graph))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_of_random_networks(seed):
    torch.manual_seed(seed)
    graph = gs.trace(RandomNetwork(seed).eval(), torch.randn(2, 3, 4, 4))
    assert_counts(graph, random_maps(graph, seed))


def test_with_a_choice_in_each_group():
    graph, _ = traced("vit")
    nesting, maps = Nesting(graph), {}
    for space in graph.spaces:
        if not space.outer:
            rows = torch.arange(3).repeat(4, 1) + torch.arange(4)[:, None]
            maps[space.dim] = MapInGroups({nesting.outers(space)[0]: rows})
    assert_counts(graph, maps)


def test_of_tied_weights_products_and_attention_by_hand():
    def forward(net, x):
        q, k = net.a(x), net.b(x)
        mixed = (q @ k.transpose(1, 2)).softmax(-1) @ torch.matmul(q, net.w)
        return net.out(F.scaled_dot_product_attention(net.tied(mixed), k, q))

    tied = nn.Linear(6, 6)
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(4, 6), "tied": tied, "again": tied, "out": nn.Linear(6, 2)}
    graph, _, _ = typed(Network(forward, {"w": torch.zeros(6, 6)}, **layers), (5, 4))
    assert len(graph.spaces) >= 2
    assert_counts(graph, random_maps(graph, 1))
    by_node = {node.name: macs for node, macs in macs_by_node(graph).items()}
    assert by_node["a"] == 5 * 4 * 6
    assert by_node["scaled_dot_product_attention"] == 2 * 5 * 5 * 6


def test_of_a_gated_network_of_another_dtype():
    graph, _ = traced("paper/cnn")
    graph.module.half()
    assert_counts(graph, random_maps(graph))
    gated = gate(graph)
    assert PlannedCost(gated).at(Widths({})) == cost(gated)


def test_an_operator_whose_rule_names_no_products_is_refused_where_it_may_change():
    graph, _ = traced("paper/mlp")
    graph.types.products.clear()
    counted = PlannedCost(graph)
    assert counted.parameters(Widths({})) == cost(graph).parameters
    with pytest.raises(
        gs.SurgeryError, match="hidden: how its multiply-accumulates change with the widths is not known"
    ):
        counted.macs(Widths({}))


def test_an_operator_without_a_rule_is_fixed_and_costs_what_it_costs():
    network = Network(
        lambda n, x: n.out(torch.relu(n.hidden(torch.linalg.multi_dot([n.a(x), n.w, n.w])))),
        {"w": torch.zeros(6, 6)},
        a=nn.Linear(4, 6),
        hidden=nn.Linear(6, 7),
        out=nn.Linear(7, 2),
    )
    graph, _, _ = typed(network, (4,))
    (space,) = graph.spaces
    assert next(m for n, m in macs_by_node(graph).items() if "multi_dot" in n.name) == 2 * 6 * 6
    assert_counts(graph, {space.dim: ChannelMap(torch.arange(3))})
