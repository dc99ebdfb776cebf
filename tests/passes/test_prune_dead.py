"""Prune dead: channels of zeros go, constants move into their readers, and the outputs stay."""

import pytest
import torch
import torch.nn.functional as F
from contracts import FLOAT32, Network, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from unusual_steps import UnusualNetwork, fill
from zoo import NAMES, traced

import graphsurgery as gs
from graphsurgery.network.outputs.naming import run
from graphsurgery.passes.gate import gate
from graphsurgery.passes.mask import mask
from graphsurgery.passes.prune_dead import prune_dead
from graphsurgery.recipes.contracts.subjects import holes
from graphsurgery.surgery.deviation import apart, deviation
from graphsurgery.surgery.masks.constants import constants
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable


def holed(graph, seed=0, rows=0.4, columns=0.2, density=0.6):
    """The network with random masks that empty some rows and columns of every weight."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, weight in maskable(graph).items():
        living = torch.rand(weight.shape, generator=generator) < density
        living[torch.rand(weight.shape[0], generator=generator) < rows] = False
        living[:, torch.rand(weight.shape[1], generator=generator) < columns] = False
        masks[name] = living
    return mask(graph, MaskSet(masks))


def sizes(graph):
    return {space.name: space.size for space in graph.spaces}


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_stay_the_same_without_dead_channels(name):
    graph, x = traced(name)
    full = holed(graph)
    small = prune_dead(full)
    with torch.no_grad():
        assert deviation(small(x), full(x)) < 1e-10
    record = small.lineage[-1]
    assert record["pass"] == "prune dead"
    left = sizes(small)
    # What is left with one channel inside a group is no space any more.
    assert record["sizes"] == {s.name: [s.size, left[s.name]] for s in graph.spaces if s.name in left}
    assert sum(sizes(small).values()) < 0.98 * sum(sizes(graph).values())


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0.02, 1))
@settings(max_examples=40, deadline=None)
def test_random_networks_keep_their_outputs(seed, rows, columns, density):
    graph, x, _ = typed(RandomNetwork(seed, steps=6), (3, 4, 4), seed=seed)
    full = holed(graph, seed, rows, columns, density)
    with torch.no_grad():
        found, expected = prune_dead(full)(*x), full(*x)
        assert float((found - expected).abs().max()) <= 1e-10 * max(1.0, float(expected.abs().max()))


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_channels_that_nothing_reads_go_from_random_networks(seed):
    graph, x, _ = typed(RandomNetwork(seed, steps=6), (3, 4, 4), seed=seed)
    full = mask(graph, holes(graph, seed))
    small = prune_dead(full)
    with torch.no_grad():
        found, expected = small(*x), full(*x)
    assert float((found - expected).abs().max()) <= 1e-10 * max(1.0, float(expected.abs().max()))
    left = small.lineage[-1]["sizes"]
    for space in graph.spaces:
        if space.name in left and space.outer and space.scalable and space.readers and not space.mixed:
            assert left[space.name][1] <= space.size - space.size // 4


def assert_constants(full, other):
    """What is called constant is so for other inputs."""
    known = constants(full)
    seen = {}

    class Watching(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            seen[n.name] = value.clone() if isinstance(value, torch.Tensor) else value
            return value

    with torch.no_grad():
        Watching(full.module, garbage_collect_values=False).run(*other)
    for name, varies in known.varies.items():
        if isinstance(varies, torch.Tensor) and seen[name].is_floating_point() and not varies.all():
            torch.testing.assert_close(seen[name][~varies], known.values[name][~varies], rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_what_is_called_constant_does_not_vary(seed):
    """By other inputs; and nothing varies where weights of 0 cut the network in two."""
    graph, x, _ = typed(RandomNetwork(seed, steps=6), (3, 4, 4), seed=seed)
    assert_constants(holed(graph, seed, 0.5, 0.3, 0.5), [100 * t[:2] for t in x])


WRITING = ["written in part", "written into zeros", "written tokens", "written by indices", "slice written"]


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_networks_that_write_over_parts_of_tensors(seed):
    network = UnusualNetwork(seed, 3, WRITING).double().eval()
    fill(network, seed)
    x = network.inputs(3, torch.Generator().manual_seed(seed))
    graph = gs.trace(network, [t[:2] for t in x], check=False)
    full = holed(graph, seed, 0.5, 0.3, 0.5)
    full.module.eval()
    assert_constants(full, network.inputs(2, torch.Generator().manual_seed(seed + 1)))
    with torch.no_grad():
        assert apart(run(prune_dead(full).module, x, 1), run(full.module, x, 1)) < 1e-10


@pytest.mark.parametrize("name", ["paper/resnet20?width=8", "paper/vgg11_bn?width=12", "paper/cnn", "mobilenet_v2"])
def test_at_other_resolutions_too(name):
    """What is constant at one resolution may not be so by chance: small maps are all border."""
    graph, x = traced(name)
    full = holed(graph)
    small = prune_dead(full)
    larger = F.interpolate(x, scale_factor=2.0) + 0.1
    with torch.no_grad():
        if name != "paper/vgg11_bn?width=12":
            assert deviation(small(larger), full(larger)) < 1e-10
        assert deviation(small(3 * x), full(3 * x)) < 1e-10


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 1)],
        [nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1)],
        [nn.Conv2d(3, 6, 1), nn.Sigmoid(), nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)],
        [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(inplace=True)],
    ],
    ids=["transposed", "averaged over zeros", "padded", "in place"],
)
def test_zeros_around_a_map_make_constants_vary(layers):
    graph, x, _ = typed(nn.Sequential(*layers, nn.Conv2d(4, 3, 1)), (3, 4, 4))
    full = holed(graph, 1, 0.5, 0.0, 0.8)
    small = prune_dead(full)
    larger = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        assert deviation(small(*x), full(*x)) < 1e-12
        assert deviation(small(larger), full(larger)) < 1e-12
    assert sum(sizes(small).values()) < sum(sizes(full).values())


def test_in_float32_and_onnx_runtime(tmp_path):
    graph, x = traced("paper/lenet5")
    graph.module.float()
    full = holed(graph)
    small = prune_dead(full)
    with torch.no_grad():
        assert deviation(small(x.float()), full(x.float())) < 1e-5
    reports = [gs.export_onnx(g, tmp_path / f"{i}.onnx") for i, g in enumerate((full, small))]
    assert gs.check_onnx(small, tmp_path / "1.onnx").holds
    assert reports[1].bytes < 0.6 * reports[0].bytes


def test_a_pruned_network_is_saved_and_loaded(tmp_path):
    graph, x = traced("paper/vgg11_bn?width=12")
    small = prune_dead(holed(graph))
    gs.save(small, tmp_path / "small.pt")
    with torch.no_grad():
        assert torch.equal(gs.load(tmp_path / "small.pt")(x), small(x))


def network(middle=None, padding=0, bias=True, readers=1):
    """Two convolutions, of which the first has two dead channels: one emits 0, the other something else."""
    layers = {"first": nn.Conv2d(2, 5, 1), "second": nn.Conv2d(5, 3, 3, padding=padding, bias=bias)}
    if readers > 1:
        layers["third"] = nn.Conv2d(5, 3, 3, padding=padding)
    around = middle or torch.relu

    def forward(n, x):
        h = around(n.first(x))
        y = n.second(h)
        return y + n.third(h) if readers > 1 else y

    graph, x, _ = typed(Network(forward, **layers), (2, 5, 5))
    with torch.no_grad():
        graph.module.first.weight[[1, 3, 4]] = 0
        graph.module.first.bias.copy_(torch.tensor([0.1, 0.5, 0.2, -0.3, 0.7]))
    return graph, x


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, 2),
        ({"bias": False}, 2),
        ({"padding": 1}, 3),
        ({"padding": 1, "readers": 2}, 3),
        ({"readers": 2}, 2),
        ({"middle": torch.sigmoid}, 2),
        ({"middle": torch.sigmoid, "padding": 1}, 3),
    ],
)
def test_constants_move_into_biases_or_onto_one_channel(options, left):
    graph, x = network(**options)
    small = prune_dead(graph)
    with torch.no_grad():
        assert deviation(small(*x), graph(*x)) < 1e-12
    assert sizes(small) == {"first": left}
    assert (small.module.second.bias is not None) or (options.get("bias", True) is False and left == 3)


def test_a_layer_without_a_bias_gets_one():
    graph, x = network(bias=False)
    assert graph.module.second.bias is None
    small = prune_dead(graph)
    assert small.module.second.bias is not None
    assert graph.module.second.bias is None
    with torch.no_grad():
        assert deviation(small(*x), graph(*x)) < 1e-12


class PositionNet(nn.Module):
    """Adds what a small network makes of a table of positions, as relative position biases are made."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 6), nn.Linear(6, 4)
        self.read = nn.Linear(4, 3)
        self.register_buffer("table", torch.randn(9, 2))

    def forward(self, x):
        return self.read(torch.relu(x + self.outer(torch.relu(self.inner(self.table)))))


def test_what_differs_from_place_to_place_is_no_bias():
    """All channels of the table's network are constant, and each is another number at every place."""
    torch.manual_seed(0)
    graph = gs.trace(PositionNet().double().eval(), torch.randn(2, 9, 4, dtype=torch.float64))
    masked = mask(graph, holes(graph, 0))
    small, x = prune_dead(masked), torch.randn(3, 9, 4, dtype=torch.float64)
    assert deviation(small.module(x), masked.module(x)) <= 1e-10
    assert 1 < sizes(small)["inner"] < sizes(graph)["inner"] == 6


def test_what_nobody_reads_goes_and_takes_along_what_only_it_reads():
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 6), "c": nn.Linear(6, 2)}
    graph, x, _ = typed(Network(lambda n, x: n.c(torch.tanh(n.b(torch.tanh(n.a(x))))), **layers), (4,))
    with torch.no_grad():
        graph.module.c.weight[:, 2:] = 0
        graph.module.b.weight[:2, 3:] = 0
    small = prune_dead(graph)
    assert sizes(small) == {"a": 3, "b": 2}
    with torch.no_grad():
        assert deviation(small(*x), graph(*x)) < 1e-12


def test_a_layer_that_is_used_twice_keeps_its_constants():
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 4)}
    graph, x, _ = typed(Network(lambda n, x: n.b(torch.sigmoid(n.a(x))) + n.b(torch.tanh(n.a(x))), **layers), (4,))
    with torch.no_grad():
        graph.module.a.weight[[1, 2, 4]] = 0
    small = prune_dead(graph)
    with torch.no_grad():
        assert deviation(small(*x), graph(*x)) < 1e-12
    assert sizes(small) == {"a": 6}


def test_a_space_keeps_a_channel_and_mixed_spaces_stay():
    graph, x, _ = typed(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (4,))
    with torch.no_grad():
        graph.module.get_submodule("0").weight.zero_()
    small = prune_dead(graph)
    assert sizes(small) == {"0": 1}
    with torch.no_grad():
        assert deviation(small(*x), graph(*x)) < 1e-12
    graph, x, _ = typed(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)), (4,))
    with torch.no_grad():
        graph.module.get_submodule("0").weight[:3] = 0
    assert sizes(prune_dead(graph)) == {"0": 6}


def test_a_network_that_casts_is_measured_in_its_own_precision():
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 2), "c": nn.Linear(2, 2)}
    graph = gs.trace(Network(lambda n, x: n.c(n.b(torch.sigmoid(n.a(x))).float()), **layers), torch.zeros(2, 4))
    with torch.no_grad():
        graph.module.a.weight[[1, 2, 4]] = 0
    small, x = prune_dead(graph), torch.randn(5, 4)
    assert sizes(small) == {"a": 3, "b": 2}
    with torch.no_grad():
        assert deviation(small(x), graph(x)) < FLOAT32


def test_without_zeros_nothing_goes():
    graph, x = traced("paper/lenet5")
    small = prune_dead(graph)
    assert sizes(small) == sizes(graph)
    assert small.lineage[-1]["constants"] == 0
    with torch.no_grad():
        assert torch.equal(small(x), graph(x))


def test_a_gated_network_is_refused():
    graph, _ = traced("paper/lenet5")
    with pytest.raises(gs.SurgeryError, match=r"prune_dead: this network has gates; fold or compress it first"):
        prune_dead(gate(graph))


VECTORS = {
    "a vector": (nn.Linear(6, 5), lambda given: given),
    "rows": (nn.Linear(6, 5), lambda given: given[None].expand(2, -1)),
    "a signal without a batch": (nn.Conv1d(6, 5, 1), lambda given: given[:, None]),
}


@pytest.mark.parametrize("case", VECTORS)
def test_layers_that_read_constants_of_any_rank_take_them_into_their_bias(case):
    """As weights that are generated: constants through two layers."""
    layer, laid = VECTORS[case]
    network = Network(
        lambda net, x: net.head(x) + net.second(laid(net.first(net.table))).sum(),
        {"table": torch.zeros(3)},
        first=nn.Linear(3, 6),
        second=layer,
        head=nn.Linear(4, 5),
    )
    graph, x, _ = typed(network, (4,))
    small = prune_dead(graph)
    assert small.tensors()["second.weight"].shape[1] == 1
    with torch.no_grad():
        assert deviation(small(*x), network(*x)) < 1e-12


@pytest.mark.parametrize("again", [False, True])
def test_what_is_written_over_part_of_a_tensor_counts(again):
    """A channel of 0 into which something is written, by index, is not dead; what was read before saw other numbers."""

    def forward(net, x):
        tokens = net.a(x).flatten(2).transpose(1, 2).clone()
        before = net.b(tokens[:, 1:]) if again else 0
        tokens[:, ::2] = net.c(tokens[:, 1::2])
        return net.b(tokens).mean(1) + (before.mean(1) if again else 0)

    network = Network(forward, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 5), c=nn.Linear(8, 8))
    graph, x, _ = typed(network, (3, 4, 4))
    for name, parameter in graph.module.named_parameters():
        rows = {"a.weight": [0, 1, 2, 3], "a.bias": [0, 1, 4], "c.weight": [0, 2, 5], "c.bias": [0, 2, 5]}
        parameter.data[rows.get(name, [])] = 0
    small = prune_dead(graph)
    assert sizes(small) == {"a": 7}
    with torch.no_grad():
        assert deviation(small(*x), graph(*x)) < 1e-12
