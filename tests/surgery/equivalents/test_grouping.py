"""Norms of groups of channels, after one edit and after several."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_direct_sum, assert_permutes, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from zoo import traced

import graphsurgery as gs
from graphsurgery.axes.maps import ChannelMap
from graphsurgery.network.layers import grouped_norm
from graphsurgery.passes.align import align
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.widen import undo, widen
from graphsurgery.surgery.channels.importance import importance
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.remapping.remap import remap


def grouped(graph):
    return [node for node in graph.module.graph.nodes if node.target is grouped_norm]


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_wide_networks_side_by_side_widened_again(name, tmp_path):
    (a, x), (b, _) = traced(name, 0), traced(name, 1)
    with torch.no_grad():
        expected = (a(x) + b(x)) / 2
        both = concatenate([widen(a, 1.3), b])
        assert grouped(both)
        assert deviation(both(x), expected) < 1e-12
        wide = widen(both, 1.2)
        assert deviation(wide(x), expected) < 1e-12
        assert deviation(undo(wide)(x), expected) < 1e-12
        three = concatenate([b, wide])
        assert deviation(three(x), (expected + b(x)) / 2) < 1e-12
        assert_permutes(three, [x])
        gs.save(three, tmp_path / "m.pt")
        loaded = gs.load(tmp_path / "m.pt")
        assert loaded.spaces == three.spaces
        assert deviation(loaded(x), three(x)) == 0


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_of_two_networks_the_first_is_left_by_a_cut(name):
    """Biases and all else that frozen axes have are means of both; so the cut is compared with masked reads."""
    (a, x), (b, _) = traced(name, 0), traced(name, 1)
    both = concatenate([a, b])
    sizes = {space.name: space.size for space in a.spaces if space.outer}
    small = compress(both, {name: range(size) for name, size in sizes.items()})
    assert {space.name: space.size for space in small.spaces if space.outer} == sizes
    by_name = small.tensors()
    with torch.no_grad():
        for node in grouped(small):
            assert (by_name[str(node.args[1].target)].sum(0) > 0).tolist() == [True, False]
        twice = concatenate([small, small])
        assert deviation(twice(x), small(x)) < 1e-12


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_members_are_no_weights_that_matter(criterion):
    (a, _), (b, _) = traced("convnext", 0), traced("convnext", 1)
    both = concatenate([a, b])
    scores = importance(both, both.spaces, criterion)
    for node in grouped(both):
        both.tensors()[str(node.args[1].target)].mul_(1000)
    for name, score in importance(both, both.spaces, criterion).items():
        assert torch.equal(score, scores[name])


def test_networks_of_several_are_aligned():
    graphs = [concatenate([traced("convnext", seed)[0], traced("convnext", seed + 1)[0]]) for seed in (0, 2)]
    x = traced("convnext")[1]
    with torch.no_grad():
        aligned = align(graphs[0], graphs[1])
        assert deviation(aligned(x), graphs[0](x)) < 1e-12
    moved = [str(n.args[1].target) for n in grouped(aligned)]
    assert any(not torch.equal(aligned.tensors()[name], graphs[0].tensors()[name]) for name in moved)


@pytest.mark.parametrize("name", ["shallow vit", "shallow convnext"])
def test_in_onnx_runtime(name, tmp_path):
    (a, _), (b, _) = traced(name, 0), traced(name, 1)
    graph = concatenate([widen(a, 1.3), b])
    graph.module.float()
    gs.export_onnx(graph, tmp_path / "m.onnx", check=False)
    assert gs.check_onnx(graph, tmp_path / "m.onnx").deviation <= 1e-4


def _permuted(graph, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = {space.dim: ChannelMap(torch.randperm(space.size, generator=generator)) for space in graph.spaces}
    return remap(graph, maps, {"pass": "permute"})


KEEP = {
    "widen": lambda graph, seed: widen(graph, 1.4, seed=seed),
    "undo": lambda graph, seed: undo(widen(graph, 1.3, seed=seed)),
    "concatenate": lambda graph, _: concatenate([graph, graph]),
    "beside a wide one": lambda graph, seed: concatenate([graph, widen(graph, 1.5, seed=seed)]),
    "permute": _permuted,
}
KINDS = ("conv", "residual", "group_norm", "channels_last", "branches", "group_norm", "channels_last", "dense")


@given(st.integers(0, 10**6), st.lists(st.sampled_from(sorted(KEEP)), min_size=2, max_size=3))
@settings(max_examples=40, deadline=None)
def test_random_networks_keep_their_outputs(seed, edits):
    graph, x, _ = typed(RandomNetwork(seed, steps=4, kinds=KINDS), (3, 4, 4), seed=seed)
    with torch.no_grad():
        expected = graph(*x)
        for name in edits:
            try:
                graph = KEEP[name](graph, seed)
            except gs.SurgeryError:  # groups of several channels are mixed, and some networks have nothing to grow
                continue
            graph.module.graph.lint()
            assert deviation(graph(*x), expected) < 1e-10


def divided(power):
    def forward(net, x):
        return net.b(F.normalize(net.a(x), power, 1))

    return typed(Network(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 2)), (3,))


@pytest.mark.parametrize("power", [1.0, 3.0, float("inf")])
def test_division_by_a_norm_of_any_order(power):
    graph, x, _ = divided(power)
    with torch.no_grad():
        assert deviation(concatenate([graph, graph])(*x), graph(*x)) < 1e-12
        assert deviation(widen(concatenate([graph, graph]), 1.4)(*x), graph(*x)) < 1e-12
    assert bool(grouped(widen(graph, 1.4))) == (power < float("inf"))


def test_division_by_what_is_no_norm_is_refused():
    graph, _, _ = divided(-1.0)
    message = r"normalize divides by a norm of order -1.0, expected one above 0"
    with pytest.raises(gs.SurgeryError, match=message):
        widen(graph, 1.4)
    with pytest.raises(gs.SurgeryError, match=message):
        concatenate([graph, graph])


def test_channels_of_all_networks_in_one_norm_are_normalised_with_those_of_each():
    network = Network(
        lambda net, x: net.b(net.norm(torch.cat([net.a(x), x], -1))),
        a=nn.Linear(3, 8),
        norm=nn.LayerNorm(11),
        b=nn.Linear(11, 2),
    )
    graphs = [typed(network, (5, 3), seed=seed)[0] for seed in range(2)]
    assert_direct_sum(graphs, [torch.randn(3, 5, 3, dtype=torch.float64)], apart="norm_weight")
