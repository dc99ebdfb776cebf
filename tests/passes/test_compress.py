"""Compress: the outputs are those of the network with the removed reads masked."""

import pytest
import torch
import torch.nn.functional as F
from contracts import masked, random_choice
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from zoo import FEW, NAMES, example, randomize, traced

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.verify import deviation


@pytest.mark.parametrize("name", NAMES)
def test_compressed_equals_masked(name):
    graph, x = traced(name)
    kept = random_choice(graph)
    with torch.no_grad():
        small = compress(graph, kept)
        assert deviation(small(x), masked(graph, kept)(x)) < 1e-10
    sizes = {space.name: space.size for space in small.spaces}
    for space, indices in kept.items():
        assert sizes[space] == len(indices)


@pytest.mark.parametrize("name", NAMES)
def test_half_of_every_space_runs_in_both_modes_and_for_other_batches(name):
    graph, _ = traced(name)
    small = compress(graph, 0.5, importance="random")
    count = sum(p.numel() for p in small.module.parameters())
    assert count < 0.75 * sum(p.numel() for p in graph.module.parameters())
    small.module.train()
    small(example(name, 5)).square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in small.module.parameters())


def test_heads_are_cut_as_a_whole_and_head_sizes_keep_the_scale():
    graph, x = traced("vit")
    heads = [s for s in graph.spaces if s.outer and s.size == 4]
    sizes = [s for s in graph.spaces if not s.outer]
    assert len(heads) == 2
    assert {s.size for s in sizes} == {8}
    kept = {sizes[0].name: [0, 1, 5], heads[1].name: [1, 3]}
    with torch.no_grad():
        small = compress(graph, kept)
        assert small(x).shape == graph(x).shape
        attention = next(n for n in small.module.graph.nodes if n.target is F.scaled_dot_product_attention)
        assert attention.kwargs["scale"] == pytest.approx(8**-0.5)


def test_norms_that_mix_channels_are_named_and_close():
    graph, x = traced("vit")
    mixed = [s for s in graph.spaces if s.mixed]
    assert all("layer_norm" in reason for s in mixed for reason in s.mixed)
    with torch.no_grad():
        small = compress(graph, {s.name: range(s.size - 1) for s in mixed})
    assert deviation(small(x), graph(x)) < 0.5


@pytest.mark.parametrize("importance", ["l1", "l2", "bn", "random"])
def test_keeps_the_most_important(importance):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten()).double()
    with torch.no_grad():
        for vector in (model[0].weight, model[1].weight):
            vector.copy_(torch.rand_like(vector) * 0.01)
            vector[[1, 4]] += 5.0
    graph = gs.trace(model, torch.zeros(2, 3, 6, 6))
    small = compress(graph, {"0": 2}, importance=importance, seed=1)
    assert small.space("0").size == 2
    if importance != "random":
        assert torch.equal(small.module.get_submodule("0").weight, model[0].weight[[1, 4]])


def test_taylor_uses_gradients():
    graph, x = traced("paper/cnn")
    with pytest.raises(gs.SurgeryError, match="run a backward pass first"):
        compress(graph, 0.5, importance="taylor")
    graph(x).square().sum().backward()
    assert compress(graph, 0.5, importance="taylor").spaces[0].size == 4


def test_round_to_gives_multiples():
    graph, _ = traced("paper/resnet20?width=8")
    small = compress(graph, 0.4, round_to=4)
    assert all(space.size % 4 == 0 for space in small.spaces)


def test_does_not_touch_its_input():
    graph, _ = traced("resnet18")
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    small = compress(graph, 0.5)
    with torch.no_grad():
        for parameter in small.module.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.module.state_dict().items())


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_random_networks(seed):
    torch.manual_seed(seed)
    network = RandomNetwork(seed)
    randomize(network)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = gs.trace(network.double().eval(), x)
    kept = random_choice(graph, seed)
    with torch.no_grad():
        assert deviation(graph(x), network(x)) < 1e-12
        small = compress(graph, kept)
        assert deviation(small(x), masked(graph, kept)(x)) < 1e-10


@pytest.mark.parametrize("name", FEW)
def test_in_onnx_runtime(name, tmp_path):
    graph, _ = traced(name)
    small = compress(graph, 0.5)
    gs.export_onnx(small, tmp_path / "small.onnx")
    assert gs.check_onnx(small, tmp_path / "small.onnx").deviation < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "keep is 0, expected a share above 0"),
        ({"keep": 1.5}, r"keep is 1\.5, expected a share"),
        ({"keep": {"conv1": []}}, "conv1 would be empty"),
        ({"keep": {"conv1": [0, 99]}}, "conv1 has channels 0 to 63, got 99"),
        ({"keep": {"conv1": [0, 0]}}, "would keep a channel twice"),
        ({"keep": {"conv1": 0}}, "conv1 has 64 channels, cannot keep 0"),
        ({"keep": {"conv9": 4}}, "conv9 is not a space of this model; did you mean"),
        ({"importance": "best"}, "importance best is unknown; choose from l2"),
        ({"importance": "gate"}, "has no gate; run the gate pass first"),
        ({"keep": 0.99, "round_to": 64}, "0 channels removed"),
        ({"round_to": 0}, "round_to is 0"),
    ],
)
def test_refuses(options, message):
    graph, _ = traced("resnet18")
    with pytest.raises(gs.SurgeryError, match=message):
        compress(graph, **options)


def test_says_what_froze_everything():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(torch.fft.fft(self.a(x)).real)

    graph = gs.trace(Frozen(), torch.zeros(2, 4))
    with pytest.raises(gs.SurgeryError, match="no channel can be removed; frozen by fft_fft: no rule for fft_fft"):
        compress(graph, 0.5)


def test_sees_the_network_as_it_is_now():
    graph, x = traced("paper/cnn")
    assert graph.spaces
    graph.module.float()
    graph.module.train()
    graph(x.float())
    graph.module.eval()
    graph.module.double()
    with torch.no_grad():
        kept = random_choice(graph)
        assert deviation(compress(graph, kept)(x), masked(graph, kept)(x)) < 1e-10
