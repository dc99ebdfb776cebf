"""Compress: the outputs are those of the network with the removed reads masked."""

import math

import pytest
import torch
import torch.nn.functional as F
from contracts import Masked, Network, masked, random_choice, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from zoo import NAMES, SHALLOW, example, randomize, traced

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import gate
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.channels.nesting import Nesting
from graphsurgery.surgery.channels.targets import Target, parse_target
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.gates import gates


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


@pytest.mark.parametrize("name", SHALLOW)
def test_in_onnx_runtime(name, tmp_path):
    graph, _ = traced(name)
    small = compress(graph, 0.5)
    gs.export_onnx(small, tmp_path / "small.onnx")
    assert gs.check_onnx(small, tmp_path / "small.onnx").deviation <= 1e-4


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
        ({"keep": 1.0}, "0 channels removed from 12 spaces: keep 1 rounded to multiples of 1 is all of each"),
        ({"keep": {"*": [1, 2]}}, r"keep for all spaces is \[1, 2\], expected a share"),
        ({"round_to": 0}, "round_to is 0"),
        ({"within": "heads"}, "within is 'heads'; choose from groups, same, each, best"),
        ({"keep": {"conv1": [[0, 1]]}}, "conv1 cannot have a choice in each group: it stands inside no other space"),
        ({"keep": 0.5, "target": "params=0.5x"}, "keep and target exclude each other"),
        ({"keep": {"conv1": 8, "*": 0.5}, "target": "params=0.5x"}, "keep can only name spaces"),
        ({"target": "params=0.5"}, r"write params=0\.5x"),
        ({"target": "params=1e-4x"}, r"params=0\.0001x cannot be reached: .* ask for params=0\.01"),
        ({"target": "params=1x"}, "params=1x removes nothing, the network has 11,181,642 parameters"),
        ({"target": "macs=90G"}, "macs=90000000000 removes nothing"),
        ({"target": "size=1kB", "round_to": 8}, "cannot be reached: with min_width 1, max_cut 0.9 and round_to 8"),
    ],
)
def test_refuses(options, message):
    graph, _ = traced("whole resnet18")
    with pytest.raises(gs.SurgeryError, match=message):
        compress(graph, **options)


def test_says_what_froze_everything():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(torch.linalg.pinv(self.a(x)).mT)

    graph = gs.trace(Frozen(), torch.zeros(2, 4))
    with pytest.raises(
        gs.SurgeryError,
        match=r"no channel can be removed; frozen by linalg_pinv: linalg_pinv is of a matrix as a whole",
    ):
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


TARGETS = ["params=0.5x", "macs=0.4x", "size=0.3x", "width=0.6"]


def reached(graph, small, quantity):
    """The share of a quantity that is left, counted on what was built."""
    before, after = cost(graph), cost(small)
    if quantity == "width":
        sizes = small.lineage[-1]["sizes"].values()
        return sum(new for _, new in sizes) / sum(old for old, _ in sizes)
    name = {"params": "parameters", "macs": "macs", "size": "bytes"}[quantity]
    return getattr(after, name) / getattr(before, name)


@pytest.mark.parametrize("ranking", ["per-space", "global"])
@pytest.mark.parametrize("text", TARGETS)
def test_targets_are_met_to_a_channel(text, ranking):
    graph, x = traced("whole resnet18")
    target = parse_target(text, ranking=ranking)
    small = compress(graph, target=target)
    found = reached(graph, small, target.quantity)
    assert target.amount - 0.005 < found <= target.amount
    record = small.lineage[-1]["target"]
    assert record["asked"] == str(target)
    assert record["reached"] / record["before"] == pytest.approx(found, rel=1e-12)
    for old, new in small.lineage[-1]["sizes"].values():
        assert new >= 0.1 * old
    with torch.no_grad():
        assert small(x).shape == graph(x).shape


@pytest.mark.parametrize(("name", "within"), [("regnet_y", "each"), ("vit", "best"), ("squeezenet1_1", "groups")])
def test_targets_of_other_families(name, within):
    graph, _ = traced(name)
    small = compress(graph, target=Target("macs", 0.5, ranking="global"), within=within)
    assert 0.48 < reached(graph, small, "macs") <= 0.5


def test_an_absolute_target():
    graph, _ = traced("paper/resnet20?width=8")
    count = cost(compress(graph, target="params=20k")).parameters
    assert 19_000 < count <= 20_000
    assert cost(compress(graph, target="size=100kB")).bytes <= 100_000


def test_per_space_targets_keep_one_share_and_multiples():
    graph, _ = traced("resnet18")
    small = compress(graph, target="params=0.5x", round_to=8)
    shares = [new / old for old, new in small.lineage[-1]["sizes"].values()]
    assert max(shares) - min(shares) <= 8 / 64
    assert all(new % 8 == 0 for _, new in small.lineage[-1]["sizes"].values())


def test_a_width_per_space_is_a_share():
    graph, _ = traced("paper/resnet20?width=8")
    assert compress(graph, target="width=0.75").lineage[-1]["sizes"] == compress(graph, 0.75).lineage[-1]["sizes"]


def test_global_ranking_follows_importance_and_stops_at_the_limits():
    """Scores of a space count against the mean of the space, so a factor on a whole layer means nothing."""
    network = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    graph, _, net = typed(network, (4,))
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.fill_(1.0)
        net[0].weight[5:] = 0.01
        net[2].weight[:, 5:] = 0.01
        net[0].weight *= 1e-6
    graph = gs.trace(net, torch.zeros(2, 4, dtype=torch.float64))
    sizes = {s.name: s.size for s in compress(graph, target=Target("width", 0.7, ranking="global")).spaces}
    assert sizes == {"0": 8, "2": 20}
    limited = Target("width", 0.7, ranking="global", min_width=12)
    assert {s.name: s.size for s in compress(graph, target=limited).spaces} == {"0": 12, "2": 16}
    limited = Target("width", 0.7, ranking="global", max_cut=0.3)
    assert {s.name: s.size for s in compress(graph, target=limited).spaces} == {"0": 14, "2": 14}


def test_spaces_that_are_named_stay_as_asked():
    graph, _ = traced("whole resnet18")
    small = compress(graph, {"conv1": 60, "layer3.0.conv1": 0.25}, target="params=0.4x")
    assert (small.space("conv1").size, small.space("layer3.0.conv1").size) == (60, 64)
    assert 0.395 < reached(graph, small, "params") <= 0.4
    both = compress(graph, {"conv1": 60, "*": 0.5})
    assert [s.size for s in both.spaces] == [60] + [s.size // 2 for s in graph.spaces[1:]]


def test_gates_compete_as_they_are():
    """A gate's location means the same in every space: the target keeps the gates that are most open."""
    graph, _ = traced("paper/resnet20?width=8")
    gated = gate(graph, loc=0.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in gates(gated).values():
            module.loc.copy_(3 * torch.randn(module.channels, generator=generator))
    small = compress(gated, target=Target("width", 0.5, ranking="global"), importance="gate")
    kept, gone = [], []
    for name, module in gates(gated).items():
        old, new = small.lineage[-1]["sizes"][name]
        ranked = module.loc.detach().sort(descending=True).values
        kept.append(ranked[math.ceil(0.1 * old) : new])
        gone.append(ranked[new:])
    assert torch.cat(kept).min() >= torch.cat(gone).max()


# Channels inside groups -----------------------------------------------------------------------------------------------


def grouped():
    layers = [nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 20, 3, padding=1, groups=4)]
    layers += [nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3)]
    return typed(nn.Sequential(*layers), (3, 4, 4))


def attention():
    def forward(net, x):
        q, k, v = net.qkv(x).reshape(x.shape[0], 5, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(2, 3) * k.shape[-1] ** -0.5).softmax(-1) @ v
        own = F.scaled_dot_product_attention(net.q(x).unflatten(-1, (2, 6)).transpose(1, 2), q, mixed)
        return net.out(own.transpose(1, 2).flatten(2))

    return typed(Network(forward, qkv=nn.Linear(8, 36), q=nn.Linear(8, 12), out=nn.Linear(12, 3)), (5, 8))


def normalised():
    layers = [nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 4, 1), nn.Flatten(), nn.Linear(64, 2)]
    return typed(nn.Sequential(*layers), (3, 4, 4))


def choices_in_groups(graph, seed=0):
    """Random channels inside groups; others in each group where they may differ."""
    generator = torch.Generator().manual_seed(seed)
    nesting, kept = Nesting(graph), {}
    for space in graph.spaces:
        if space.outer or space.mixed or not space.readers:
            continue
        apart = nesting.why_alike(space) is None
        groups = sum(dim.size for dim in nesting.outers(space)) if apart else 1
        order = torch.rand(groups, space.size, generator=generator).argsort()
        rows = order[:, : max(1, round(0.6 * space.size))].sort().values
        kept[space.name] = rows if apart else rows[0]
    return kept


def assert_masked(graph, x, kept):
    with torch.no_grad():
        expected = Masked(graph, kept).run(x)
        assert deviation(graph(x), expected) > 1e-6
        assert deviation(compress(graph, kept)(x), expected) < 1e-10


@pytest.mark.parametrize("name", ["resnext", "regnet_y", "vit"])
def test_other_channels_in_each_group_equal_the_masked_network(name):
    graph, x = traced(name)
    kept = choices_in_groups(graph)
    assert all(rows.dim() == 2 for rows in kept.values())
    assert_masked(graph, x, kept)


@pytest.mark.parametrize("network", [grouped, attention], ids=["grouped", "attention"])
def test_whole_groups_and_channels_in_each_together(network):
    graph, (x,), _ = network()
    kept = choices_in_groups(graph)
    assert_masked(graph, x, kept)
    assert_masked(graph, x, {s.name: torch.arange(s.size - 1) for s in graph.spaces if s.outer} | kept)


def test_attention_keeps_its_scale_when_head_sizes_differ_between_heads():
    graph, _ = traced("vit")
    small = compress(graph, 0.5, within="each")
    assert [s.size for s in small.spaces if not s.outer] == [4] * 4
    attentions = [n for n in small.module.graph.nodes if n.target is F.scaled_dot_product_attention]
    assert [n.kwargs["scale"] for n in attentions] == [pytest.approx(8**-0.5)] * 2


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_random_networks_inside_groups(seed):
    torch.manual_seed(seed)
    network = RandomNetwork(seed)
    randomize(network)
    graph = gs.trace(network.double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    kept = choices_in_groups(graph, seed)
    with torch.no_grad():
        assert deviation(compress(graph, kept)(x), Masked(graph, kept).run(x)) < 1e-10
        for within in ("same", "each", "best"):
            if any(s.outer and s.size > 1 for s in graph.spaces):
                assert compress(graph, 0.4, within=within)(x).shape == (2, 5)


def test_channels_inside_the_groups_of_a_norm_are_mixed():
    """The group's statistics are those of the channels that are left; whole groups are exact."""
    graph, (x,), _ = normalised()
    inner = next(s for s in graph.spaces if not s.outer and s.mixed)
    assert inner.mixed == ("group_norm at 1",)
    rows = [[0, 1, 2], [1, 2, 3], [0, 2, 3]]
    with torch.no_grad():
        small = compress(graph, {inner.name: rows})
        norm = small.module.get_submodule("1")
        assert (norm.num_groups, norm.num_channels) == (3, 9)
        flat = torch.cat([torch.tensor(row) + 4 * group for group, row in enumerate(rows)])
        torch.testing.assert_close(norm.weight, graph.module.get_submodule("1").weight[flat], rtol=0, atol=0)
        y = F.group_norm(graph.module.get_submodule("0")(x)[:, flat], 3, norm.weight, norm.bias)
        torch.testing.assert_close(small.module.get_submodule("1")(small.module.get_submodule("0")(x)), y)
        outer = next(s for s in graph.spaces if s.outer and s.size == 3)
        assert deviation(compress(graph, {outer.name: [0, 2]})(x), masked(graph, {outer.name: [0, 2]})(x)) < 1e-10


def planted(by_channel):
    """A grouped convolution in which two of four groups, or one channel of every group, are larger than the rest."""
    _, _, net = grouped()
    with torch.no_grad():
        for layer, factor, shape in ((net[0], 100, (4, 3)), (net[3], 10, (4, 5))):
            large = torch.zeros(shape, dtype=torch.float64)
            if by_channel:
                large.scatter_(1, torch.tensor([[0], [2], [1], [2]]), 1)
            else:
                large[[1, 3]] = 1
            layer.weight *= (0.01 + factor * large).flatten()[:, None, None, None]
    return gs.trace(net, torch.zeros(2, 3, 4, 4, dtype=torch.float64))


def test_best_takes_groups_or_channels_by_what_matters():
    cut = compress(planted(False), 0.5, within="best").lineage[-1]
    assert cut["inside groups"] == {}
    assert cut["sizes"]["0"] == [4, 2]
    cut = compress(planted(True), 0.5, within="best").lineage[-1]
    assert cut["inside groups"] == {"0:2": "each", "3": "each"}
    assert (cut["sizes"]["0:2"], cut["sizes"]["3"]) == ([3, 2], [5, 2])
    assert "0" not in cut["sizes"]


def test_each_keeps_the_best_of_every_group():
    graph = planted(True)
    small = compress(graph, {"0:2": 1}, within="each")
    old, new = (g.module.get_submodule("0").weight for g in (graph, small))
    assert torch.equal(new, old[[0, 3 + 2, 6 + 1, 9 + 2]])
    conv = small.module.get_submodule("3")
    assert (conv.in_channels, conv.groups) == (4, 4)
    assert torch.equal(conv.weight[5:10, 0], graph.module.get_submodule("3").weight[5:10, 2])
    same = compress(graph, {"0:2": 1}, within="same").module.get_submodule("0").weight
    assert torch.equal(same, old[[2, 5, 8, 11]])


def test_a_gate_inside_groups_is_one_for_all():
    graph, (x,), _ = grouped()
    gated = gate(graph, ["0:2", "6"], loc=0.3)
    small = compress(gated, 0.5, within="each")
    assert small.lineage[-1]["inside groups"] == {"0:2": "same", "3": "each"}
    with pytest.raises(gs.SurgeryError, match="0:2 cannot have a choice in each group: its gates are the same in all"):
        compress(gated, {"0:2": [[0], [1], [2], [0]]})
    kept = {"3": choices_in_groups(graph)["3"]}
    with torch.no_grad():
        assert deviation(compress(gated, kept)(x), Masked(gated, kept).run(x)) < 1e-10


def test_networks_without_groups_do_not_care():
    graph, _ = traced("paper/cnn")
    plain = compress(graph, 0.5)
    for within in ("same", "each", "best"):
        other = compress(graph, 0.5, within=within)
        for name, tensor in plain.module.state_dict().items():
            assert torch.equal(tensor, other.module.state_dict()[name])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1]], r"stands in 4 groups, expected indices \[4, kept\], got \[1, 2\]"),
        ([[0, 1], [0, 1], [0, 1], [1, 1]], "would keep a channel twice"),
        ([[0], [1], [3], [2]], "has channels 0 to 2, got 3"),
        ([[], [], [], []], "would be empty"),
    ],
)
def test_refuses_choices_in_groups(rows, message):
    graph, _, _ = grouped()
    with pytest.raises(gs.SurgeryError, match=message):
        compress(graph, {"0:2": rows})


@pytest.mark.parametrize("network", [grouped, attention], ids=["grouped", "attention"])
def test_other_channels_in_each_group_in_onnx_runtime(network, tmp_path):
    graph, _, _ = network()
    small = compress(graph, choices_in_groups(graph))
    small = compress(small, 0.5, within="each")
    gs.export_onnx(small, tmp_path / "small.onnx")
    assert gs.check_onnx(small, tmp_path / "small.onnx").deviation <= 1e-4


@pytest.mark.parametrize("number", [1, 3])
def test_a_whole_number_for_all_spaces_is_no_share(number):
    graph, _ = traced("paper/lenet5")
    with pytest.raises(gs.SurgeryError, match=r"for all spaces is \d, which for a space is a number of channels"):
        compress(graph, {"*": number})
    with pytest.raises(gs.SurgeryError, match=r"for all spaces is \d, which for a space is a number of channels"):
        compress(graph, number)
    assert compress(graph, {"conv1": 1}).space("conv1").size == 1
    assert compress(graph, {"*": 0.5, "conv1": 1.0}).space("conv1").size == graph.space("conv1").size
