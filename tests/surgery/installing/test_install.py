"""The edited weights go back into the class that they came from, and nothing goes back that computes otherwise."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import event, given, settings
from hypothesis import strategies as st
from random_networks import SHUFFLES, STEPS, RandomNetwork
from torch import nn
from torch.nn.utils import parametrizations
from zoo import randomize

import graphsurgery as gs
from graphsurgery.errors import SurgeryError
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.installing.without_values import check_same_graph


class Attention(nn.Module):
    """Heads in a packed projection, and four numbers that belong to the sizes."""

    def __init__(self, width, heads, *, scaled="kept"):
        super().__init__()
        self.heads, self.width, self.size = heads, width, width // heads
        self.scale = None if scaled == "computed" else self.size**-0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        scale = 1 / math.sqrt(self.size) if self.scale is None else self.scale
        shares = self.drop(torch.softmax(q @ k.transpose(-1, -2) * scale, -1))
        return self.proj((shares @ v).transpose(1, 2).reshape(batch, tokens, self.heads * self.size))


class Block(nn.Module):
    def __init__(self, width, heads, **options):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = Attention(width, heads, **options)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Two blocks over `[batch, tokens, 5]`."""

    def __init__(self, **options):
        super().__init__()
        self.stem = nn.Linear(5, 24)
        self.blocks = nn.ModuleList(Block(24, 6, **options) for _ in range(2))
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class GroupedQueries(nn.Module):
    """Keys and values for every second head, with numbers in a configuration that the parts share."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(heads=4, pairs={"kv": 2}, size=6)
        self.q, self.k, self.v = nn.Linear(8, 24), nn.Linear(8, 12), nn.Linear(8, 12)
        self.o = nn.Linear(24, 3)
        self.repeats = 2

    def forward(self, x):
        batch, tokens, _ = x.shape
        size, kv = self.config.size, self.config.pairs["kv"]
        q = self.q(x).view(batch, tokens, self.config.heads, size).transpose(1, 2)
        k, v = (f(x).view(batch, tokens, kv, size).transpose(1, 2) for f in (self.k, self.v))
        k, v = (t[:, :, None].expand(batch, kv, self.repeats, tokens, size) for t in (k, v))
        k, v = (t.reshape(batch, kv * self.repeats, tokens, size) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        return self.o(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Pieces(nn.Module):
    """Sizes in a list and in a tuple, a convolution by its function, a width that is halved in the forward."""

    def __init__(self):
        super().__init__()
        self.sizes, self.shape, self.groups, self.width, self.half = [6, 10], (4, 4), 4, 16, 6
        self.stem = nn.Conv2d(3, 16, 1)
        self.a, self.b = nn.Conv2d(6, 8, 1), nn.Conv2d(10, 8, 1)
        self.kernel = nn.Parameter(torch.randn(16, 4, 3, 3))
        self.out = nn.Linear(16, 12)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        a, b = self.stem(x).split(self.sizes, 1)
        x = F.relu(F.conv2d(torch.cat([self.a(a), self.b(b)], 1), self.kernel, padding=1, groups=self.groups))
        x = self.out(x.reshape(-1, self.width, *self.shape).mean((2, 3)))
        return self.last(x[:, : self.half] * torch.sigmoid(x[:, self.half :]))


class Recurrent(nn.Module):
    """A recurrent layer whose state is made from a number."""

    def __init__(self):
        super().__init__()
        self.hidden = 10
        self.lstm, self.head = nn.LSTM(4, 10, batch_first=True), nn.Linear(10, 3)

    def forward(self, x):
        state = x.new_zeros(1, x.shape[0], self.hidden)
        return self.head(self.lstm(x, (state, state))[0])


class Tied(nn.Module):
    """An embedding that is the head too, and a buffer."""

    def __init__(self):
        super().__init__()
        self.width = 12
        self.words, self.inner = nn.Embedding(9, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 9, bias=False)
        self.head.weight = self.words.weight
        self.norm = nn.BatchNorm1d(12)

    def forward(self, i):
        x = self.inner(self.words(i))
        x = self.norm(x.reshape(-1, self.width)).view(i.shape[0], -1, self.width)
        return self.head(x)


def _image(*shape):
    return torch.zeros(shape)


CLASSES = {
    "transformer": (Transformer, _image(2, 7, 5)),
    "transformer that computes its scale": (lambda: Transformer(scaled="computed"), _image(2, 7, 5)),
    "grouped queries": (GroupedQueries, _image(2, 5, 8)),
    "pieces": (Pieces, _image(2, 3, 4, 4)),
    "recurrent": (Recurrent, _image(2, 6, 4)),
    "tied": (Tied, torch.arange(10).reshape(2, 5) % 9),
}


def made(name):
    """An instance of a class with random statistics, its trace, and inputs."""
    torch.manual_seed(0)
    kind, example = CLASSES[name]
    model = kind()
    randomize(model)
    model = model.double().eval()
    graph = gs.trace(model, example)
    return model, graph, graph.example_inputs(3, seed=1)


def same(installed, graph, x):
    torch.testing.assert_close(installed(*x), graph(*x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("edit", ["none", "half", "slim"])
def test_the_class_computes_what_the_edited_network_does(name, edit):
    model, graph, x = made(name)
    before = copy.deepcopy(model.state_dict())
    edited = {"none": lambda: graph, "half": lambda: gs.compress(graph, 0.5), "slim": lambda: gs.slim(graph)}[edit]()
    installed = gs.install(edited, model)
    assert type(installed) is type(model)
    same(installed, edited, x)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    memory = {t.data_ptr() for t in (*model.state_dict().values(), *edited.tensors().values())}
    assert not memory & {t.data_ptr() for t in installed.state_dict().values()}


def test_numbers_follow_the_sizes_and_nothing_else_does():
    model, graph, _ = made("transformer")
    small = gs.compress(
        graph, {"stem": 0.5, "blocks.0.attention.qkv": 2, "blocks.1.attention.qkv": 3, "blocks.0.up": 10}
    )
    installed = gs.install(small, model)
    numbers = [(b.attention.heads, b.attention.width, b.attention.size) for b in installed.blocks]
    assert numbers == [(2, 24, 4), (3, 24, 4)], "nobody reads width"
    assert (model.blocks[0].attention.heads, installed.blocks[0].up.out_features) == (6, 10)


def test_numbers_of_a_shared_configuration_and_in_containers():
    model, graph, x = made("grouped queries")
    queries = next(space.name for space in graph.spaces if space.size == 2)
    small = gs.compress(graph, {queries: 1})
    installed = gs.install(small, model)
    assert model.config.pairs == {"kv": 2}
    numbers = (installed.config.heads, installed.config.pairs, installed.repeats)
    assert numbers in [(4, {"kv": 2}, 1), (2, {"kv": 1}, 2), (2, {"kv": 2}, 1)]
    same(installed, small, x)


def test_a_list_of_sizes_and_a_number_of_groups():
    model, graph, x = made("pieces")
    small = gs.compress(graph, 0.5)
    installed = gs.install(small, model)
    assert (installed.sizes, installed.half, installed.shape) == ([3, 5], 3, (4, 4))
    assert model.sizes == [6, 10]
    same(installed, small, x)


def test_weights_that_stay_tied():
    model, graph, _ = made("tied")
    installed = gs.install(gs.compress(graph, 0.5), model)
    assert installed.head.weight is installed.words.weight
    assert installed.width == 6


def test_it_trains_as_the_network_does():
    model, graph, x = made("transformer")
    small = gs.compress(graph, 0.5)
    installed = gs.install(small, model).train()
    small.module.train()
    for module in (installed, small.module):
        torch.manual_seed(3)
        module(*x).square().sum().backward()
    theirs = dict(small.module.named_parameters())
    for name, parameter in installed.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-12)


def test_weight_norm_is_plain_in_the_copy():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2)).double()
    small = gs.compress(gs.trace(model, torch.zeros(2, 4)), 0.5)
    installed = gs.install(small, model)
    assert isinstance(installed[0].weight, nn.Parameter)
    same(installed, small, small.example_inputs(3))


def test_a_bias_that_the_removed_channels_leave_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Sigmoid(), nn.Linear(6, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight[:4] = 0
    alive = gs.prune_dead(gs.trace(model, torch.zeros(2, 3)))
    installed = gs.install(alive, model)
    assert installed[2].bias is not None
    assert installed[0].out_features == 2
    same(installed, alive, alive.example_inputs(3))


def test_whole_copies_of_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3))
    randomize(model)
    model = model.double().eval()
    wide = gs.widen(gs.trace(model, torch.zeros(2, 3, 8, 8)), 2.0)
    installed = gs.install(wide, model)
    assert installed[1].num_features == 12
    same(installed, wide, wide.example_inputs(3))


def test_torch_s_own_attention_keeps_heads_as_wide_as_what_it_reads():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True).double().eval()
    graph = gs.trace(model, torch.zeros(2, 5, 16))
    small = gs.compress(graph, {"linear1": 0.5})
    installed = gs.install(small, model)
    x = small.example_inputs(3)
    torch.testing.assert_close(installed.train(False)(*x), small(*x), rtol=1e-9, atol=1e-9)
    with pytest.raises(SurgeryError, match=r"self_attn in TransformerEncoderLayer .* inputs of 16 and heads of 8"):
        gs.install(gs.compress(graph, {"self_attn.in_proj": 0.5}), model)


def test_a_detector_runs_the_edited_core():
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.retinanet import RetinaNetHead

    from graphsurgery.models.detection import core

    body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
    body.out_channels = 8
    anchors, head = AnchorGenerator(((8,),), ((1.0,),)), RetinaNetHead(8, 1, 3)
    detector = RetinaNet(body, 3, min_size=64, max_size=64, anchor_generator=anchors, head=head).eval()
    graph = gs.trace(core(detector), torch.empty(2, 3, 64, 64, device="meta"), check=False)
    assert type(gs.install(graph, detector)).__name__ == type(detector).__name__


class AsksBefore(nn.Module):
    """Asks whether its heads divide the width, as einops does, before it uses them."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 2)

    def forward(self, x):
        x = self.a(x)
        if x.shape[-1] % self.heads != 0:
            raise ValueError("heads do not divide the width")
        return self.b(x.reshape(x.shape[0], self.heads, -1).softmax(-1).flatten(1))


def test_a_question_that_several_numbers_answer_alike_decides_none_of_them():
    torch.manual_seed(0)
    model = AsksBefore().double()
    small = gs.compress(gs.trace(model, torch.zeros(2, 5)), 0.5)
    installed = gs.install(small, model)
    assert (installed.heads, installed.a.out_features) == (2, 6)
    assert deviation(installed(x := torch.randn(3, 5).double()), small.module(x)) < 1e-12


# Refused --------------------------------------------------------------------------------------------------------------


class TwoUses(nn.Module):
    """One number for two layers, of which only one is cut."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.a, self.b, self.c = nn.Linear(5, 12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x).view(-1, self.heads, 3).relu().flatten(1)
        return self.c(self.b(x).view(-1, self.heads, 2).relu().flatten(1))


class OwnNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 2)

    def forward(self, x):
        return self.b(self.a(x).reshape(len(x), 4, 3).relu().reshape(len(x), 12))


class Divides(nn.Module):
    """A number that is a size and, out of sight of the sizes, a divisor."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x.relu() / x.shape[-1])


@pytest.mark.parametrize(
    ("kind", "edit", "message"),
    [
        (TwoUses, lambda g: gs.compress(g, {g.spaces[0].name: 2}), r"heads cannot be right everywhere: .* needs"),
        (OwnNumber, lambda g: gs.compress(g, 0.5), r"does not run with the edited sizes: test_install.py:\d+: .*12"),
        (Divides, lambda g: gs.compress(g, 0.5), r"does not compute what the network does: .*differs"),
        (Divides, gs.gate, r"install: gates.a.loc stands in the network and has no place in Divides"),
        (nn.Sequential, gs.deepen, r"stands in the network and has no place in Sequential"),
    ],
)
def test_what_the_class_cannot_hold_is_refused(kind, edit, message):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)]
    model = kind(*(layers if kind is nn.Sequential else ())).double()
    graph = gs.trace(model, torch.zeros(2, 5))
    with pytest.raises(SurgeryError, match=message):
        gs.install(edit(graph), model)


def test_a_head_size_in_a_scale_that_the_class_computes_is_refused():
    model, graph, _ = made("transformer that computes its scale")
    inner = [space.name for space in graph.spaces if not space.outer]
    with pytest.raises(SurgeryError, match="does not compute what the network does"):
        gs.install(gs.compress(graph, dict.fromkeys(inner, 2)), model)


def test_another_class_is_refused():
    _, graph, _ = made("transformer")
    with pytest.raises(SurgeryError, match=r"has no place in Recurrent|does not take the inputs"):
        gs.install(graph, Recurrent().double())


PLAIN = [kind for kind in STEPS if kind not in ("product", "attention", "split", "stacked", "uneven")]
"""Steps whose code takes the sizes that a cut by one share leaves; the others have numbers of their own."""


def random_network(seed, kinds):
    torch.manual_seed(seed)
    model = RandomNetwork(seed, steps=4, kinds=kinds)
    randomize(model)
    model = model.double().eval()
    return model, gs.trace(model, torch.zeros(2, 3, 4, 4))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_random_networks_go_back(seed):
    model, graph = random_network(seed, PLAIN)
    x = graph.example_inputs(3, seed=seed)
    small = gs.compress(graph, 0.5) if graph.spaces else graph
    torch.testing.assert_close(gs.install(small, model)(*x), small(*x), rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_any_random_network_goes_back_whole_and_right_or_not_at_all_when_it_is_cut(seed):
    model, graph = random_network(seed, [*STEPS, *SHUFFLES])
    x = graph.example_inputs(3, seed=seed)
    torch.testing.assert_close(gs.install(graph, model)(*x), model(*x), rtol=1e-10, atol=1e-10)
    small = gs.compress(graph, 0.5) if graph.spaces else graph
    try:
        installed = gs.install(small, model)
    except SurgeryError as refused:
        event(str(refused).partition("network does")[0][:60])
        return
    torch.testing.assert_close(installed(*x), small(*x), rtol=1e-10, atol=1e-10)


# Without values -------------------------------------------------------------------------------------------------------


def emptied(model, example):
    """The same without values, and its trace."""
    empty = copy.deepcopy(model).to("meta")
    return empty, gs.trace(empty, example)


@pytest.mark.parametrize("name", CLASSES)
def test_without_values_the_class_gets_the_same_sizes(name):
    model, graph, _ = made(name)
    installed = gs.install(gs.compress(graph, 0.5), model)
    empty, bare = emptied(model, CLASSES[name][1])
    found = gs.install(gs.compress(bare, 0.5, importance="random"), empty)
    shapes = [{key: tuple(t.shape) for key, t in m.state_dict().items()} for m in (installed, found)]
    assert shapes[0] == shapes[1]
    numbers = [[v for part in m.modules() for v in vars(part).values() if type(v) is int] for m in (installed, found)]
    assert numbers[0] == numbers[1]


def test_without_values_what_a_class_computes_is_refused():
    model, _, _ = made("transformer that computes its scale")
    empty, bare = emptied(model, CLASSES["transformer"][1])
    inner = [space.name for space in bare.spaces if not space.outer]
    small = gs.compress(bare, dict.fromkeys(inner, 2), importance="random")
    with pytest.raises(SurgeryError, match=r"with the edited sizes computes something else at mul\w* than the network"):
        gs.install(small, empty)


def test_without_values_shuffled_channels_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1))
    empty, bare = emptied(model, torch.zeros(2, 3, 4, 4))
    with pytest.raises(SurgeryError, match=r"Sequential shuffles channels, and without values its weights cannot"):
        gs.install(bare, empty)


def test_a_buffer_that_the_class_computes_otherwise_is_refused():
    kind, example = CLASSES["tied"]
    model = kind().eval()
    graph = gs.trace(model, example)
    own = gs.trace(model, example)
    check_same_graph(graph, own, "it")
    with torch.no_grad():
        own.module.norm.running_mean += 1
    with pytest.raises(SurgeryError, match=r"it computes other values of norm.running_mean"):
        check_same_graph(graph, own, "it")
    with pytest.raises(SurgeryError, match=r"it has \[9, 12\] at words.weight, the network \[9, 6\]"):
        check_same_graph(gs.compress(graph, 0.5), own, "it")


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_what_is_allowed_without_values_is_right_with_values(seed):
    model, graph = random_network(seed, STEPS)
    empty, bare = emptied(model, torch.zeros(2, 3, 4, 4))
    maps = {space.name: list(range((space.size + 1) // 2)) for space in bare.spaces if space.chosen}
    try:
        gs.install(gs.compress(bare, maps), empty)
    except SurgeryError as refused:
        event(str(refused)[:40])
        return
    event("allowed")
    small = gs.compress(graph, maps)
    x = graph.example_inputs(3, seed=seed)
    torch.testing.assert_close(gs.install(small, model)(*x), small(*x), rtol=1e-10, atol=1e-10)
