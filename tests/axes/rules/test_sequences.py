"""Attention and softmax."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts, assert_direct_sum, typed
from torch import nn

from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.surgery.deviation import deviation


def heads(x, count):
    return x.unflatten(-1, (count, 4)).transpose(1, 2)


def attending(call, keys=3):
    def forward(net, x):
        mixed = call(heads(net.q(x), 3), heads(net.k(x), keys), heads(net.v(x), keys))
        return net.o(mixed.transpose(1, 2).flatten(2))

    return Network(forward, q=nn.Linear(6, 12), k=nn.Linear(6, 4 * keys), v=nn.Linear(6, 4 * keys), o=nn.Linear(12, 2))


MASK = torch.zeros(5, 5, dtype=torch.float64).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
CALLS = {
    "plain": F.scaled_dot_product_attention,
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "masked": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, MASK),
    "scaled": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "by name": lambda q, k, v: F.scaled_dot_product_attention(query=q, key=k, value=v),
    "written out": lambda q, k, v: torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v,
}


@pytest.mark.parametrize("name", CALLS)
def test_heads_and_head_sizes(name):
    network = attending(CALLS[name])
    graph = assert_contracts(network, (5, 6))
    outer = [s for s in graph.spaces if s.outer]
    assert [(s.size, s.outer) for s in graph.spaces] == [(3, True), (4, False), (4, False)]
    other = typed(network, (5, 6), seed=1)[0]
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        assert compress(graph, {outer[0].name: [0, 2]})(x).shape == (4, 5, 2)
        assert deviation(concatenate([graph, other])(x), (graph(x) + other(x)) / 2) < 1e-12


def test_the_scale_stays_when_head_sizes_are_cut():
    network = attending(CALLS["plain"])
    graph, x, network = typed(network, (5, 6))
    with torch.no_grad():
        shared = graph.spaces[1].name
        small = compress(graph, {shared: [0, 3]})
        for weights in (network.q, network.k):
            weights.weight.unflatten(0, (3, 4))[:, 1:3] = 0
            weights.bias.unflatten(0, (3, 4))[:, 1:3] = 0
        assert deviation(small(*x), network(*x)) < 1e-12


def test_grouped_queries():
    network = attending(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), keys=1)
    broadcast = assert_contracts(network, (5, 6))
    assert not [f for f in broadcast.frozen if "pairs" in f.reason]

    def forward(net, x):
        mixed = F.scaled_dot_product_attention(
            heads(net.q(x), 4), heads(net.k(x), 2), heads(net.v(x), 2), enable_gqa=True
        )
        return net.o(mixed.transpose(1, 2).flatten(2))

    network = Network(forward, q=nn.Linear(6, 16), k=nn.Linear(6, 8), v=nn.Linear(6, 8), o=nn.Linear(16, 2))
    graph = assert_contracts(network, (5, 6))
    assert [(s.size, s.outer) for s in graph.spaces] == [(2, True), (4, False), (4, False)]
    assert not graph.frozen


@pytest.mark.parametrize("kind", [nn.Softmax, nn.LogSoftmax, nn.Softmin])
def test_softmax_modules_mix(kind):
    graph = assert_contracts(nn.Sequential(nn.Linear(3, 8), kind(1), nn.Linear(8, 2)), (3,))
    assert graph.spaces[0].mixed == ("softmax at 1",)
    graphs = [typed(nn.Sequential(nn.Linear(3, 8), kind(1), nn.Linear(8, 2)), (3,), seed=n)[0] for n in range(2)]
    assert_direct_sum(graphs, [torch.randn(3, 3, dtype=torch.float64)], apart="1")


@pytest.mark.parametrize(
    "function",
    [
        lambda h: F.softmax(h, dim=-1),
        lambda h: F.log_softmax(h, 1),
        lambda h: torch.softmax(h, 1),
        lambda h: torch.log_softmax(h, dim=1),
        lambda h: h.softmax(-1),
        lambda h: h.log_softmax(dim=-1),
    ],
)
def test_softmax_functions_mix(function):
    graph = assert_contracts(Network(lambda n, x: n.b(function(n.a(x))), a=nn.Linear(3, 8), b=nn.Linear(8, 2)), (3,))
    assert len(graph.spaces[0].mixed) == 1


def test_softmax_over_the_channels_of_images_mixes():
    graph = assert_contracts(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Softmax2d(), nn.Conv2d(8, 2, 1)), (3, 4, 4))
    assert graph.spaces[0].mixed == ("softmax at 1",)


@pytest.mark.parametrize("fused", [True, False])
def test_learned_tokens_beside_positions_are_positions(fused):
    def forward(net, x):
        h = torch.cat([net.tokens.expand(x.shape[0], -1, -1), net.a(x)], 1)
        if fused:
            return net.b(F.scaled_dot_product_attention(h, h, h))
        return net.b((h @ h.mT).softmax(-1) @ h)

    network = Network(forward, {"tokens": torch.zeros(1, 4, 8)}, a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    graph = assert_contracts(network, (5, 3))
    assert [(s.size, s.mixed) for s in graph.spaces] == [(8, ())]


def test_softmax_over_positions_mixes_nothing():
    graph = assert_contracts(nn.Sequential(nn.Conv1d(3, 8, 1), nn.Softmax(2), nn.Conv1d(8, 2, 1)), (3, 5))
    assert graph.spaces[0].mixed == ()


def test_tokens_of_causal_attention_stay_in_their_order():
    """Learned tokens have an axis that nothing else fixes."""

    def forward(net, x):
        tokens = net.table * net.a(x).unsqueeze(1)
        return net.b(F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True).flatten(1))

    network = Network(forward, {"table": torch.zeros(5, 6)}, a=nn.Linear(3, 6), b=nn.Linear(30, 2))
    graph = assert_contracts(network, (3,))
    assert [frozen.reason for frozen in graph.frozen] == ["an axis along which attention looks back"]
    assert [space.size for space in graph.spaces] == [6]
