"""Factorize: two layers for one, exact at full rank."""

import pytest
import torch
from contracts import Network, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from zoo import NAMES, Products, traced

import graphsurgery as gs
from graphsurgery.errors import SurgeryError
from graphsurgery.passes.compress import compress
from graphsurgery.passes.factorize import factorize, unfactorize
from graphsurgery.passes.gate import gate
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import deviation

RESNET = "paper/resnet18?width=16"
"""As deep as the ResNet-18 of torchvision, whose large layers take seconds to decompose."""


@pytest.mark.parametrize("shape", ["channel", "spatial"])
@pytest.mark.parametrize("name", [RESNET if name == "resnet18" else name for name in NAMES])
def test_at_full_rank_the_outputs_are_the_same_and_the_factors_multiply_back(name, shape):
    graph, x = traced(name)
    with torch.no_grad():
        two = factorize(graph, rank=1.0, shape=shape, force=True)
        assert deviation(two(x), graph(x)) < 1e-10
        one = unfactorize(two)
        assert deviation(one(x), graph(x)) < 1e-10
    assert {n: t.shape for n, t in one.tensors().items()} == {n: t.shape for n, t in graph.tensors().items()}
    assert not [path for path in two.lineage[-1]["skipped"] if "saves nothing" in two.lineage[-1]["skipped"][path]]


@given(st.integers(0, 10**6), st.sampled_from(["channel", "spatial"]))
@settings(max_examples=40, deadline=None)
def test_random_networks_at_full_rank(seed, shape):
    graph, x, _ = typed(RandomNetwork(seed, steps=5), (3, 4, 4), seed=seed)
    two = factorize(graph, rank=1.0, shape=shape, force=True)
    with torch.no_grad():
        assert deviation(two(*x), graph(*x)) < 1e-10
        assert deviation(unfactorize(two)(*x), graph(*x)) < 1e-10


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_products_with_parameters_are_layers_too(drop):
    torch.manual_seed(0)
    graph, x = gs.trace(Products(drop).double().eval(), torch.randn(2, 5, 6).double()), torch.randn(3, 5, 6).double()
    two = factorize(graph, rank=1.0, force=True)
    layers = ["embed", "head", *(f"blocks.{n}.{name}" for n in range(2) for name in ("up", "down"))]
    assert sorted(two.lineage[-1]["ranks"]) == sorted(layers)
    assert not {"blocks.0.up.weight", "blocks.0.up.bias", "offset", "head"} & set(two.tensors())
    with torch.no_grad():
        assert deviation(two(x), graph(x)) < 1e-12
        assert deviation(unfactorize(two)(x), graph(x)) < 1e-12
    some = factorize(graph, "blocks.1.up", rank=3)
    found = {name for name in some.tensors() if name.startswith("blocks.1.up")}
    bias = ("expand.bias",) if drop else ()
    assert found == {f"blocks.1.up.{name}" for name in ("reduce.weight", "expand.weight", *bias)}
    written = (12, 8) if drop else (8, 12)
    assert some.tensors()["blocks.1.down.weight"].shape == written  # what is no factor stays as it is written
    assert cost(some).macs == cost(graph).macs - 5 * (8 * 12 - 3 * (8 + 12))
    assert cost(factorize(graph, target="macs=0.8x")).macs <= 0.8 * cost(graph).macs


class TwiceRead(nn.Module):
    """A matrix that two products read, and one whose offset is no vector."""

    def __init__(self):
        super().__init__()
        self.matrix, self.other = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        self.offset = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return torch.addmm(self.offset, x @ self.matrix @ self.matrix, self.other)


def test_products_that_are_no_layers_stay():
    graph = gs.trace(TwiceRead(), torch.randn(2, 4))
    with pytest.raises(gs.SurgeryError, match="no layer becomes smaller"):
        factorize(graph, rank=1.0, force=True)


LAYERS = {
    "linear": (nn.Linear(8, 6), (5, 8)),
    "without bias": (nn.Linear(8, 6, bias=False), (8,)),
    "convolution": (nn.Conv2d(8, 6, 3, padding=1, stride=2), (8, 9, 7)),
    "oblong": (nn.Conv2d(8, 6, (3, 5), padding=(0, 2), stride=(2, 1), dilation=(1, 2)), (8, 9, 12)),
    "same": (nn.Conv2d(8, 6, 3, padding="same"), (8, 5, 5)),
    "groups": (nn.Conv2d(8, 12, 3, groups=2), (8, 5, 5)),
    "reflecting": (nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), (8, 5, 5)),
    "one axis": (nn.Conv1d(8, 6, 3), (8, 7)),
    "three axes": (nn.Conv3d(4, 6, 3, padding=1), (4, 3, 3, 3)),
    "one": (nn.Conv2d(8, 6, 1), (8, 5, 5)),
}


@pytest.mark.parametrize("shape", ["channel", "spatial"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name, shape):
    layer, size = LAYERS[name]
    graph, x, network = typed(Network(lambda net, x: torch.tanh(net.layer(x)), layer=layer), size)
    try:
        two = factorize(graph, rank=1.0, shape=shape, force=True)
    except gs.SurgeryError as refusal:
        if (name, shape) != ("reflecting", "spatial") or "would pad twice" not in str(refusal):
            raise
        return
    with torch.no_grad():
        assert deviation(two(*x), network(*x)) < 1e-10
        assert deviation(unfactorize(two)(*x), network(*x)) < 1e-10


def test_a_cut_of_the_rank_is_the_best_approximation_and_saves_what_it_says():
    graph, _, network = typed(Network(lambda net, x: net.layer(x), layer=nn.Linear(40, 30)), (40,))
    two = factorize(graph, rank=7)
    u, s, v = torch.linalg.svd(network.layer.weight.detach())
    best = (u[:, :7] * s[:7]) @ v[:7]
    tensors = two.tensors()
    product = tensors["layer.expand.weight"] @ tensors["layer.reduce.weight"]
    assert deviation(product, best) < 1e-12
    assert sum(p.numel() for p in two.module.parameters()) == 7 * (40 + 30) + 30
    assert [s.size for s in two.spaces] == [7]


def test_energy_says_how_much_of_each_layer_stays():
    graph, _ = traced(RESNET)
    ranks = {e: factorize(graph, energy=e).lineage[-1]["ranks"] for e in (0.3, 0.6)}
    shared = set(ranks[0.3]) & set(ranks[0.6])
    assert shared
    assert all(ranks[0.3][path][1] < ranks[0.6][path][1] for path in shared)
    weight = graph.tensors()["stages.3.1.conv2.weight"].detach().flatten(1)
    squares = torch.linalg.svdvals(weight).square()
    rank = ranks[0.6]["stages.3.1.conv2"][1]
    assert squares[: rank - 1].sum() < 0.6 * squares.sum() <= squares[:rank].sum()


@pytest.mark.parametrize("shape", ["channel", "spatial"])
@pytest.mark.parametrize("target", ["params=0.5x", "macs=0.6x", "size=0.5x"])
def test_targets_are_met_on_the_real_count(target, shape):
    graph, x = traced(RESNET)
    small = factorize(graph, target=target, shape=shape)
    before, after = cost(graph), cost(small)
    share = {"params": after.parameters / before.parameters, "macs": after.macs / before.macs,
             "size": after.bytes / before.bytes}  # fmt: skip
    quantity, _, amount = target.partition("=")
    limit = float(amount.rstrip("x"))
    assert limit - 0.03 < share[quantity] <= limit
    with torch.no_grad():
        assert small(x).shape == graph(x).shape


class InTheBatch(nn.Module):
    """Layers that read tokens, or frames, as examples of one large batch."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 3 * 8 * 8)
        self.conv = nn.Conv2d(3, 32, 3, padding=1)

    def forward(self, x):
        batch, tokens, width = x.shape
        frames = self.down(self.up(x.reshape(-1, width)).relu()).reshape(-1, 3, 8, 8)
        return self.conv(frames).mean((2, 3)).reshape(batch, tokens, 32)


@pytest.mark.parametrize("shape", ["channel", "spatial"])
def test_multiply_accumulates_of_what_stands_in_the_axis_of_the_batch(shape):
    graph = gs.trace(InTheBatch(), torch.randn(2, 10, 32))
    share = cost(factorize(graph, target="macs=0.6x", shape=shape)).macs / cost(graph).macs
    assert 0.5 < share <= 0.6


def test_random_factors_have_the_spread_of_the_weights():
    graph, _, network = typed(Network(lambda net, x: net.layer(x), layer=nn.Linear(400, 300)), (400,))
    two = factorize(graph, rank=20, how="random", seed=1)
    tensors = two.tensors()
    product = tensors["layer.expand.weight"] @ tensors["layer.reduce.weight"]
    assert 0.8 < float((product.std() / network.layer.weight.std()).detach()) < 1.25
    again = factorize(graph, rank=20, how="random", seed=1).tensors()
    assert torch.equal(again["layer.reduce.weight"], tensors["layer.reduce.weight"])


@pytest.mark.parametrize("name", ["shallow resnet18", "shallow vit", "shallow convnext"])
def test_a_factorized_network_can_be_cut_widened_stored_and_exported(name, tmp_path):
    graph, x = traced(name)
    two = factorize(graph, rank=0.3)
    with torch.no_grad():
        expected = two(x)
        assert deviation(widen(two, 1.3)(x), expected) < 1e-10
        assert deviation(gate(two, loc=50.0)(x), expected) < 1e-10
        assert compress(two, 0.5)(x).shape == expected.shape
        gs.save(two, tmp_path / "two.pt")
        again = gs.load(tmp_path / "two.pt")
        assert deviation(again(x), expected) == 0
        assert deviation(unfactorize(again)(x), expected) < 1e-10
    two.module.float()
    gs.export_onnx(two, tmp_path / "two.onnx")


def test_layers_that_save_nothing_or_share_weights_are_skipped_and_said():
    def forward(net, x):
        return net.head(torch.relu(net.tied(torch.relu(net.layer(x))) + x @ net.tied.weight.t()))

    network = Network(forward, layer=nn.Linear(40, 40), tied=nn.Linear(40, 40), head=nn.Linear(40, 2))
    graph, _, _ = typed(network, (40,))
    skipped = factorize(graph, rank=10).lineage[-1]["skipped"]
    assert skipped["tied"] == "its weights stand elsewhere too"
    assert skipped["head"] == "rank 2 saves nothing of its 80 weights"


def test_depthwise_convolutions_are_left_alone():
    graph, _ = traced("mobilenet_v2")
    record = factorize(graph, rank=0.3).lineage[-1]
    assert "a depthwise convolution has rank 1" in record["skipped"].values()
    assert all(rank < full for full, rank in record["ranks"].values())


BAD = {
    "nothing": ({}, "give one of rank, energy and target"),
    "two": ({"rank": 3, "energy": 0.5}, "give one of rank, energy and target"),
    "rank": ({"rank": 0}, "rank of conv1 is 0, expected 1 to its full rank 64"),
    "share": ({"rank": 1.5}, r"rank of conv1 is 1.5, expected a share above 0"),
    "above full": ({"layers": ["fc"], "rank": {"fc": 11}}, "rank of fc is 11, expected 1 to its full rank 10"),
    "energy": ({"energy": 0.0}, "energy is 0, expected a share above 0"),
    "how": ({"rank": 3, "how": "qr"}, "how is 'qr'; choose from svd, random"),
    "shape": ({"rank": 3, "shape": "round"}, "shape is 'round'; choose from channel, spatial"),
    "unknown": ({"layers": ["conv7"], "rank": 3}, "conv7 is not a layer of this model; did you mean"),
    "no layer": ({"layers": ["maxpool"], "rank": 3}, "maxpool cannot be factorized: MaxPool2d is no linear layer"),
    "target": ({"target": "params=0.001x"}, r"params=0.001x is .*; the closest that can be reached is"),
    "width": ({"target": "width=0.5"}, "a target of width is not possible"),
    "no layers": ({"layers": [], "rank": 3}, "layers names none; leave it out for all"),
    "rank of none": ({"rank": {"conv7": 3}}, "rank names conv7, which is not factorized; did you mean"),
    "met already": ({"target": "params=1x"}, "meets params=1x as it is"),
    "saves nothing": ({"layers": ["fc"], "rank": 10}, "no layer becomes smaller; fc: rank 10 saves nothing of its"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused(case):
    options, message = BAD[case]
    graph, _ = traced("resnet18")
    with pytest.raises(gs.SurgeryError, match=message):
        factorize(graph, **options)


class _Pair(nn.Module):
    def __init__(self, reduce, expand, between=None):
        super().__init__()
        self.reduce, self.expand, self.between = reduce, expand, between

    def forward(self, x):
        x = self.reduce(x)
        return self.expand(x if self.between is None else self.between(x))


PAIRS = {
    "bias": _Pair(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)),
    "kernel": _Pair(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 5, 3)),
    "stride": _Pair(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 1, stride=2)),
    "padding": _Pair(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 1, padding=1)),
    "groups": _Pair(nn.Conv2d(4, 4, 3, bias=False, groups=2), nn.Conv2d(4, 6, 1)),
    "activation": _Pair(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 1), nn.ReLU()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_layers_of_that_name_that_are_no_factors_are_left_alone(name):
    graph, _, _ = typed(nn.Sequential(PAIRS[name]), (4 if name == "groups" else 3, 8, 8))
    with pytest.raises(gs.SurgeryError, match="no layer of this network is factorized"):
        unfactorize(graph)


def test_factors_beside_a_tensor_become_a_layer_beside_it():
    """A file of an attention calls its first layer `0`, and the bias that it adds to the keys `0.bias_k`."""
    layer = nn.Module()
    layer.reduce, layer.expand, layer.bias = nn.Linear(6, 2, bias=False), nn.Linear(2, 5), nn.Parameter(torch.ones(5))
    network = Network(lambda net, x: net.layer.expand(net.layer.reduce(x)) + net.layer.bias, layer=layer)
    graph, x, _ = typed(network, (6,))
    one = unfactorize(graph)
    assert {name: tuple(tensor.shape) for name, tensor in one.tensors().items()} == {
        "layer.bias": (5,), "layer_1.weight": (5, 6), "layer_1.bias": (5,),
    }  # fmt: skip
    with torch.no_grad():
        assert deviation(one(*x), graph(*x)) < 1e-12


class WithMore(nn.Module):
    """A layer that has a parameter, a buffer and a layer of its own beside its weights, which the model reads."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 3)
        layer.extra, layer.inner = nn.Parameter(torch.randn(8)), nn.Linear(8, 8)
        layer.register_buffer("kept", torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(x.mT).mT if isinstance(self.layer, nn.Conv1d) else self.layer(x)
        return self.head(self.layer.inner(hidden.relu()) + self.layer.extra * self.layer.kept)


@pytest.mark.parametrize("kind", ["linear", "convolution", "computed"])
def test_what_a_layer_has_beside_its_weights_stays(kind, tmp_path):
    torch.manual_seed(0)
    layer = nn.Conv1d(6, 8, 1) if kind == "convolution" else nn.Linear(6, 8)
    layer = nn.utils.parametrizations.weight_norm(layer) if kind == "computed" else layer
    graph, x, _ = typed(WithMore(layer), (5, 6))
    two = factorize(graph, "layer", rank=6, force=True)
    assert {"layer.extra", "layer.kept", "layer.inner.weight", "layer.reduce.weight"} <= {*two.tensors()}
    one = unfactorize(two)
    gs.save(two, tmp_path / "two.pt")
    with torch.no_grad():
        for other in (two, one, gs.load(tmp_path / "two.pt")):
            assert deviation(other(*x), graph(*x)) < 1e-12


def test_a_layer_with_a_part_where_a_factor_would_stand_is_refused():
    model = WithMore(nn.Linear(6, 8))
    model.layer.reduce = model.layer.inner
    graph, _, _ = typed(model, (6,))
    with pytest.raises(SurgeryError, match="layer has a reduce of its own, where one of its factors would stand"):
        factorize(graph, "layer", rank=2)


def test_frozen_layers_stay_frozen_and_random_numbers_stay_the_callers():
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    network[0].requires_grad_(False)
    graph = gs.trace(network, torch.zeros(2, 6).double())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    two = factorize(graph, "0", rank=2)
    one = unfactorize(two)
    assert torch.equal(torch.rand(2), expected)
    for found in (two, one):
        assert [n for n, p in found.module.named_parameters() if p.requires_grad] == ["2.weight", "2.bias"]


def test_what_is_not_factorized_cannot_be_multiplied():
    graph, _ = traced("resnet18")
    with pytest.raises(gs.SurgeryError, match="no layer of this network is factorized"):
        unfactorize(graph)
    two = factorize(graph, ["layer1.0.conv1"], rank=8)
    with pytest.raises(gs.SurgeryError, match=r"layer1.0.conv2 is not factorized; did you mean layer1.0.conv1"):
        unfactorize(two, ["layer1.0.conv2"])
    with pytest.raises(gs.SurgeryError, match="this network has gates"):
        factorize(gate(graph), rank=8)
