"""Concatenate: the outputs are the mean of the teachers' outputs."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_direct_sum, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import INDEXED, SHUFFLES, STEPS, RandomNetwork
from torch import nn
from zoo import NAMES, SHALLOW, example, model, randomize, traced

import graphsurgery as gs
from graphsurgery.models import build
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.surgery.deviation import deviation


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_mean(name):
    (a, x), (b, _) = traced(name, 0), traced(name, 1)
    with torch.no_grad():
        assert deviation(concatenate([a, b])(x), (a(x) + b(x)) / 2) < 1e-12


@pytest.mark.parametrize("name", ["paper/resnet20?width=8", "mobilenet_v3", "vit"])
def test_three_teachers(name):
    graphs = [traced(name, seed)[0] for seed in range(3)]
    x = example(name, 3)
    with torch.no_grad():
        mean = torch.stack([g(x) for g in graphs]).mean(0)
        assert deviation(concatenate(graphs)(x), mean) < 1e-12


@pytest.mark.parametrize("name", ["paper/cnn", "paper/resnet20?width=8", "mobilenet_v2", "densenet", "vit"])
def test_unlike_widths(name):
    (a, x), (b, _) = traced(name, 0), traced(name, 1)
    b = compress(b, 0.5)
    with torch.no_grad():
        big = concatenate([a, b])
        assert deviation(big(x), (a(x) + b(x)) / 2) < 1e-12
        bigger = concatenate([b, big])
        assert deviation(bigger(x), (b(x) + big(x)) / 2) < 1e-12


def test_all_four_vectors_of_a_batch_norm_are_carried():
    (a, _), (b, _) = traced("paper/cnn", 0), traced("paper/cnn", 1)
    big = concatenate([a, b])
    for name in ("weight", "bias", "running_mean", "running_var"):
        path = next(n for n, m in a.module.named_modules() if isinstance(m, nn.BatchNorm2d))
        parts = [getattr(g.module.get_submodule(path), name) for g in (a, b)]
        assert torch.equal(getattr(big.module.get_submodule(path), name), torch.cat(parts))


def test_blocks_are_diagonal_and_trainable():
    (a, _), (b, _) = traced("paper/mlp", 0), traced("paper/mlp", 1)
    graphs = [gs.trace(m, torch.zeros(2, 3, dtype=torch.float64)) for m in (_mlp(0), _mlp(1))]
    weight = concatenate(graphs).module.get_submodule("2").weight
    assert torch.equal(weight[:5, :4], graphs[0].module.get_submodule("2").weight)
    assert not weight[:5, 4:].any()
    assert weight.requires_grad
    assert concatenate([a, b]).spaces[0].size == 200


def _mlp(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()


def test_shared_weights_stay_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return self.head(torch.relu(self.shared(torch.relu(self.shared(x)))))

    graphs = [gs.trace(Tied().double(), torch.zeros(2, 3, dtype=torch.float64)) for _ in range(2)]
    x = torch.randn(4, 3, dtype=torch.float64)
    big = concatenate(graphs)
    assert deviation(big(x), (graphs[0](x) + graphs[1](x)) / 2) < 1e-12
    assert len(list(big.module.parameters())) == 6


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_random_networks(seed):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    graphs = []
    for draw in range(seed, seed + 2 + seed % 2):
        torch.manual_seed(draw)
        network = RandomNetwork(seed, kinds=[*STEPS, *SHUFFLES, *INDEXED])
        randomize(network)
        graphs.append(gs.trace(network.double().eval(), x, check=not graphs))  # the others have other numbers
    with torch.no_grad():
        assert deviation(concatenate(graphs)(x), sum(graph(x) for graph in graphs) / len(graphs)) < 1e-12


@pytest.mark.parametrize("name", SHALLOW)
def test_in_onnx_runtime(name, tmp_path):
    (a, _), (b, _) = traced(name, 0), traced(name, 1)
    big = concatenate([a, b])
    gs.export_onnx(big, tmp_path / "big.onnx")
    assert gs.check_onnx(big, tmp_path / "big.onnx").deviation <= 1e-4


def test_names_the_first_node_that_differs():
    graphs = [gs.trace(build(s), torch.zeros(2, 1, 28, 28)) for s in ("paper/lenet5", "paper/cnn")]
    with pytest.raises(gs.SurgeryError, match=r"parents 1 and 2 have different topologies: .* is Conv2d"):
        concatenate(graphs)


def test_refuses_other_classes_and_inputs():
    graphs = [gs.trace(build(f"paper/cnn?classes={n}"), torch.zeros(2, 1, 8, 8)) for n in (10, 12)]
    with pytest.raises(gs.SurgeryError, match=r"10 and 12 indices .* parents must agree in input shape and classes"):
        concatenate(graphs)
    graphs = [gs.trace(build("paper/cnn"), torch.zeros(2, 1, n, n)) for n in (8, 16)]
    with pytest.raises(gs.SurgeryError, match="inputs of different shapes"):
        concatenate(graphs)
    with pytest.raises(gs.SurgeryError, match="at least two networks"):
        concatenate(graphs[:1])


def test_the_model_is_untouched():
    network = model("resnet18")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    graph = gs.trace(network, example("resnet18"))
    concatenate([graph, graph])
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class Normalized(nn.Module):
    def __init__(self, width, dim=1):
        super().__init__()
        self.first, self.second, self.dim = nn.Conv2d(3, width, 1), nn.Conv2d(width, 4, 1, bias=False), dim

    def forward(self, x):
        return self.second(F.normalize(self.first(x), dim=self.dim))


def test_each_network_is_divided_by_its_own_norm():
    torch.manual_seed(0)
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    narrow, wide = (gs.trace(Normalized(width).double(), x) for width in (4, 6))
    both = concatenate([narrow, wide])
    assert deviation(both(x), (narrow(x) + wide(x)) / 2) < 1e-14
    three = concatenate([wide, both])
    assert deviation(three(x), (wide(x) + both(x)) / 2) < 1e-14
    assert deviation(compress(three, {"first": [0, 1, 2, 3, 4, 5, *range(10, 16)]})(x), wide(x) * 3 / 4) < 1e-14


def test_a_norm_over_channels_and_positions_is_computed_for_each_network():
    torch.manual_seed(0)
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    graphs = [gs.trace(Normalized(width, (1, 2)).double(), x) for width in (4, 6)]
    assert_direct_sum(graphs, [x], apart="normalize")


class WholeNorms(nn.Module):
    """Norms over all channels and positions, one of them on a concatenation of two spaces, and one used twice."""

    def __init__(self, width, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(2, width, 3), nn.Conv2d(2, 2 * width, 3)
        self.both, self.last = nn.GroupNorm(1, 3 * width), nn.GroupNorm(1, width)
        self.join = nn.Conv2d(3 * width, width, 1)
        self.head = nn.Linear(width, 3)
        for norm in (self.both, self.last):
            nn.init.normal_(norm.weight, 1)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = self.both(torch.cat([self.first(x), self.second(x)], 1)).relu()
        x = self.last(self.join(x)).relu()
        x = F.group_norm(self.last(x), 1, eps=1e-3).relu()
        return self.head(x.mean((2, 3)))


def test_norms_over_all_channels_keep_the_statistics_of_each_network(tmp_path):
    graphs = [gs.trace(WholeNorms(w, s).double(), torch.zeros(2, 2, 8, 8)) for s, w in enumerate((3, 4, 3))]
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = [graph(x) for graph in graphs]
        two = concatenate(graphs[:2])
        assert deviation(two(x), (expected[0] + expected[1]) / 2) < 1e-12
        four = concatenate([two, two])
        assert deviation(four(x), two(x)) < 1e-12
        three = concatenate(graphs)
        assert deviation(three(x), sum(expected) / 3) < 1e-12
        gs.save(three, tmp_path / "m.pt")
        assert deviation(gs.load(tmp_path / "m.pt")(x), three(x)) == 0
        small = compress(two, 0.5)
        assert small(x).shape == (2, 3)
    assert len(two.spaces) == len(graphs[0].spaces)


MEANS = {
    "a sum": lambda y: 2 * y - y.flip(-1) / 3 + 1,
    "its square": lambda y: y * y,
    "its square as a method": lambda y: y.mul(y),
    "a product of two numbers": lambda y: y[0, 0, 0, 0] * y[0, 0, 0, 1],
    "one over it": lambda y: 1 / (y + 5),
    "what is common over it": lambda y: torch.div(torch.ones_like(y), y + 5),
    "a rounded quotient": lambda y: torch.div(y, 0.1, rounding_mode="floor"),
    "a norm of windows": lambda y: F.lp_pool2d(y, 2, 2),
    "a largest of windows": lambda y: F.max_pool2d(y, 2),
    "whole numbers": lambda y: (5 * y).long().double(),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_of_what_bends_it(name):
    function = MEANS[name]
    network = Network(lambda n, x: function(n.b(torch.relu(n.a(x)))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    graphs = [typed(network, (3, 4, 4), seed=seed)[0] for seed in (0, 1)]
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        assert deviation(concatenate(graphs)(x), (graphs[0](x) + graphs[1](x)) / 2) < 1e-12
