"""Alignment: the outputs stay, and channels that were put in another order come back."""

import pytest
import torch
import torch.nn.functional as F
import zoo
from contracts import Network, typed
from random_networks import RandomNetwork
from torch import nn

import graphsurgery as gs
from graphsurgery.axes.maps import ChannelMap
from graphsurgery.passes.align import align
from graphsurgery.passes.gate import gate
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.merging.averages import average
from graphsurgery.surgery.remapping.remap import remap

NAMES = ("paper/cnn", "paper/resnet20?width=8", "resnext", "densenet", "mobilenet_v3", "convnext", "vit")


def shuffled(graph, seed=0):
    """The network with the channels of every space in a random order."""
    generator = torch.Generator().manual_seed(seed)
    maps = {s.dim: ChannelMap(torch.randperm(s.size, generator=generator)) for s in graph.spaces if not s.positions}
    return remap(graph, maps, {})


def same_weights(a, b):
    theirs = b.tensors()
    return all(torch.allclose(tensor, theirs[name]) for name, tensor in a.tensors().items())


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_differ_by_the_order_of_channels_are_found_again(name):
    graph, x = zoo.traced(name)
    moved = shuffled(graph)
    aligned = align(moved, graph)
    assert deviation(aligned(x), moved(x)) < 1e-12
    assert same_weights(aligned, graph)


@pytest.mark.parametrize("name", ["paper/cnn", "paper/resnet20?width=8", "vit", "convnext"])
def test_activations_find_them_too(name):
    graph, x = zoo.traced(name)
    moved = shuffled(graph)
    examples = [zoo.example(name, batch=8, seed=seed) for seed in (1, 2)]
    aligned = align(moved, graph, examples)
    assert deviation(aligned(x), moved(x)) < 1e-12
    assert deviation(average([aligned, graph])(x), graph(x)) < 1e-10
    assert aligned.lineage[-1] == {"pass": "align", "by": "activations"}


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed):
    graph, (x,), _ = typed(RandomNetwork(seed), (3, 4, 4), seed=seed)
    other, _, _ = typed(RandomNetwork(seed), (3, 4, 4), seed=seed + 100)
    for examples in (None, [x]):
        assert deviation(align(other, graph, examples)(x), other(x)) < 1e-10
    moved = shuffled(graph, seed)
    assert same_weights(align(moved, graph), graph)


def test_heads_are_matched_as_wholes_and_what_is_inside_in_each():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(12, 3, batch_first=True)
            self.head = nn.Linear(12, 4)

        def forward(self, x):
            return self.head(self.inner(x, x, x, need_weights=False)[0]).mean(1)

    graph, (x,), _ = typed(Attention(), (5, 12))
    spaces = {s.name: s for s in graph.spaces}
    assert [s.outer for s in spaces.values()].count(False) == 2
    generator = torch.Generator().manual_seed(3)
    for examples in (None, [x]):
        moved = remap(graph, {s.dim: ChannelMap(torch.randperm(s.size, generator=generator)) for s in graph.spaces}, {})
        aligned = align(moved, graph, examples)
        assert same_weights(aligned, graph)


def test_more_alike_than_before():
    """Of two networks that have learnt nothing in common, the inner product of the weights grows."""
    graph, _ = zoo.traced("paper/cnn", seed=0)
    other, _ = zoo.traced("paper/cnn", seed=1)

    def alike(a, b):
        theirs = b.tensors()
        return sum((t * theirs[n]).sum().item() for n, t in a.tensors().items() if t.is_floating_point())

    aligned = align(other, graph)
    assert alike(aligned, graph) > alike(other, graph)
    again = align(aligned, graph)
    assert alike(again, graph) >= alike(aligned, graph) * (1 - 1e-9)


def test_an_aligned_network_can_be_stored_and_exported(tmp_path):
    graph, _ = zoo.traced("paper/cnn", seed=0)
    other, x = zoo.traced("paper/cnn", seed=1)
    aligned = align(other, graph)
    gs.save(aligned, tmp_path / "aligned.pt")
    assert torch.equal(gs.load(tmp_path / "aligned.pt")(x), aligned(x))
    gs.export_onnx(aligned, tmp_path / "aligned.onnx")
    assert gs.check_onnx(aligned, tmp_path / "aligned.onnx").deviation <= 1e-4


def test_networks_in_training_are_compared_as_they_evaluate_and_stay_as_they_are():
    graph, x = zoo.traced("paper/cnn")
    other = shuffled(graph)
    expected = align(other, graph, [x]).tensors()
    before = [{name: t.clone() for name, t in g.tensors().items()} for g in (graph, other)]
    for g in (graph, other):
        g.module.train()
    found = align(other, graph, [x]).tensors()
    assert all(torch.equal(t, expected[name]) for name, t in found.items())
    for g, old in zip((graph, other), before, strict=True):
        assert g.module.training
        assert all(torch.equal(t, old[name]) for name, t in g.tensors().items())


def test_refuses():
    graph, x = zoo.traced("paper/cnn")
    wide = Network(lambda m, x: m.b(m.a(x)), a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    narrow = Network(lambda m, x: m.b(m.a(x)), a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    (a, _, _), (b, _, _) = typed(wide, (3,)), typed(narrow, (3,))
    with pytest.raises(gs.SurgeryError, match="different topologies"):
        align(a, graph)
    with pytest.raises(gs.SurgeryError, match=r"align: a.weight is \[8, 3\] in one network and \[6, 3\] in the other"):
        align(a, b)
    with pytest.raises(gs.SurgeryError, match="align: no example"):
        align(graph, graph, [])
    with pytest.raises(gs.SurgeryError, match="has gates; fold or compress"):
        align(gate(graph), graph, [x])


def test_a_parameter_that_is_read_as_it_is_can_be_compared():
    network = Network(
        lambda net, x: net.head(
            F.scaled_dot_product_attention(net.queries.expand(x.shape[0], 2, 6), y := net.stem(x), y)
        ),
        {"queries": torch.zeros(2, 6)},
        stem=nn.Linear(4, 6),
        head=nn.Linear(6, 3),
    )
    graph, (x,), _ = typed(network, (7, 4))
    moved = shuffled(graph)
    aligned = align(moved, graph, [x])
    assert deviation(aligned(x), moved(x)) < 1e-12
    assert same_weights(aligned, graph)


def test_groups_that_are_read_the_other_way_round_are_matched_too():
    """Activations in which the channels of a group stand in front of the groups, as behind a shuffle."""

    def forward(net, x):
        h = net.a(x)
        turned = h.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return net.b(h * turned.topk(2, dim=1).values.mean(1, keepdim=True))

    def network():
        return Network(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 5, 1))

    graph, x, _ = typed(network(), (3, 4, 4))
    other, *_ = typed(network(), (3, 4, 4), seed=1)
    assert deviation(align(graph, other, [x[0]])(*x), graph(*x)) < 1e-12
