"""Widen: more channels, and the same outputs."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from contracts import FLOAT32, Network, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from torchvision.models.resnet import Bottleneck
from zoo import FEW, NAMES, traced

import graphsurgery as gs
from graphsurgery.network.layers import grouped_norm, weigh
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import gate
from graphsurgery.passes.widen import INITS, undo, widen
from graphsurgery.surgery.deviation import deviation, double


@pytest.mark.parametrize("init", ["unequal", "equal"])
@pytest.mark.parametrize("name", NAMES)
def test_a_wider_network_gives_the_same(name, init):
    graph, x = traced(name)
    with torch.no_grad():
        wide = widen(graph, 1.4, init=init)
        assert deviation(wide(x), graph(x)) < 1e-12
    sizes = {space.name: space.size for space in wide.spaces}
    assert wide.lineage[-1]["kept"] == {}
    for space in graph.spaces:
        assert sizes[space.name] == (round(1.4 * space.size) if space.outer else space.size)


@pytest.mark.parametrize("name", ["paper/lenet5", "paper/resnet20?width=8", "paper/vgg11_bn?width=12", "convnext"])
def test_and_in_training_mode(name):
    graph, x = traced(name)
    graph.module.train()
    for module in graph.module.modules():
        if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
    wide = widen(graph, 1.5)
    with torch.no_grad():
        assert deviation(wide(x), graph(x)) < 1e-12
    assert wide.module.training


@pytest.mark.parametrize("name", FEW)
def test_in_float32_too(name):
    graph, x = traced(name)
    graph.module.float()
    with torch.no_grad():
        assert deviation(widen(graph, 1.3)(x.float()), graph(x.float())) < FLOAT32


@given(st.integers(0, 10**6), st.floats(1.0, 3.0))
@settings(max_examples=40, deadline=None)
def test_random_networks_keep_their_outputs(seed, by):
    graph, x, _ = typed(RandomNetwork(seed, steps=6), (3, 4, 4), seed=seed)
    sizes = {s.name: int(by * s.size) + seed % 3 for s in graph.spaces}
    try:
        wide = widen(graph, to=sizes, seed=seed)
    except gs.SurgeryError as refusal:
        if not any(word in str(refusal) for word in ("cannot grow", "no space would grow", "nothing says")):
            raise
        return
    with torch.no_grad():
        expected = graph(*x)
        assert deviation(wide(*x), expected) < 1e-11
        assert deviation(undo(wide)(*x), expected) < 1e-11


def _vit() -> nn.Module:
    return torchvision.models.vision_transformer.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)


def test_heads_and_head_sizes_grow_with_rescaled_scores():
    graph, x = traced("vit")
    inner = [s for s in graph.spaces if not s.outer]
    assert {s.size for s in inner} == {8}
    wide = widen(graph, 1.5, to={inner[0].name: 12, inner[1].name: 9, inner[2].name: 16})
    with torch.no_grad():
        assert deviation(wide(x), graph(x)) < 1e-12
    attention = next(n for n in wide.module.graph.nodes if n.target is F.scaled_dot_product_attention)
    assert attention.kwargs["scale"] == pytest.approx(8**-0.5)
    assert any(n.target is weigh for n in wide.module.graph.nodes)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_recurrent_layers_grow(kind, options):
    layer = kind(4, 6, batch_first=True, **options)
    head = nn.Linear(12 if options else 6, 3)
    network = Network(
        lambda net, x: net.head(net.layer(torch.tanh(net.stem(x)))[0]), stem=nn.Linear(5, 4), layer=layer, head=head
    )
    graph, x, network = typed(network, (7, 5))
    wide = widen(graph, to={"stem": 7, "layer": 10})
    with torch.no_grad():
        assert deviation(wide(*x), network(*x)) < 1e-12
        assert deviation(undo(wide)(*x), network(*x)) < 1e-12


def between(middle, channels=8, parameters=(), **layers):
    """A network whose hidden channels go through `middle`."""
    return Network(
        lambda net, x: net.head(middle(net, torch.relu(net.stem(x))).flatten(1)),
        {name: torch.zeros(channels) for name in parameters},
        stem=nn.Conv2d(3, channels, 3, padding=1),
        head=nn.LazyLinear(5),
        **layers,
    )


MIXING = {
    "layer norm": (lambda n, h: n.norm(h.permute(0, 2, 3, 1)), {"norm": nn.LayerNorm(8)}),
    "layer norm without bias": (lambda n, h: n.norm(h.permute(0, 2, 3, 1)), {"norm": nn.LayerNorm(8, bias=False)}),
    "layer norm without values": (
        lambda n, h: n.norm(h.permute(0, 2, 3, 1)), {"norm": nn.LayerNorm(8, elementwise_affine=False)},
    ),
    "layer norm twice": (lambda n, h: n.norm(torch.relu(n.norm(h.permute(0, 2, 3, 1)))), {"norm": nn.LayerNorm(8)}),
    "layer norm function": (lambda _, h: F.layer_norm(h.permute(0, 2, 3, 1), (8,), eps=1e-3), {}),
    "rms norm": (lambda n, h: n.norm(h.permute(0, 2, 3, 1)), {"norm": nn.RMSNorm(8)}),
    "rms norm with eps": (lambda n, h: n.norm(h.permute(0, 2, 3, 1)), {"norm": nn.RMSNorm(8, eps=1e-2)}),
    "rms norm function": (lambda _, h: F.rms_norm(h.permute(0, 2, 3, 1), (8,)), {}),
    "one group": (lambda n, h: n.norm(h), {"norm": nn.GroupNorm(1, 8)}),
    "groups": (lambda n, h: n.norm(h), {"norm": nn.GroupNorm(4, 8)}),
    "groups function": (lambda _, h: F.group_norm(h, 2, eps=1e-3), {}),
    "instances": (lambda n, h: n.norm(h), {"norm": nn.InstanceNorm2d(8)}),
    "normalize": (lambda _, h: F.normalize(h), {}),
    "normalize p": (lambda _, h: F.normalize(h, 3.0, 1), {}),
    "normalize by the largest": (lambda _, h: F.normalize(h, float("inf"), 1), {}),
    "a computed number of groups": (lambda _, h: F.group_norm(h, h.shape[1] // 4, eps=1e-3), {}),
    "mean": (lambda _, h: h * h.mean(1, keepdim=True), {}),
    "mean of all": (lambda _, h: h * h.mean((1, 2, 3), keepdim=True), {}),
    "sum": (lambda _, h: h * torch.sum(h, dim=1, keepdim=True), {}),
    "norm": (lambda _, h: h * h.norm(2, 1, keepdim=True), {}),
    "vector norm": (lambda _, h: h * torch.linalg.vector_norm(h, ord=3, dim=1, keepdim=True), {}),
    "maximum": (lambda _, h: h * h.amax(1, keepdim=True), {}),
    "maximum with index": (lambda _, h: h * h.max(1, keepdim=True).values, {}),
    "cosine": (lambda _, h: h * F.cosine_similarity(h, h.sqrt(), 1).unsqueeze(1), {}),
    "products of tokens": (lambda _, h: (h.flatten(2).transpose(1, 2) @ h.flatten(2)).softmax(-1), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("to", [11, 16])
def test_operators_that_mix_channels_count_copies_by_their_shares(name, to):
    middle, layers = MIXING[name]
    network = between(middle, **copy.deepcopy(layers))
    network(torch.zeros(1, 3, 4, 4))
    graph, x, network = typed(network, (3, 4, 4))
    spaces = [s for s in graph.spaces if s.size in (4, 8) and (s.outer or name != "groups")]
    assert spaces
    wide = widen(graph, to={s.name: to if s.size == 8 else to // 2 for s in spaces})
    with torch.no_grad():
        assert deviation(wide(*x), network(*x)) < 1e-12
        again = widen(wide, 1.3)
        assert deviation(again(*x), network(*x)) < 1e-12
        assert deviation(undo(wide)(*x), network(*x)) < 1e-12


@pytest.mark.parametrize("name", ["layer norm", "rms norm", "one group"])
def test_norms_stay_plain_where_every_channel_has_as_many_copies(name):
    middle, layers = MIXING[name]
    network = between(middle, **copy.deepcopy(layers))
    network(torch.zeros(1, 3, 4, 4))
    graph, _, _ = typed(network, (3, 4, 4))

    def changed(wide):
        return any(n.target is grouped_norm for n in wide.module.graph.nodes)

    assert not changed(widen(graph, 2.0))
    assert changed(widen(graph, 1.5))


@pytest.mark.parametrize("name", ["shallow convnext", "shallow vit", "shallow resnet18"])
def test_a_wide_network_can_be_cut_stored_gated_and_exported(name, tmp_path):
    graph, x = traced(name)
    wide = widen(graph, 1.3)
    with torch.no_grad():
        expected = graph(x)
        assert deviation(gate(wide, loc=50.0)(x), expected) < 1e-12
        gs.save(wide, tmp_path / "wide.pt")
        assert deviation(gs.load(tmp_path / "wide.pt")(x), wide(x)) == 0
        small = compress(wide, 0.5)
        assert small(x).shape == expected.shape
    small.module.float()
    gs.export_onnx(small, tmp_path / "small.onnx")


@pytest.mark.parametrize("name", ["shallow convnext", "shallow resnet18"])
def test_the_wide_network_in_onnx_runtime_is_the_network(name, tmp_path):
    graph, _ = traced(name)
    graph.module.float()
    gs.export_onnx(widen(graph, 1.3), tmp_path / "wide.onnx", check=False)
    found = gs.check_onnx(graph, tmp_path / "wide.onnx")
    assert max(found.deviations.values()) < 1e-4


def test_the_pattern_gives_all_sizes():
    def bottlenecks(width):
        """ResNet-50 and Wide ResNet-50, in small: the inner convolutions are twice as wide."""
        return torchvision.models.ResNet(Bottleneck, [1, 2, 1, 1], num_classes=10, width_per_group=width)

    small = gs.trace(bottlenecks(4).double().eval(), torch.zeros(2, 3, 64, 64).double())
    with torch.device("meta"):
        pattern = bottlenecks(8)
    wide = widen(small, like=gs.trace(pattern.eval(), torch.zeros(2, 3, 64, 64)))
    shapes = {name: tensor.shape for name, tensor in wide.module.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in pattern.state_dict().items()}
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert deviation(wide(x), small(x)) < 1e-12


def test_noise_random_padding_and_the_next_layer_change_the_outputs_by_degrees():
    graph, x = traced("paper/vgg11_bn?width=12")
    with torch.no_grad():
        found = {init: deviation(widen(graph, 1.5, init=init)(x), graph(x)) for init in INITS}
        loud = deviation(widen(graph, 1.5, init="equal+noise", noise=0.5)(x), graph(x))
    assert max(found["unequal"], found["equal"]) < 1e-12 < 1e-4 < found["equal+noise"] < loud
    assert found["random-pad"] > 1e-2
    assert found["next"] > 1e-2
    quiet = widen(graph, 1.5, init="equal+noise", noise=0.0)
    with torch.no_grad():
        assert deviation(quiet(x), graph(x)) < 1e-12


def test_random_padding_keeps_the_old_block():
    graph, _ = traced("paper/lenet5")
    wide = widen(graph, 2.0, init="random-pad")
    old, new = graph.tensors()["conv2.weight"], wide.tensors()["conv2.weight"]
    assert torch.equal(new[::2, ::2], old)
    assert not torch.equal(new[1::2, ::2], old)


def test_equal_shares_stay_alike_and_unequal_ones_come_apart_in_training():
    """The rank of what a wide layer has learnt: with equal shares no more than the teacher's width."""
    ranks = {}
    for init in ("equal", "unequal"):
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)).double()
        graph = gs.trace(teacher, torch.zeros(2, 20).double())
        wide = widen(graph, to={"0": 12}, init=init)
        optimizer = torch.optim.SGD(wide.module.parameters(), lr=0.1)
        for _ in range(50):
            x = torch.randn(64, 20, dtype=torch.float64)
            loss = (wide(x) - x[:, :3].square()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ranks[init] = int(torch.linalg.matrix_rank(wide.tensors()["0.weight"].detach(), rtol=1e-9))
    assert ranks == {"equal": 6, "unequal": 12}


def test_the_shares_of_copies_differ_and_sum_to_one():
    graph, _ = traced("paper/lenet5")
    wide = widen(graph, 2.6, seed=3)
    for channel_map in wide.origin.edit.maps.values():
        sums = (
            torch.zeros(int(channel_map.source.max()) + 1).double().index_add(0, channel_map.source, channel_map.share)
        )
        assert torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-15)
        counts = torch.bincount(channel_map.source)
        assert int(counts.max() - counts.min()) <= 1
        for channel, count in enumerate(counts.tolist()):
            assert len(set(channel_map.share[channel_map.source == channel].tolist())) == count


def test_the_network_that_was_widened_stays_as_it_was():
    graph, x = traced("vit")
    before = {name: tensor.clone() for name, tensor in graph.tensors().items()}
    widen(graph, 1.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.tensors().items())
    assert double(graph)(x).shape == (2, 10)


def test_statistics_of_positions_keep_their_space_and_say_so():
    network = between(lambda _, h: F.batch_norm(h.mT.transpose(1, 3), None, None, training=True).transpose(1, 3).mT)
    network(torch.zeros(1, 3, 4, 4))
    graph, _, _ = typed(network, (3, 4, 4))
    with pytest.raises(
        gs.SurgeryError, match=r"no space would grow; stem: a mean and variance at batch_norm would change"
    ):
        widen(graph, 2.0)
    with pytest.raises(
        gs.SurgeryError, match=r"space stem cannot grow: a mean and variance at batch_norm would change"
    ):
        widen(graph, to={"stem": 9})


BAD = {
    "smaller": ({"to": {"conv1": 2}}, r"space conv1 has 6 channels, cannot become 2; compress removes channels"),
    "smaller factor": ({"to": {"conv1": 0.5}}, r"space conv1 by 0.5 would shrink; compress"),
    "by": ({"by": 0.9}, r"by is 0.9, expected at least 1; compress removes"),
    "by nan": ({"by": float("nan")}, r"by is nan, expected at least 1"),
    "unknown space": ({"to": {"conv9": 20}}, r"conv9 is not a space of this model; did you mean conv2, conv1"),
    "unknown init": ({"by": 2, "init": "best"}, r"init is 'best'; choose from unequal"),
    "nothing": ({}, r"nothing says how wide"),
    "no change": ({"by": 1.0}, r"no space would grow; the factor rounds"),
    "round_to": ({"by": 2, "round_to": 0}, r"round_to is 0, expected a whole number from 1"),
    "noise": ({"by": 2, "init": "equal+noise", "noise": -1.0}, r"noise is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused(case):
    options, message = BAD[case]
    graph, _ = traced("paper/lenet5")
    with pytest.raises(gs.SurgeryError, match=message):
        widen(graph, **options)


def test_patterns_that_do_not_fit_and_gated_networks_are_refused():
    graph, _ = traced("paper/lenet5")
    other, _ = traced("paper/conv2?image_size=8")
    with pytest.raises(gs.SurgeryError, match=r"the network and its pattern do not match"):
        widen(graph, like=other)
    with pytest.raises(gs.SurgeryError, match=r"the pattern has fewer channels in \d spaces \(conv1 9 to 6"):
        widen(widen(graph, 1.5), like=graph)
    with pytest.raises(gs.SurgeryError, match=r"like gives all sizes"):
        widen(graph, 2.0, like=graph)
    with pytest.raises(gs.SurgeryError, match=r"this network has gates"):
        widen(gate(graph), 2.0)
    with pytest.raises(gs.SurgeryError, match=r"not what widen made by unequal or equal shares"):
        undo(graph)
