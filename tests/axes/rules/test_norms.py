"""Normalisations."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from contracts import Network, assert_contracts, assert_direct_sum, assert_permutes, random_choice, typed
from torch import nn

import graphsurgery as gs
from graphsurgery.network.layers import grouped_norm
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.widen import undo, widen
from graphsurgery.surgery.deviation import deviation

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": True, "affine": True}])
@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        (nn.BatchNorm1d, 1), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3),
        (nn.InstanceNorm1d, 1), (nn.InstanceNorm2d, 2), (nn.InstanceNorm3d, 3),
    ],
)  # fmt: skip
def test_norms_of_each_channel(kind, rank, options):
    convolution = CONVOLUTIONS[rank]
    graph = assert_contracts(
        nn.Sequential(convolution(3, 8, 1), kind(8, **options), nn.ReLU(), convolution(8, 2, 1)), (3, *[3] * rank)
    )
    assert [(s.size, s.mixed) for s in graph.spaces] == [(8, ())]
    assert compress(graph, 0.5).module.get_submodule("1").num_features == 4


def test_batch_norm_of_vectors_and_frozen_and_functional():
    def forward(net, x):
        h = net.n(net.f(net.a(x)).mean((2, 3)))
        return net.b(F.batch_norm(h, net.n.running_mean, net.n.running_var, net.n.weight, bias=net.n.bias))

    network = Network(
        forward, a=nn.Conv2d(3, 8, 1), f=torchvision.ops.FrozenBatchNorm2d(8), n=nn.BatchNorm1d(8), b=nn.Linear(8, 2)
    )
    graph = assert_contracts(network, (3, 4, 4))
    assert [s.size for s in graph.spaces] == [8]


def over_channels(kind="module"):
    """A batch norm of tokens, whose statistics in training are taken over the channels, too."""

    def forward(net, x):
        h = torch.tanh(net.a(x))
        norm = net.n
        if kind == "module":
            return net.b(norm(h))
        rest = norm.weight, norm.bias, net.training
        return net.b(F.batch_norm(h, norm.running_mean, norm.running_var, *rest))

    return Network(forward, a=nn.Linear(3, 8), n=nn.BatchNorm1d(5), b=nn.Linear(8, 2))


@pytest.mark.parametrize("kind", ["module", "function"])
def test_statistics_of_training_over_channels(kind):
    """Copies would weigh in them, which shows in training alone: what reads them cannot undo it."""
    graph, x, _ = typed(over_channels(kind), (5, 3))
    (space,) = graph.spaces
    assert space.size == 8
    assert "mean and variance" in space.mixed[0]
    with pytest.raises(gs.SurgeryError, match=r"a cannot grow: a mean and variance.* at (n|batch_norm) would change"):
        widen(graph, to={"a": 10})
    second, _, _ = typed(over_channels(kind), (5, 3), seed=1)
    both = concatenate([graph, second])
    for training in (False, True):
        one, other, sides = (copy.deepcopy(g.module).train(training) for g in (graph, second, both))
        assert deviation(sides(*x), (one(*x) + other(*x)) / 2) < 1e-12


def assert_mean(make, *shapes):
    """Two networks side by side give the mean of their outputs."""
    (first, x, _), (second, _, _) = (typed(make(), *shapes, seed=seed) for seed in range(2))
    both = concatenate([first, second])
    assert deviation(both(*x), (first(*x) + second(*x)) / 2) < 1e-12
    return both


def between(call, parameters=(), shape=(3, 4, 4), **layers):
    """A norm of 8 channels between two convolutions, and the shape of an input."""
    vectors = {name: torch.ones(8) for name in parameters}
    return partial(
        Network, lambda n, x: n.b(call(n, torch.tanh(n.a(x)))), vectors,
        a=nn.Conv2d(3, 8, 1) if len(shape) == 3 else nn.Linear(3, 8),
        b=nn.Conv2d(8, 2, 1) if len(shape) == 3 else nn.Linear(8, 2), **layers,
    ), shape  # fmt: skip


def of_statistics(n, h):
    return F.instance_norm(h, n.norm.running_mean, n.norm.running_var, n.w, n.v, False, 0.1, 1e-3)


INSTANCE_NORMS = {
    "a function": between(lambda _, h: F.instance_norm(h)),
    "a function with weights": between(lambda n, h: F.instance_norm(h, weight=n.w, bias=n.v), "wv"),
    "a function of statistics": between(of_statistics, "wv", norm=nn.InstanceNorm2d(8, track_running_stats=True)),
    "affine": between(lambda n, h: n.norm(h), norm=nn.InstanceNorm2d(8, affine=True)),
    "statistics": between(lambda n, h: n.norm(h), norm=nn.InstanceNorm2d(8, track_running_stats=True)),
}


@pytest.mark.parametrize("name", INSTANCE_NORMS)
def test_instance_norms_mix_nothing(name):
    make, shape = INSTANCE_NORMS[name]
    graph = assert_contracts(make(), shape)
    assert [(s.size, s.mixed) for s in graph.spaces] == [(8, ())]
    assert not graph.frozen
    assert_mean(make, shape)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_group_norm_is_exact_in_groups_and_mixes_inside(groups):
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(groups, 8), nn.Conv2d(8, 2, 1))
    graph = assert_contracts(network, (3, 4, 4))
    outer = next(s for s in graph.spaces if s.outer)
    assert outer.size == (8 if groups == 1 else groups)
    assert outer.mixed == (("group_norm at 1",) if groups == 1 else ())
    if groups > 1:
        graphs = [typed(network, (3, 4, 4), seed=seed)[0] for seed in range(2)]
        x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
        big = concatenate(graphs)
        assert big.module.get_submodule("1").num_groups == 2 * groups
        assert deviation(big(x), (graphs[0](x) + graphs[1](x)) / 2) < 1e-12


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_group_norm_as_a_function(groups):
    network = Network(
        lambda n, x: n.b(F.group_norm(torch.tanh(n.a(x)), groups, n.w, n.v, eps=1e-3)),
        {"w": torch.ones(8), "v": torch.ones(8)},
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 2, 1),
    )
    graph = assert_contracts(network, (3, 4, 4))
    assert not graph.frozen
    assert [(s.size, bool(s.mixed)) for s in graph.spaces if s.outer] == [(groups if groups > 1 else 8, groups == 1)]


GROUP_NORMS = {
    "without weights": between(lambda _, h: F.group_norm(h, 4)),
    "by name": between(lambda n, h: F.group_norm(h, num_groups=4, weight=n.w, bias=n.v), "wv"),
    "a bias alone": between(lambda n, h: F.group_norm(h, 4, bias=n.v), "v"),
    "of vectors": between(lambda n, h: F.group_norm(h, 4, n.w), "w", (3,)),
    "a computed number": between(lambda n, h: F.group_norm(h, h.shape[1] // 2, n.w, n.v), "wv"),
    "a layer without weights": between(lambda n, h: n.norm(h), norm=nn.GroupNorm(4, 8, affine=False)),
}


@pytest.mark.parametrize("name", GROUP_NORMS)
def test_group_norms_of_every_form(name):
    make, shape = GROUP_NORMS[name]
    graph = assert_contracts(make(), shape)
    assert [(s.size, s.outer, len(s.mixed)) for s in graph.spaces] == [(4, True, 0), (2, False, 1)]
    assert not graph.frozen
    both = assert_mean(make, shape)
    assert [s.size for s in both.spaces] == [8, 2]


RMS_NORMS = {
    "a module": lambda n, h: n.norm(h),
    "a function": lambda n, h: F.rms_norm(h, (8,), n.norm.weight, eps=1e-3),
    "a function by name": lambda n, h: F.rms_norm(h, normalized_shape=h.shape[-1:], weight=n.norm.weight),
}


@pytest.mark.parametrize("name", RMS_NORMS)
def test_rms_norm_of_what_is_left_after_a_cut(name):
    network = Network(
        lambda n, x: n.b(RMS_NORMS[name](n, n.a(x))), a=nn.Linear(3, 8), norm=nn.RMSNorm(8), b=nn.Linear(8, 2)
    )
    graph = assert_contracts(network, (5, 3))
    assert [(s.size, len(s.mixed)) for s in graph.spaces] == [(8, 1)]
    small = compress(graph, 0.5)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        h = F.linear(x, small.module.a.weight, small.module.a.bias)
        weight = dict(small.module.named_parameters())["norm.weight"]
        h = F.rms_norm(h, (4,), weight, 1e-3 if name == "a function" else None)
        assert deviation(small(x), F.linear(h, small.module.b.weight, small.module.b.bias)) < 1e-12


RMS_NORMS_WITHOUT_WEIGHTS = {
    "a layer": between(lambda n, h: n.norm(h), shape=(3,), norm=nn.RMSNorm(8, elementwise_affine=False)),
    "a function": between(lambda _, h: F.rms_norm(h, [8]), shape=(3,)),
    "a function of a size": between(lambda n, h: F.rms_norm(h, (h.shape[-1],), n.w), "w", (3,)),
}


@pytest.mark.parametrize("name", RMS_NORMS_WITHOUT_WEIGHTS)
def test_rms_norms_keep_the_statistics_of_each_network(name):
    make, shape = RMS_NORMS_WITHOUT_WEIGHTS[name]
    graph = assert_contracts(make(), shape)
    assert [(s.size, len(s.mixed)) for s in graph.spaces] == [(8, 1)]
    assert_mean(make, shape)


@pytest.mark.parametrize(("normalized", "spaces"), [((8, 4, 4), [8]), ((4, 4), [8]), ((4,), [8])])
def test_an_rms_norm_over_positions_is_none_over_channels(normalized, spaces):
    make, shape = between(lambda n, h: n.norm(h), norm=nn.RMSNorm(normalized))
    graph = assert_contracts(make(), shape)
    assert [s.size for s in graph.spaces] == spaces
    assert all(s.mixed == () for s in graph.spaces)
    assert not graph.frozen


NORMS_OVER_ALL = {
    "instance norm": lambda h: F.instance_norm(h),
    "batch norm of the batch": lambda h: F.batch_norm(h, None, None, training=True),
    "group norm": lambda h: F.group_norm(h, 2),
}


@pytest.mark.parametrize("name", NORMS_OVER_ALL)
def test_channels_behind_the_channels_are_mixed(name):
    """A norm of `[batch, tokens, channels]` takes the channels for positions, but its statistics are theirs."""
    network = Network(lambda n, x: n.b(NORMS_OVER_ALL[name](n.a(x))), a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    graph, x, _ = typed(network, (4, 3))
    assert_permutes(graph, x)
    assert [(s.size, len(s.mixed)) for s in graph.spaces] == [(8, 1)]


def test_layer_norm_of_what_is_left_after_a_cut():
    network = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    graph, x, network = typed(network, (5, 3))
    assert graph.spaces[0].mixed == ("layer_norm at 1",)
    kept = random_choice(graph, exact=False)["0"]
    with torch.no_grad():
        h = F.layer_norm(network[0](x[0])[..., kept], (len(kept),), network[1].weight[kept], network[1].bias[kept])
        expected = F.linear(h, network[2].weight[:, kept], network[2].bias)
        assert deviation(compress(graph, {"0": kept})(*x), expected) < 1e-12


@pytest.mark.parametrize("by_name", [True, False])
def test_layer_norm_as_a_function(by_name):
    def forward(net, x):
        h = net.a(x)
        if by_name:
            return net.b(F.layer_norm(h, normalized_shape=(8,), weight=net.w, bias=net.v, eps=1e-3))
        return net.b(F.layer_norm(h, h.shape[-1:], net.w))

    network = Network(forward, {"w": torch.ones(8), "v": torch.ones(8)}, a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    graph = assert_contracts(network, (5, 3))
    half = compress(graph, 0.5)
    assert half.spaces[0].size == 4
    graphs = [typed(network, (5, 3), seed=seed)[0] for seed in range(2)]
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    assert deviation(concatenate(graphs)(x), (graphs[0](x) + graphs[1](x)) / 2) < 1e-12


@pytest.mark.parametrize("as_module", [True, False])
def test_a_norm_over_a_concat_of_one_space_with_itself(as_module):
    """As the patch merging of Swin Transformer: a direct sum has each network's channels in several runs."""

    def forward(net, x):
        h = torch.tanh(net.a(x))
        h = torch.cat([h, h.roll(1, 1)], -1)
        return net.b(net.norm(h) if as_module else F.layer_norm(h, (16,), net.norm.weight, net.norm.bias))

    graphs, x = [], torch.randn(4, 5, 3, dtype=torch.float64)
    for seed in range(3):
        network = Network(forward, a=nn.Linear(3, 8), norm=nn.LayerNorm(16), b=nn.Linear(16, 2))
        graphs.append(typed(network, (5, 3), seed=seed)[0])
    both = concatenate(graphs[:2])
    assert deviation(both(x), (graphs[0](x) + graphs[1](x)) / 2) < 1e-12
    three = concatenate([both, concatenate([graphs[2], graphs[2]])])
    assert deviation(three(x), (graphs[0](x) + graphs[1](x)) / 4 + graphs[2](x) / 2) < 1e-12
    first = compress(both, {both.spaces[0].name: range(8)})
    biases = [graph.module.get_parameter("b.bias") for graph in (graphs[0], both)]
    assert deviation(first(x), (graphs[0](x) - biases[0]) / 2 + biases[1]) < 1e-12


def in_groups(members, shape, seed=0, counts=lambda members: members, **options):
    """A grouped norm of 8 channels between two layers, traced; an input; and the network."""

    def forward(net, x):
        return net.b(grouped_norm(net.a(x), counts(net.members), net.norm.weight, net.norm.bias, **options))

    torch.manual_seed(seed)
    layer = nn.Linear if "dim" not in options else partial(nn.Conv2d, kernel_size=1)
    network = Network(forward, a=layer(3, 8), norm=nn.LayerNorm(8), b=layer(8, 2))
    nn.init.normal_(network.norm.weight, 1)
    nn.init.normal_(network.norm.bias)
    network.register_buffer("members", members)
    x = torch.randn(3, *shape, dtype=torch.float64)
    return gs.trace(network.double().eval(), x[:2]), x, network


def test_grouped_norms_keep_their_groups():
    graph, x, network = in_groups(torch.eye(2).repeat_interleave(torch.tensor([3, 5]), 0), (5, 3))
    assert [(s.name, s.size, s.mixed) for s in graph.spaces] == [("a", 8, ("grouped_norm at grouped_norm",))]
    assert_permutes(graph, [x])
    kept = torch.tensor([0, 2, 3, 4, 7])
    with torch.no_grad():
        w, v = network.norm.weight, network.norm.bias
        h = network.a(x)[..., kept]
        h = torch.cat([F.layer_norm(part, part.shape[-1:]) for part in h.split((2, 3), -1)], -1) * w[kept] + v[kept]
        expected = F.linear(h, network.b.weight[:, kept], network.b.bias)
        assert deviation(compress(graph, {"a": kept})(x), expected) < 1e-12
        alone = F.layer_norm(network.a(x)[..., 3:], (5,), w[3:], v[3:])
        expected = F.linear(alone, network.b.weight[:, 3:], network.b.bias)
        assert deviation(compress(graph, {"a": range(3, 8)})(x), expected) < 1e-12


def test_groups_that_are_blocks_may_go_and_be_copied():
    members = torch.eye(4).repeat_interleave(2, 0) * torch.tensor([1.0, 2.0]).repeat(4).unsqueeze(1)
    options = {"dim": 1, "positions": True, "blocks": True}
    graph, x, network = in_groups(members, (3, 4, 4), **options)
    assert [(s.size, s.outer, len(s.mixed)) for s in graph.spaces] == [(4, True, 0), (2, False, 1)]
    assert_permutes(graph, [x])
    second, _, _ = in_groups(members, (3, 4, 4), seed=1, **options)
    groups, inner = graph.spaces
    with torch.no_grad():
        assert deviation(concatenate([graph, second])(x), (graph(x) + second(x)) / 2) < 1e-12
        small = compress(graph, {groups.name: [0, 3]})
        masked = copy.deepcopy(network)
        masked.b.weight[:, [2, 3, 4, 5]] = 0
        assert deviation(small(x), masked(x)) < 1e-12
        assert torch.equal(small.tensors()["members"], network.members[[0, 1, 6, 7]][:, [0, 3]])
        wide = widen(graph, to={groups.name: 7, inner.name: 3})
        assert deviation(wide(x), network(x)) < 1e-12
        assert ((wide.tensors()["members"] > 0).sum(1) == 1).all()
        assert deviation(undo(wide)(x), network(x)) < 1e-12
        other = widen(graph, to={groups.name: 6}, init="random-pad")
        assert ((other.tensors()["members"] > 0).sum(1) == 1).all()


@pytest.mark.parametrize("within", ["same", "each"])
def test_channels_of_blocks_may_go_in_each_group(within):
    members = torch.eye(2).repeat_interleave(4, 0) * torch.linspace(1, 2, 8).unsqueeze(1)
    graph, x, network = in_groups(members, (3, 4, 4), dim=1, positions=True, blocks=True)
    kept = [[0, 2, 3], [0, 2, 3]] if within == "same" else [[0, 2, 3], [1, 2, 3]]
    channels = torch.tensor([kept[0], [4 + k for k in kept[1]]]).flatten()
    with torch.no_grad():
        own = network.members[channels]
        h = network.a(x)[:, channels]
        h = grouped_norm(h, own, network.norm.weight[channels], network.norm.bias[channels], dim=1, positions=True)
        expected = F.conv2d(h, network.b.weight[:, channels], network.b.bias)
        small = compress(graph, {graph.spaces[1].name: kept[0] if within == "same" else kept}, within=within)
        assert deviation(small(x), expected) < 1e-12


def test_members_that_are_computed_freeze_the_norm():
    graph, _, _ = in_groups(torch.ones(8, 1), (5, 3), counts=lambda members: members * 2)
    assert [reason for _, reason in graph.frozen] == ["grouped_norm: members that are computed"]
    assert not graph.spaces


def test_normalize_mixes_its_axis():
    graph = assert_contracts(
        Network(lambda n, x: n.b(F.normalize(n.a(x), dim=-1)), a=nn.Linear(3, 8), b=nn.Linear(8, 2)), (3,)
    )
    assert graph.spaces[0].mixed == ("normalize at normalize",)


def test_a_norm_over_positions_with_other_weights_is_computed_for_each_parent():
    network = Network(
        lambda n, x: n.b(n.norm(n.a(x).flatten(2)).flatten(1)),
        a=nn.Conv2d(3, 8, 1),
        norm=nn.LayerNorm(16),
        b=nn.Linear(128, 2),
    )
    assert_contracts(network, (3, 4, 4))
    graphs = [typed(network, (3, 4, 4), seed=seed)[0] for seed in range(2)]
    assert_direct_sum(graphs, [torch.randn(3, 3, 4, 4, dtype=torch.float64)], apart="norm")
