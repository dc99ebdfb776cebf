"""Channel shuffles: taken out where weights can take the order of channels, else kept; always the same outputs."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from contracts import Network, assert_contracts, assert_permutes, assert_same_in_both_modes, typed
from random_networks import SHUFFLES, STEPS, RandomNetwork
from torch import nn
from torchvision.models.shufflenetv2 import ShuffleNetV2, channel_shuffle

import graphsurgery as gs
from graphsurgery.network.aliasing import is_functional
from graphsurgery.onnx.exporting import check_onnx, export_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.recipes.contracts.subjects import skeleton
from graphsurgery.surgery.deviation import deviation
from graphsurgery.tracing.shuffles.removal import unshuffle


def targets(graph):
    """What the graph calls."""
    return [str(getattr(node.target, "__name__", node.target)) for node in graph.module.graph.nodes]


def kept(graph):
    """How many shuffles are in the graph, and how many look-ups by index."""
    return targets(graph).count("transpose"), sum(name.startswith("channel_order") for name in targets(graph))


def check(network, *, channels=8, sizes=((3, 8, 8), (2, 6, 10))):
    """Trace; compare in both modes, for other batches and resolutions; the order of channels means nothing."""
    graph, x, network = typed(network, (channels, 8, 8))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for batch, *positions in sizes:
            y = torch.randn(batch, channels, *positions, generator=generator, dtype=torch.float64)
            assert deviation(graph(y), network(y)) < 1e-12
        assert_permutes(graph, x)
        graph.module.train()
        assert deviation(graph(y), network.train()(y)) < 1e-12
        graph.module.eval()
        assert deviation(graph(y), network.eval()(y)) < 1e-12
    return graph


def grouped(x, groups):
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def odd_and_even(x):
    batch, channels, height, width = x.size()
    x = (
        x.reshape(batch * channels // 2, 2, height * width)
        .permute(1, 0, 2)
        .reshape(2, -1, channels // 2, height, width)
    )
    return torch.cat([x[0], x[1]], 1)


SPELLINGS = {
    "view": lambda x: channel_shuffle(x, 2),
    "permute": lambda x: grouped(x, 2).permute(0, 2, 1, 3, 4).flatten(1, 2),
    "swapaxes": lambda x: x.unflatten(1, (2, -1)).swapaxes(1, 2).reshape(x.shape),
    "positions in one axis": lambda x: grouped(x.flatten(2), 2).transpose(1, 2).reshape(x.size()),
    "function": lambda x: F.channel_shuffle(x, 2),
    "module": nn.ChannelShuffle(2),
    "odd and even": odd_and_even,
    "steps": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "stack": lambda x: torch.stack(x.chunk(2, 1), 2).flatten(1, 2),
    "list": lambda x: x[:, [7, 2, 0, 4, 6, 1, 5, 3]],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("reader", ["conv", "halves", "norm", "output"])
def test_spellings(spelling, reader):
    """However a shuffle is written, after a dense layer nothing is left of it."""

    def forward(net, x):
        y = net.shuffle(torch.relu(net.norm(net.stem(x))))
        if reader == "halves":
            first, second = y.chunk(2, 1)
            return net.one(first) + net.other(second)
        return y if reader == "output" else net.last(net.after(y) if reader == "norm" else y)

    shuffle = SPELLINGS[spelling]
    layers = {
        "stem": nn.Conv2d(8, 8, 1), "norm": nn.BatchNorm2d(8), "after": nn.BatchNorm2d(8), "last": nn.Conv2d(8, 5, 1),
        "one": nn.Conv2d(4, 5, 1), "other": nn.Conv2d(4, 5, 1),
    }  # fmt: skip
    network = Network(forward, **layers)
    network.shuffle = shuffle
    graph = check(network)
    assert kept(graph) == (0, 0)
    assert not set(targets(graph)) & {"ChannelShuffle", "channel_shuffle", "stack", "permute", "reshape", "view"}
    assert graph.frozen == ()
    assert [s.size for s in graph.spaces] == {"halves": [4, 4], "output": []}.get(reader, [8])


def test_halves_of_a_shuffle_are_halves_of_both_inputs():
    """`chunk(shuffle(cat(a, b)), 2)`: the first half of each, and the second half of each."""

    def forward(net, x):
        first, second = channel_shuffle(torch.cat([net.a(x), net.b(x)], 1), 2).chunk(2, 1)
        return net.read(first) + net.other(second)

    layers = {name: nn.Conv2d(8, 6, 1) for name in ("a", "b", "read", "other")}
    layers["read"], layers["other"] = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
    graph = check(Network(forward, **layers))
    assert [(s.name, s.size) for s in graph.spaces] == [("a", 3), ("a:2", 3), ("b", 3), ("b:2", 3)]
    assert [s.readers for s in graph.spaces] == [("read",), ("other",), ("read",), ("other",)]


def small_shufflenet(**options):
    return ShuffleNetV2([3, 5, 2], [8, 24, 52, 64, 40], num_classes=10, **options)


def test_shufflenet_is_free():
    graph = assert_contracts(small_shufflenet(), (3, 48, 48))
    assert kept(graph) == (0, 0)
    assert graph.frozen == ()
    free = {name for name, _, _ in (use for uses in graph.uses.values() for use in uses)}
    assert free >= {name for name, tensor in graph.module.named_parameters() if name != "fc.bias"}
    half = compress(graph, 0.5)
    sizes = [p.numel() for p in graph.module.parameters()]
    assert sum(p.numel() for p in half.module.parameters()) < 0.35 * sum(sizes)
    x = torch.randn(3, 3, 64, 40, dtype=torch.float64)
    assert half(x).shape == (3, 10)


def test_quantizable_shufflenet_is_as_free():
    plain = gs.trace(torchvision.models.shufflenet_v2_x0_5(weights=None), torch.randn(2, 3, 32, 32))
    quantizable = torchvision.models.quantization.shufflenet_v2_x0_5(weights=None, quantize=False)
    graph = gs.trace(quantizable, torch.randn(2, 3, 32, 32))
    assert [(s.name, s.size) for s in graph.spaces] == [(s.name, s.size) for s in plain.spaces]
    assert graph.frozen == ()


def test_shufflenet_follows_the_model_in_both_modes():
    graph, x, network = typed(small_shufflenet(), (3, 96, 96))
    other = torch.randn(5, 3, 128, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        assert deviation(graph(*x), network(*x)) < 1e-12
        graph.module.train()
        assert deviation(graph(other), network.train()(other)) < 1e-12
        graph.module.eval()
        assert deviation(graph(*x), network.eval()(*x)) < 1e-12


def test_names_stay_and_values_move():
    """The parameters are those of the model in another order, and the model itself is left alone."""
    network = small_shufflenet()
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.uniform_(-1, 1, generator=torch.Generator().manual_seed(tensor.numel()))
    before = copy.deepcopy(network.state_dict())
    found = gs.trace(network, torch.randn(2, 3, 32, 32)).module.state_dict()
    assert found.keys() == before.keys()
    moved = []
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].flatten().sort().values, tensor.flatten().sort().values)
        moved.append(not torch.equal(found[name], tensor))
    assert any(moved)


class GroupedUnit(nn.Module):
    """The unit of ShuffleNet v1: grouped convolutions with a shuffle between them, and a shortcut."""

    def __init__(self, channels, groups, dense_first):
        super().__init__()
        self.groups = groups
        self.reduce = nn.Conv2d(channels, channels // 2, 1, groups=1 if dense_first else groups)
        self.norm = nn.BatchNorm2d(channels // 2)
        self.depthwise = nn.Conv2d(channels // 2, channels // 2, 3, padding=1, groups=channels // 2)
        self.expand = nn.Conv2d(channels // 2, channels, 1, groups=groups)

    def forward(self, x):
        y = channel_shuffle(torch.relu(self.norm(self.reduce(x))), self.groups)
        return torch.relu(x + self.expand(self.depthwise(y)))


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("dense_first", [True, False])
def test_grouped_convolutions(groups, dense_first):
    """A dense layer writes the order that the groups read; between two grouped ones the shuffle stays, with types."""
    channels = 8 * groups**2
    unit = GroupedUnit(channels, groups, dense_first)
    graph = check(Network(lambda net, x: net.unit(x), unit=unit), channels=channels)
    assert kept(graph) == (0 if dense_first else 1, 0)
    assert graph.frozen == ()
    free = {name for uses in graph.uses.values() for name, _, _ in uses}
    assert free >= {"unit.reduce.weight", "unit.norm.weight", "unit.depthwise.weight", "unit.expand.weight"}


def test_groups_of_whole_runs_are_read_as_they_are():
    """A grouped convolution reads `cat(b, a)` as `cat(a, b)`, with its groups and their outputs in another order."""

    def forward(net, x):
        y = channel_shuffle(channel_shuffle(net.a(x), 2)[:, [3, 1, 2, 0, 7, 5, 4, 6]], 4)[:, [0, 4, 2, 6, 1, 5, 3, 7]]
        return net.last(net.norm(net.groups(y)))

    network = Network(
        forward,
        a=nn.Conv2d(8, 8, 1, groups=8),
        groups=nn.Conv2d(8, 12, 1, groups=4),
        norm=nn.GroupNorm(4, 12),
        last=nn.Conv2d(12, 3, 1),
    )
    check(network)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("shuffled_skip", [False, True])
def test_sums_of_shuffled_and_unshuffled(swapped, shuffled_skip):
    """The dense layer of the branch writes what the other operand has."""

    def forward(net, x):
        skip = torch.relu(net.stem(x))
        branch = net.norm(net.branch(skip))
        if shuffled_skip:
            skip = channel_shuffle(skip, 2)
        else:
            branch = channel_shuffle(branch, 2)
        return net.last(torch.relu(branch + skip if swapped else skip + branch))

    layers = {"stem": nn.Conv2d(8, 8, 1), "branch": nn.Conv2d(8, 8, 3, padding=1), "norm": nn.BatchNorm2d(8)}
    graph = check(Network(forward, **layers, last=nn.Conv2d(8, 3, 1)))
    assert kept(graph) == (0, 0)
    assert [s.size for s in graph.spaces] == [8]


def test_sum_of_one_tensor_in_two_orders():
    """No weights can be moved where a tensor meets itself in another order: the shuffle stays."""
    network = Network(lambda net, x: net.last(net.norm(net.stem(x)) + net.norm(channel_shuffle(net.stem(x), 2))))
    network.stem, network.norm, network.last = nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8), nn.Conv2d(8, 3, 1)
    assert kept(check(network)) == (1, 0)


def test_shuffled_inputs_and_outputs_keep_their_order():
    """A shuffle of what no weights write is kept; two of them, one after the other, are one look-up."""
    graph = check(Network(lambda _, x: torch.tanh(channel_shuffle(x, 4))))
    assert kept(graph) == (1, 0)

    def twice(net, x):
        return torch.relu(channel_shuffle(torch.relu(channel_shuffle(net.norm(x), 3)), 3))

    graph = check(Network(twice, norm=nn.BatchNorm2d(24)), channels=24)
    assert kept(graph) == (0, 1)


def looking_up():
    def forward(net, x):
        y = channel_shuffle(channel_shuffle(net.groups(x), 3), 3)
        return net.last(net.mixing(y).mean((2, 3)))

    return Network(
        forward,
        groups=nn.Conv2d(8, 24, 1, groups=2),
        mixing=nn.Conv2d(24, 24, 1, groups=12),
        last=nn.Linear(24, 5),
    )


def test_look_ups_that_stay_read_channels_in_order(tmp_path):
    graph = check(looking_up())
    assert kept(graph) == (0, 1)
    assert not graph.frozen
    gs.save(graph, tmp_path / "m.pt")
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    assert torch.equal(gs.load(tmp_path / "m.pt")(x), graph(x))
    graph.module.float()
    export_onnx(graph, tmp_path / "m.onnx")
    assert check_onnx(graph, tmp_path / "m.onnx", batches=(1, 3)).holds


def test_indices_of_a_network_without_values_have_values():
    network = looking_up()
    graph = gs.trace(skeleton(network), torch.zeros(2, 8, 8, 8))
    expected = dict(gs.trace(network, torch.zeros(2, 8, 8, 8)).module.named_buffers())
    found = dict(graph.module.named_buffers())
    assert torch.equal(found["channel_order_0"], expected["channel_order_0"])


OPERATORS = {
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "batch norm": nn.BatchNorm2d(8),
    "instance norm": nn.InstanceNorm2d(8, affine=True),
    "layer norm over positions": nn.LayerNorm((8, 8)),
    "linear over positions": nn.Linear(8, 8),
    "slopes": nn.PReLU(8),
    "one slope": nn.PReLU(),
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "two for each": nn.Conv2d(8, 16, 3, padding=1, groups=8),
    "convolution": nn.Conv2d(8, 8, 3, padding=1),
    "transposed convolution": nn.ConvTranspose2d(8, 8, 1),
    "grouped transposed convolution": nn.ConvTranspose2d(8, 8, 1, groups=2),
    "group norm": nn.GroupNorm(2, 8),
    "layer norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2),
    "pooling": nn.AvgPool2d(3, 1, 1),
    "resizing": nn.Upsample(scale_factor=2),
    "padding": lambda x: F.pad(x, (1, 1, 2, 0)),
    "more channels": lambda x: F.pad(x, (0, 0, 0, 0, 0, 4)),
    "softmax": nn.Softmax(1),
    "excitation": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True).expand_as(x)),
    "attention to positions": lambda x: x * x.amax(1, keepdim=True),
    "sum over channels": lambda x: x - x.sum(1, keepdim=True),
    "running sum": lambda x: x.cumsum(1),
    "flat positions": lambda x: torch.tanh(x.flatten(2)).unflatten(2, x.shape[2:]),
    "single positions": lambda x: torch.tanh(x.mean(2).unsqueeze(-1)).squeeze(-1).unsqueeze(2).expand_as(x),
    "constants": lambda x: 2 * torch.clamp(x, -1, 1) + 1,
}
ORDERED = ("grouped transposed convolution", "group norm", "layer norm", "running sum", "more channels")


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_between_shuffle_and_reader(operator):
    """The same outputs; and where the operator takes any order of channels, no look-up."""

    def forward(net, x):
        y = net.between(channel_shuffle(torch.cat([net.a(x), net.b(x)], 1), 2))
        half = y.chunk(2, 1)
        return net.read(half[0]) * net.read(half[1])

    between = OPERATORS[operator]
    written = between(torch.randn(2, 8, 8, 8)).shape[1]
    network = Network(forward, a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 4, 1), read=nn.Conv2d(written // 2, 3, 1))
    network.between = copy.deepcopy(between)
    fixed = operator in ("layer norm over positions", "linear over positions")
    graph = check(network, sizes=((3, 8, 8), (5, 8, 8) if fixed else (2, 6, 10)))
    assert (kept(graph) == (0, 0)) == (operator not in ORDERED)


def test_parameters_of_a_channel_follow():
    """A scale for each channel, as a parameter of the network, is permuted; a shared one with two orders is not."""

    def forward(net, x):
        y = net.stem(x)
        once = net.read(channel_shuffle(y, 2)[:, :4]) + net.read(y[:, 4:])
        return net.last(once), net.scale * channel_shuffle(net.stem(x), 2) * net.scale

    scale = {"scale": torch.rand(8, 1, 1)}
    layers = {"stem": nn.Conv2d(8, 8, 1), "read": nn.Conv2d(4, 4, 1), "last": nn.Conv2d(4, 4, 1)}
    check(Network(forward, scale, **layers))


def test_shared_layers_in_two_orders():
    """A layer that reads two tensors in different orders gets both in the old order; in one order, it is permuted."""

    def torn(net, x):
        y = channel_shuffle(net.stem(x), 2)
        return net.last(net.norm(net.shared(net.shared(y))))

    def agreed(net, x):
        y = torch.cat([net.a(x), net.b(x)], 1)
        return net.shared(net.norm(channel_shuffle(y, 2))) + net.shared(net.norm(channel_shuffle(torch.relu(y), 2)))

    layers = {"shared": nn.Conv2d(8, 8, 1), "norm": nn.BatchNorm2d(8)}
    check(Network(torn, stem=nn.Conv2d(8, 8, 1, groups=2), last=nn.Conv2d(8, 3, 1), **copy.deepcopy(layers)))
    graph = check(Network(agreed, a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 4, 1), **layers))
    assert kept(graph) == (0, 0)


def excite_by_convolutions(net, y):
    return y * torch.sigmoid(net.excite(torch.relu(net.squeeze(F.adaptive_avg_pool2d(y, 1)))))


def excite_by_linear_layers(net, y):
    batch, channels, _, _ = y.size()
    squeezed = torch.relu(net.narrow(F.adaptive_avg_pool2d(y, 1).view(batch, channels)))
    return y * torch.sigmoid(net.wide(squeezed)).view(batch, channels, 1, 1).expand_as(y)


@pytest.mark.parametrize("excite", [excite_by_convolutions, excite_by_linear_layers])
def test_excitation_by_dense_layers_takes_the_order(excite):
    """The scales of the channels are written in the order that the shuffled channels have."""

    def forward(net, x):
        return net.last(excite(net, channel_shuffle(torch.cat([net.a(x), net.b(x)], 1), 2)))

    layers = {"a": nn.Conv2d(8, 4, 1), "b": nn.Conv2d(8, 4, 1), "last": nn.Conv2d(8, 3, 1)}
    if excite is excite_by_convolutions:
        layers |= {"squeeze": nn.Conv2d(8, 3, 1), "excite": nn.Conv2d(3, 8, 1)}
    else:
        layers |= {"narrow": nn.Linear(8, 3), "wide": nn.Linear(3, 8)}
    graph = check(Network(forward, **layers))
    assert kept(graph) == (0, 0)
    assert [s.size for s in graph.spaces] == [4, 4, 3]


@pytest.mark.parametrize("flat", [lambda x: x.flatten(1), lambda x: x.reshape(x.shape[0], -1), nn.Flatten()])
def test_flattened_for_a_linear_layer(flat):
    """Each channel is a block of features; without a linear layer the order is restored before, for any resolution."""

    def classified(net, x):
        return net.head(torch.relu(net.flat(F.max_pool2d(channel_shuffle(torch.cat([net.a(x), net.b(x)], 1), 2), 4))))

    def embedded(net, x):
        return torch.relu(net.flat(F.max_pool2d(channel_shuffle(torch.cat([net.a(x), net.b(x)], 1), 2), 8)))

    layers = {"a": nn.Conv2d(8, 4, 1), "b": nn.Conv2d(8, 4, 1)}
    network = Network(classified, head=nn.Linear(32, 3), **layers)
    network.flat = flat
    graph = check(network, sizes=((3, 8, 8), (5, 8, 8)))
    assert kept(graph) == (0, 0)
    assert [s.size for s in graph.spaces] == [4, 4]
    network = Network(embedded, **layers)
    network.flat = flat
    check(network, sizes=((3, 8, 8), (2, 16, 24)))


@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout(), nn.Hardtanh(inplace=True)])
def test_memory_that_is_written_in_place(between):
    """A concatenation copies: what is written into a part of it does not reach the tensor that the part is from."""

    def forward(net, x):
        y, z = net.norm(net.stem(x)), net.b(x)
        written = F.relu(net.between(torch.cat([y, z], 1)[:, :8]), inplace=True)
        return net.last(written) + net.last(channel_shuffle(z, 2)) + net.last(y)

    layers = {"stem": nn.Conv2d(8, 8, 1), "norm": nn.BatchNorm2d(8), "b": nn.Conv2d(8, 8, 1, groups=2)}
    graph, x, network = typed(Network(forward, **layers, between=between, last=nn.Conv2d(8, 3, 1)), (8, 8, 8))
    assert deviation(graph(*x), network(*x)) < 1e-12
    assert "clone" in targets(graph)


@pytest.mark.parametrize("kind", ["part", "buffer"])
def test_networks_that_depend_on_memory_stay_as_they_are(kind):
    """What is read after it was written over, and counters in the network, are not touched."""

    def part(net, x):
        y = channel_shuffle(net.stem(x), 2)
        y[:, :2].mul_(0)
        return net.last(y)

    def buffer(net, x):
        net.count.add_(1)
        return net.last(channel_shuffle(net.stem(x), 2)) * net.count

    network = Network({"part": part, "buffer": buffer}[kind], stem=nn.Conv2d(8, 8, 1), last=nn.Conv2d(8, 3, 1))
    network.register_buffer("count", torch.zeros(()))
    graph, x, network = typed(network, (8, 8, 8))
    assert "view" in targets(graph)
    assert not is_functional(graph.module)
    for _ in range(2):
        assert deviation(graph(*x), network(*x)) < 1e-12


def test_checks_of_the_model_are_kept():
    """A condition on sizes that was followed in the trace still refuses what would have gone another way."""

    def forward(net, x):
        y = channel_shuffle(net.groups(x), 2)
        if y.flatten(2).chunk(2, 1)[0].shape[2] % 2:
            return net.last(y)
        return net.last(torch.relu(y))

    graph, x, network = typed(Network(forward, groups=nn.Conv2d(8, 8, 1, groups=4), last=nn.Conv2d(8, 3, 1)), (8, 8, 8))
    assert deviation(graph(*x), network(*x)) < 1e-12
    with pytest.raises(ValueError, match="finds"):
        graph(torch.randn(2, 8, 7, 7, dtype=torch.float64))


def test_modes_of_the_model_are_kept():
    """What training adds to shuffled channels is added to the same ones."""

    def forward(net, x):
        y = channel_shuffle(torch.cat([net.a(x), net.b(x)], 1), 2)
        y = y + net.skip(x) if net.training else torch.relu(y)
        first, second = y.chunk(2, 1)
        return net.last(first) * net.last(second)

    layers = {"a": nn.Conv2d(8, 4, 1), "b": nn.Conv2d(8, 4, 1), "skip": nn.Conv2d(8, 8, 1), "last": nn.Conv2d(4, 3, 1)}
    graph = check(Network(forward, **layers))
    assert "either" in targets(graph)
    assert kept(graph) == (0, 0)


def test_views_of_what_was_laid_out_for_them():
    """A view of a copied half, which is only a slice by now."""

    def forward(net, x):
        y = net.stem(x)
        half = y[:, :4].contiguous()
        return net.head(half.view(-1, 64)), net.last(channel_shuffle(y, 2))

    layers = {"stem": nn.Conv2d(8, 8, 1), "last": nn.Conv2d(8, 3, 1), "head": nn.Linear(64, 3)}
    assert kept(check(Network(forward, **layers), sizes=((3, 8, 8), (5, 8, 8)))) == (0, 0)


def test_networks_without_shuffles_stay_as_they_are():
    network = Network(
        lambda net, x: net.last(torch.cat(net.stem(x).chunk(2, 1)[::-1], 1).flatten(2).transpose(1, 2)),
        stem=nn.Conv2d(8, 8, 1),
        last=nn.Linear(8, 3),
    )
    module = gs.trace(network, torch.randn(2, 8, 8, 8)).module
    before = module.graph
    unshuffle(module)
    assert module.graph is before


KINDS = [*STEPS, *SHUFFLES, *SHUFFLES]


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed):
    """The same function in both modes, and every contract of surgery."""
    torch.manual_seed(seed)
    network = RandomNetwork(seed, 3 + seed % 6, KINDS)
    graph = assert_contracts(network, (3, 4, 4), seed=seed)
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    graph.module.train()
    assert deviation(graph(x), network.train()(x)) < 1e-10


class Windows(nn.Module):
    """Tokens in windows of 7 x 7, padded to whole windows; a small image is one window, of which some tokens stay."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.mix = nn.Linear(6, 6)

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        x = F.pad(x, (0, 0, 0, -width % 7, 0, -height % 7))
        rows, columns = x.shape[1] // 7, x.shape[2] // 7
        x = x.view(batch, rows, 7, columns, 7, channels).transpose(2, 3)
        x = self.mix(x.reshape(-1, 49, channels)).view(-1, rows, columns, 7, 7, channels)
        x = x.transpose(2, 3).reshape(-1, 7 * rows, 7 * columns, channels)
        return x[:, :height, :width].reshape(batch, height * width, channels).mean(1)


def test_tokens_of_a_window_are_no_channels():
    """One window holds all tokens on axis 1, where they may look like channels in another order."""
    network = Windows().double().eval()
    graph = gs.trace(network, torch.zeros(2, 3, 8, 8))
    generator = torch.Generator().manual_seed(1)
    for sizes in ((2, 3, 8, 8), (1, 3, 12, 8), (3, 3, 20, 30)):
        x = torch.randn(sizes, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            assert deviation(graph(x), network(x)) < 1e-12


@pytest.mark.parametrize("operator", [torch.add, torch.mul, torch.maximum])
def test_one_channel_for_all_that_are_shuffled(operator):
    """A dense layer of one channel has no order to write in, whatever the other operand wants."""
    network = Network(
        lambda net, x: net.head(operator(F.channel_shuffle(net.body(x), 2), net.one(torch.relu(x)))),
        body=nn.Conv2d(8, 8, 3, padding=1, groups=2),
        one=nn.Conv2d(8, 1, 1),
        head=nn.Conv2d(8, 3, 1),
    )
    assert kept(check(network)) == (0, 0)


class Turning(nn.Module):
    """Channels in another order between two convolutions, one of which the network also has in its own order."""

    def __init__(self, turn):
        super().__init__()
        self.body, self.skip, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]))
        self.turn = turn

    def forward(self, x):
        return self.head(self.turn(self, torch.relu(self.body(x))))


TURNS = {
    "flip": lambda _, x: x.flip(1),
    "flip function": lambda _, x: torch.flip(x, [1]),
    "flip by name": lambda _, x: torch.flip(x, dims=(-3,)),
    "fliplr": lambda _, x: torch.fliplr(x),
    "roll": lambda _, x: torch.roll(x, 2, 1),
    "roll by name": lambda _, x: x.roll(shifts=(-1,), dims=(1,)),
    "look up": lambda n, x: x[:, n.order],
    "select": lambda n, x: x.index_select(1, n.order),
    "select by name": lambda n, x: torch.index_select(x, dim=-3, index=n.order),
    "select of what is laid out": lambda n, x: x.index_select(1, n.order.view(2, 4).t().flatten()),
    "gather": lambda n, x: x.gather(1, n.order[None, :, None, None].expand(x.shape[0], -1, *x.shape[2:])),
    "flip beside a skip": lambda n, x: x.flip(1) + n.skip(x),
    "roll of a look-up": lambda n, x: torch.roll(torch.relu(x[:, n.order]), 3, 1) * n.skip(x),
    "flip of both": lambda _, x: torch.tanh(x.flip(2).flip(1)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_channels_that_are_turned_round_rolled_or_looked_up_are_free(turn):
    graph = check(Turning(TURNS[turn]))
    assert {space.size for space in graph.spaces} == {8}
    assert not graph.frozen


STILL = {
    "all of it beside itself": (lambda _, x: x + torch.roll(x, 1, 1), {"getitem"}),
    "pixels too": (lambda _, x: x.flip(1, 2), {"flip"}),
    "indices that are written": (lambda n, x: x[:, n.order.add_(0)], {"add_", "getitem"}),
    "indices of pixels": (lambda n, x: x.gather(3, n.order[:6].clamp(max=5).expand(x.shape)), {"gather"}),
    "other bytes": (
        lambda n, x: n.skip(torch.roll(x, 1, 1)).contiguous().view(torch.uint8).view(x.dtype),
        {"view"},
    ),
    "other bytes by name": (lambda n, x: n.skip(x.flip(1)).view(dtype=torch.int64).view(dtype=x.dtype), {"view"}),
    "pixels": (lambda _, x: torch.roll(x.flip(3), 1, 2), {"flip", "roll"}),
}


@pytest.mark.parametrize("turn", STILL)
def test_other_turns_stay_where_they_are(turn):
    rule, left = STILL[turn]
    graph, x, network = typed(Turning(rule), (8, 6, 6))
    assert left <= {name.rstrip("_") if name not in left else name for name in targets(graph)}
    with torch.no_grad():
        assert deviation(graph(*x), network(*x)) < 1e-12
        assert_permutes(graph, x)


def test_a_selection_takes_what_it_needs():
    graph = check(Turning(lambda _, x: torch.cat([x[:, [5, 4, 3]], x[:, [0, 1, 2, 6, 7]]], 1)))
    assert not graph.frozen
    assert sum(space.size for space in graph.spaces) == 8


def test_weights_that_are_shared_with_the_model_are_compared_by_their_old_names():
    """The trace gets weights of its own where it puts them in another order; gradients are compared all the same."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ChannelShuffle(2), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    before = copy.deepcopy(network.state_dict())
    graph = gs.trace(network, torch.randn(2, 8, 6, 6, dtype=torch.float64), copy=False)
    x = torch.randn(3, 8, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(graph(x), network(x), rtol=1e-12, atol=1e-12)
    assert kept(graph) == (0, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_selection_takes_some_channels_twice():
    """A look-up of all channels, some of them again, is no order that the layer before could write them in."""
    network = Turning(lambda _, x: x[:, [1, 0, 3, 5, 2, 1, 4, 6, 7, 0]])
    network.head = nn.Conv2d(10, 5, 1)
    graph = check(network)
    assert sum(space.size for space in graph.spaces) == 8


DROPS = [nn.Dropout2d(0.5), nn.Dropout2d(0.0), nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.RReLU()]


@pytest.mark.parametrize("drop", DROPS, ids=str)
def test_what_training_draws_for_channels_that_are_shuffled(drop):
    """In another order of channels the same random numbers drop others, which was refused: there the shuffle stays."""
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 8, 1), "drop": drop, "c": nn.Conv2d(8, 3, 1)}
    model = Network(lambda net, x: net.c(net.drop(channel_shuffle(net.a(x), 2))), **layers).double()
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    assert_same_in_both_modes(gs.trace(model, x), model, x)


@pytest.mark.parametrize("turn", [lambda x: x.flip(1), lambda x: torch.roll(x, 1, 1)])
def test_tokens_are_no_channels(turn):
    """What lies on axis 1 is as long as it is: nothing compares lengths here."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.last(turn(self.first(x).relu()))

    module, x = Turned().eval(), torch.randn(2, 7, 3)
    network = gs.trace(module, torch.zeros(2, 4, 3), check=False)
    torch.testing.assert_close(network(x), module(x))
