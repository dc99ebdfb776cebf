"""Large weights are gathered and scored in blocks, with the same result; what cannot be resized is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, typed
from torch import nn

import graphsurgery as gs
from graphsurgery.axes.maps import ChannelMap
from graphsurgery.passes.compress import compress
from graphsurgery.passes.slim import slim
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.channels.importance import importance
from graphsurgery.surgery.remapping import gathering, remap


@pytest.mark.parametrize("block", [1, 30, 100, 10**6])
def test_blocks_of_any_size_give_the_same(monkeypatch, block):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 9), nn.Linear(9, 3))
    graph = gs.trace(net.double(), torch.zeros(2, 5))
    first, second = graph.spaces
    source, share = torch.tensor([6, 0, 0, 3]), torch.tensor([1.0, 0.25, 0.75, 1.0], dtype=torch.float64)
    maps = {first.dim: ChannelMap(source, share), second.dim: ChannelMap(torch.tensor([8, 1]))}
    monkeypatch.setattr(gathering, "_BLOCK", block)
    found = remap.remap(graph, maps, {}).tensors()
    expected = net[1].weight[[8, 1]][:, source] * share
    torch.testing.assert_close(found["1.weight"], nn.Parameter(expected), rtol=0, atol=0)
    torch.testing.assert_close(found["0.weight"].data, net[0].weight.data[source], rtol=0, atol=0)


@pytest.mark.parametrize("edit", [lambda g: compress(g, 0.5), lambda g: widen(g, by=1.5), lambda g: slim(g)])
def test_an_edit_takes_little_more_memory_than_what_it_writes(edit):
    graph = gs.trace(nn.Sequential(nn.Linear(8, 900), nn.Linear(900, 900), nn.Linear(900, 4)), torch.zeros(2, 8))
    edit(graph)
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        new = edit(graph)
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    written = sum(tensor.numel() * tensor.element_size() for tensor in new.tensors().values())
    assert written <= max(held) < 1.1 * written + 4 * 2 * gathering._BLOCK


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_scores_of_a_weight_of_several_blocks(criterion):
    """A convolution of some 2**19 numbers, whose rows do not divide the blocks."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 190, 1), nn.Conv2d(190, 301, 3))
    graph = gs.trace(net, torch.zeros(2, 2, 4, 4))
    order = 1 if criterion == "l1" else 2
    rows, columns = (w.detach().double().abs() ** order for w in (net[0].weight, net[1].weight))
    expected = (rows.sum((1, 2, 3)) + columns.sum((0, 2, 3))) ** (1 / order)
    torch.testing.assert_close(importance(graph, graph.spaces[:1], criterion)["0"], expected, rtol=1e-6, atol=0)


class Reshaped(nn.Module):
    """Reshapes to a computed shape, which is spelt out when widths change, before numbers with the same names."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.ModuleList([nn.Linear(6, 24), nn.Linear(8, 24)])
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        for qkv in self.qkv:
            shape = x.shape[:-1] + (-1,)  # noqa: RUF005, as people write it
            q, k, v = qkv(x).reshape(x.shape[0], -1, 2, 12).transpose(1, 2).chunk(3, -1)
            x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(shape)
        return self.last(x)


def test_nodes_keep_their_names():
    graph = gs.trace(Reshaped().double(), torch.zeros(2, 4, 6))
    names = {node.name: node.target for node in graph.module.graph.nodes}
    wide = widen(graph, 1.5)
    new = {node.name: node.target for node in wide.module.graph.nodes}
    assert len(new) == len(wide.module.graph.nodes) > len(names)
    assert not set(names) - set(new)
    assert {name for name, target in names.items() if new[name] != target} == {"chunk", "chunk_1"}
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(wide.module(x), graph.module(x), rtol=1e-12, atol=1e-12)


SPREADS = {
    "std": lambda h: h.std(1, keepdim=True),
    "var": lambda h: torch.var(h, dim=1, keepdim=True),
    "with the mean": lambda h: torch.std_mean(h, 1, keepdim=True)[0],
    "corrected": lambda h: torch.var(h, dim=1, correction=1, keepdim=True),
}


@pytest.mark.parametrize("name", SPREADS)
def test_a_variance_of_one_channel_is_refused(name):
    network = Network(
        lambda net, x: net.b(torch.relu(h := net.a(x)) + SPREADS[name](h)), a=nn.Linear(3, 6), b=nn.Linear(6, 2)
    )
    graph, x, _ = typed(network, (3,))
    assert torch.isfinite(compress(graph, {"a": 2})(*x)).all()
    with pytest.raises(gs.SurgeryError, match=r": takes a variance over 6 numbers, of which 1 would be left"):
        compress(graph, {"a": 1})


ENOUGH = {
    "uncorrected": lambda h: torch.var(h, dim=1, correction=0, keepdim=True),
    "as a share of all": lambda h: h.std(1, False, keepdim=True),
    "by name": lambda h: torch.var(h, dim=1, unbiased=False, keepdim=True),
}


@pytest.mark.parametrize("name", ENOUGH)
def test_a_variance_that_is_not_corrected_is_0_of_one_channel(name):
    network = Network(
        lambda net, x: net.b(torch.relu(h := net.a(x)) + ENOUGH[name](h)), a=nn.Linear(3, 6), b=nn.Linear(6, 2)
    )
    graph, x, _ = typed(network, (3,))
    assert torch.isfinite(compress(graph, {"a": 1})(*x)).all()


def test_a_variance_over_positions_too_needs_no_second_channel():
    network = Network(
        lambda net, x: net.b((h := net.a(x)) / h.std((1, 2), keepdim=True)), a=nn.Conv1d(3, 6, 1), b=nn.Conv1d(6, 2, 1)
    )
    graph, x, _ = typed(network, (3, 4))
    assert torch.isfinite(compress(graph, {"a": 1})(*x)).all()
