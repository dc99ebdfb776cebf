"""Deepen: more layers, and the same outputs."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from contracts import FLOAT32, Network, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from zoo import FEW, NAMES, Products, traced

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.deepen import deepen, deepen_like
from graphsurgery.passes.gate import gate
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.growth.places import places
from graphsurgery.training.loop.optimizer_state import remap_optimizer


def assert_used(deep, x):
    """Every new layer has a say: another value of its parameters gives another output, or its layer is zero."""
    new = [name for name, _ in deep.module.named_parameters() if "_deeper" in name]
    assert new
    expected = deep(*x)
    with torch.no_grad():
        for name, parameter in deep.module.named_parameters():
            if name in new:
                parameter.uniform_(0.1, 0.5)
    assert deviation(deep(*x), expected) > 1e-6
    deep.module.zero_grad()
    deep(*x).square().mean().backward()
    tensors = deep.tensors()
    assert all(tensors[name].grad is not None for name in new)


@pytest.mark.parametrize("name", NAMES)
def test_a_deeper_network_gives_the_same(name):
    graph, x = traced(name)
    found = places(graph)
    assert found
    with torch.no_grad():
        deep = deepen(graph, count=2)
        assert deviation(deep(x), graph(x)) < 1e-12
    assert cost(deep).parameters == cost(graph).parameters + 2 * sum(place.parameters for place in found)
    assert_used(deep, [x])


@pytest.mark.parametrize("name", ["paper/conv4?image_size=8", "paper/lenet_300_100", "vit", "convnext"])
def test_and_in_training_mode_where_no_batch_norm_has_to_be_undone(name):
    graph, x = traced(name)
    graph.module.train()
    for module in graph.module.modules():
        if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
    deep = deepen(graph)
    assert deep.module.training
    with torch.no_grad():
        assert deviation(deep(x), graph(x)) < 1e-12


@pytest.mark.parametrize("name", FEW)
def test_in_float32_too(name):
    graph, x = traced(name)
    graph.module.float()
    with torch.no_grad():
        assert deviation(deepen(graph)(x.float()), graph(x.float())) < FLOAT32


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_random_networks_keep_their_outputs(seed):
    graph, x, _ = typed(RandomNetwork(seed, steps=5), (3, 4, 4), seed=seed)
    names = [n.name for n in graph.module.graph.nodes if n.op == "call_module"]
    for block in ("auto", "copy", "layer", "residual"):
        try:
            deep = deepen(graph, names[seed % len(names)], block=block, seed=seed)
        except gs.SurgeryError as refusal:
            assert block in ("copy", "layer") or "which no layer could take" in str(refusal)  # noqa: PT017
            continue
        with torch.no_grad():
            assert deviation(deep(*x), graph(*x)) < 1e-11


STAGES = {
    "a stage of basic blocks": ("resnet18", "layer2", "layer2.1"),
    "a block": ("resnet18", "layer3.1", "layer3.1"),
    "the first of all stages": ("resnet18", "layer1", "layer1.1"),
    "an inverted residual": ("mobilenet_v2", "features.3", "features.3"),
    "a transformer": ("vit", "encoder.layers", "encoder.layers.encoder_layer_1"),
    "its first block": ("vit", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_0"),
    "a stage of convnext": ("convnext", "features.1", "features.1.1"),
    "a convolution": ("paper/conv4?image_size=8", "features.2", "features.2"),
}


@pytest.mark.parametrize("case", STAGES)
def test_what_stands_before_a_place_is_repeated(case):
    name, stage, unit = STAGES[case]
    graph, x = traced(name)
    deep = deepen(graph, stage, 2)
    with torch.no_grad():
        assert deviation(deep(x), graph(x)) < 1e-12
    old = {path for path in graph.module.state_dict() if path.startswith(f"{unit}.")}
    assert old
    new = set(deep.module.state_dict()) - set(graph.module.state_dict())
    assert new == {f"{unit}_deeper{n}{path[len(unit) :]}" for path in old for n in (1, 2)}
    assert_used(deep, [x])


def _layers(activation):
    return Network(
        lambda net, x: net.head(net.act(net.norm(net.body(x))).flatten(1)),
        body=nn.Conv2d(3, 6, 3, padding=1),
        norm=nn.BatchNorm2d(6),
        act=activation,
        head=nn.Linear(96, 4),
    )


@pytest.mark.parametrize(
    ("activation", "kind"),
    [(nn.ReLU(), "layer"), (nn.ReLU6(), "layer"), (nn.Hardtanh(), "layer"), (nn.Hardtanh(-2, 2), "residual"),
     (nn.GELU(), "residual"), (nn.SiLU(), "residual"), (nn.Tanh(), "residual"), (nn.Sigmoid(), "residual")],
)  # fmt: skip
def test_only_an_activation_that_may_be_applied_twice_takes_an_identity_layer(activation, kind):
    graph, x, network = typed(_layers(activation), (3, 4, 4))
    deep = deepen(graph, "body", 2)
    assert set(deep.lineage[-1]["places"].values()) == {kind}
    with torch.no_grad():
        assert deviation(deep(*x), network(*x)) < 1e-12
    assert ("act_deeper1.norm.weight" in deep.tensors()) == (kind == "layer")
    assert_used(deep, x)


def test_examples_give_norms_the_statistics_of_what_arrives():
    graph, x, network = typed(_layers(nn.ReLU()), (3, 4, 4))
    torch.manual_seed(0)
    examples = torch.randn(512, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        deep = deepen(graph, "body", examples=[examples])
        assert deviation(deep(*x), network(*x)) < 1e-12
        norm = deep.module.get_submodule("act_deeper1.norm")
        arrived = torch.relu(network.norm(network.body(examples)))
        assert torch.allclose(norm.running_mean, arrived.mean((0, 2, 3)))
        assert torch.allclose(norm.running_var, arrived.var((0, 2, 3), unbiased=False))
        plain = deepen(graph, "body")
        graph.module.get_submodule("norm").eval()
        fresh = torch.randn(512, 3, 4, 4, dtype=torch.float64)
        expected = network(fresh)
        off = {}
        for label, candidate in (("calibrated", deep), ("not", plain)):
            candidate.module.eval()
            candidate.module.get_submodule("act_deeper1.norm").train()
            off[label] = deviation(candidate(fresh), expected)
        assert off["calibrated"] < 0.2 < off["not"]


def test_functions_are_activations_too():
    def forward(net, x):
        x = F.relu(net.a(x))
        x = F.max_pool2d(x, 2)
        return net.head(F.relu6(net.b(x)).mean((2, 3)))

    network = Network(forward, a=nn.Conv2d(3, 5, 3, padding=1), b=nn.Conv2d(5, 5, 1), head=nn.Linear(5, 2))
    graph, x, network = typed(network, (3, 4, 4))
    for name in ("a", "b", "max_pool2d", "relu6"):
        deep = deepen(graph, name)
        with torch.no_grad():
            assert deviation(deep(*x), network(*x)) < 1e-12, name
        assert_used(deep, x)


def test_a_norm_layer_and_a_layer_scale_can_be_the_zero_of_a_block():
    def forward(net, x):
        x = net.stem(x)
        x = x + net.post(net.mlp(x))
        return net.head(x + net.scale * torch.tanh(net.other(x)))

    network = Network(
        forward, {"scale": torch.zeros(8)}, stem=nn.Linear(5, 8), mlp=nn.Linear(8, 8), post=nn.LayerNorm(8),
        other=nn.Linear(8, 8), head=nn.Linear(8, 2),
    )  # fmt: skip
    graph, x, network = typed(network, (7, 5))
    for name, zero in (("add", "post_deeper1.weight"), ("add_1", "scale_deeper1")):
        deep = deepen(graph, name, block="copy")
        with torch.no_grad():
            assert deviation(deep(*x), network(*x)) < 1e-12
        assert not deep.tensors()[zero].any()


@pytest.mark.parametrize("name", ["shallow resnet18", "shallow vit", "shallow convnext", "paper/lenet5"])
def test_a_deep_network_can_be_widened_cut_gated_stored_and_exported(name, tmp_path):
    graph, x = traced(name)
    deep = deepen(graph)
    with torch.no_grad():
        expected = graph(x)
        assert deviation(widen(deep, 1.5)(x), expected) < 1e-12
        assert deviation(deepen(widen(graph, 1.5))(x), expected) < 1e-12
        assert deviation(gate(deep, loc=50.0)(x), expected) < 1e-12
        assert compress(deep, 0.5)(x).shape == expected.shape
        gs.save(deep, tmp_path / "deep.pt")
        assert deviation(gs.load(tmp_path / "deep.pt")(x), deep(x)) == 0
        assert deviation(deepen(gs.load(tmp_path / "deep.pt"))(x), expected) < 1e-12
    deep.module.float()
    gs.export_onnx(deep, tmp_path / "deep.onnx", check=False)
    graph.module.float()
    assert max(gs.check_onnx(graph, tmp_path / "deep.onnx").deviations.values()) < 1e-4


def test_the_state_of_an_optimizer_stays_and_new_layers_start_without():
    graph, x = traced("resnet18")
    optimizer = torch.optim.Adam(graph.module.parameters(), lr=1e-3)
    graph(x).square().mean().backward()
    optimizer.step()
    deep = deepen(graph)
    mapped = remap_optimizer(optimizer, graph, deep)
    assert len(mapped.param_groups[0]["params"]) == len(list(deep.module.parameters()))
    for name, parameter in deep.module.named_parameters():
        assert (parameter in mapped.state) == (name in graph.tensors())
    deep(x).square().mean().backward()
    mapped.step()


class _Narrow(torchvision.models.ResNet):
    """A quarter of the channels behind the stem: two side by side are small enough for float64."""

    def _make_layer(self, block, planes, *args, **kwargs):
        return super()._make_layer(block, planes // 4, *args, **kwargs)


def _resnet(*layers):
    network = _Narrow(torchvision.models.resnet.BasicBlock, list(layers))
    network.fc = nn.Linear(128, 5)
    return network


def _vgg(plan):
    layers = torchvision.models.vgg.make_layers(plan, batch_norm=True)
    width = next(w for w in reversed(plan) if w != "M")
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


FAMILY = {
    "resnet": (lambda: _resnet(2, 2, 1, 2), lambda: _resnet(3, 4, 1, 3)),
    "vgg": (lambda: _vgg([4, "M", 8, "M", 8, 8, "M"]), lambda: _vgg([6, 6, "M", 9, 9, "M", 9, 9, 9, "M"])),
}


@pytest.mark.parametrize("name", FAMILY)
def test_a_family_member_of_fewer_blocks_becomes_as_deep(name):
    small, x, network = typed(FAMILY[name][0](), (3, 32, 32))
    large, _, other = typed(FAMILY[name][1](), (3, 32, 32), seed=1)
    deep = deepen_like(small, large)
    with torch.no_grad():
        assert deviation(deep(*x), network(*x)) < 1e-12
        assert deviation(concatenate([deep, large])(*x), (network(*x) + other(*x)) / 2) < 1e-12


def test_what_cannot_become_alike_is_refused():
    small, _, _ = typed(_resnet(2, 2, 1, 2), (3, 32, 32))
    large, _, _ = typed(_resnet(2, 2, 2, 2), (3, 32, 32))
    for like in (large, traced("vit")[0]):
        with pytest.raises(gs.SurgeryError, match="no repeat of a part brings the network closer to the deeper one at"):
            deepen_like(small, like)


def _blocks(block):
    return Network(
        lambda net, x: net.head(block(net, torch.relu(net.stem(x))).mean((2, 3))),
        stem=nn.Conv2d(3, 8, 3, padding=1),
        one=nn.Conv2d(8, 8, 3, padding=1),
        two=nn.Conv2d(8, 8, 1),
        flat=nn.Conv2d(8, 6, 1),
        norm=nn.BatchNorm2d(8),
        first=nn.ReLU(inplace=True),
        high=nn.Hardtanh(0.5, 1.0),
        head=nn.Linear(8, 3),
    )


TRICKY = {
    "in place first": lambda n, h: h * 2 + n.two(torch.relu(n.one(n.first(h * 2)))),
    "in place on the skip": lambda n, h: (g := n.one(h)) + n.two(n.first(g)),
    "one layer, two parts": lambda n, h: torch.relu(n.two(h) + n.two(n.one(h))),
    "a bound above zero": lambda n, h: h + n.high(n.one(h)),
    "padded with ones": lambda n, h: h + F.pad(n.flat(h), (0, 0, 0, 0, 1, 1), value=1.0),
    "flat at zero": lambda n, h: h + torch.relu(n.norm(n.one(h))),
    "squares": lambda n, h: h + n.one(h).square(),
    "a root": lambda n, h: h + n.one(h).abs().sqrt(),
    "times itself": lambda n, h: h + (g := n.one(h)) * g,
    "bicubic": lambda n, h: n.two(F.interpolate(h, scale_factor=2, mode="bicubic")),
    "divided by one": lambda _, h: F.avg_pool2d(h, 2, divisor_override=1),
}


@pytest.mark.parametrize("block", ["auto", "copy", "residual"])
@pytest.mark.parametrize("case", TRICKY)
def test_tricky_blocks_keep_their_outputs_and_can_learn(case, block):
    graph, x, network = typed(_blocks(TRICKY[case]), (3, 6, 6))
    names = [n.name for n in graph.module.graph.nodes if n.op == "call_function" and n.name != "relu"]
    for name in ["auto", *names]:
        try:
            deep = deepen(graph, name, block=block)
        except gs.SurgeryError:
            continue
        with torch.no_grad():
            expected = network(*x)
            assert deviation(deep(*x), expected) < 1e-12, name
        deep(*x).square().sum().backward()
        slopes = [
            p.grad.abs().max() for n, p in deep.module.named_parameters() if "_deeper" in n and p.grad is not None
        ]
        assert torch.stack(slopes).isfinite().all(), name
        assert max(slopes) > 0, name


BAD = {
    "unknown": ({"after": "layer9"}, r"layer9 is no node, module or stage of this model; did you mean layer"),
    "count": ({"count": 0}, r"count is 0, expected a whole number from 1"),
    "block": ({"block": "best"}, r"block is 'best'; choose from auto, copy"),
    "output": ({"after": "output"}, r"nothing can come behind the output"),
    "no layer before": ({"after": "x"}, r"there is no linear layer or convolution before x"),
    "nothing to repeat": ({"after": "fc", "block": "copy"}, r"nothing that ends at fc can be repeated"),
    "no activation": ({"after": "fc", "block": "layer"}, r"fc does not end in an activation that may be applied twice"),
    "no place": ({"after": []}, r"after is \[\]; name places, or auto alone"),
    "auto and another": ({"after": ["auto", "fc"]}, r"name places, or auto alone"),
    "examples": (
        {"after": "conv1", "block": "layer", "examples": [torch.zeros(2, 1, 3)]},
        r"the network does not take these examples",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused(case):
    options, message = BAD[case]
    graph, _ = traced("resnet18")
    with pytest.raises(gs.SurgeryError, match=message):
        deepen(graph, **options)


def test_a_network_without_a_place_says_so():
    graph, _, _ = typed(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), (4,))
    with pytest.raises(gs.SurgeryError, match="no part of this network can be repeated as the identity; name a place"):
        deepen(graph)
    assert deepen(graph, "0").lineage[-1]["places"] == {"0": "residual"}


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_a_block_of_products_with_parameters_is_repeated(drop):
    torch.manual_seed(0)
    graph, x = gs.trace(Products(drop).double().eval(), torch.randn(2, 5, 6).double()), [torch.randn(3, 5, 6).double()]
    assert [place.name for place in places(graph)] == ["blocks.1"]
    deep = deepen(graph)
    with torch.no_grad():
        assert deviation(deep(*x), graph(*x)) == 0
    assert_used(deep, x)
