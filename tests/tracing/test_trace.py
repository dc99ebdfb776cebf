"""Tracing: the traced network is the model, in both modes, for other batches; what cannot be followed says where."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from contracts import Network, assert_same_in_both_modes
from torch import nn
from torch.utils.checkpoint import checkpoint
from zoo import EVERY, SHUFFLING, example, model, traced

import graphsurgery as gs
from graphsurgery.checkpoint import load, save
from graphsurgery.surgery.deviation import deviation, double


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def same_outputs(name, found, expected):
    """Equal bit for bit; attention, and what followed a channel shuffle, sum in another order than in the model."""
    if name == "vit" or name in SHUFFLING:
        assert deviation(found, expected) < 1e-13
    else:
        equal(found, expected)


def same_buffers(name, found, expected):
    """Equal bit for bit; where channels were shuffled, to rounding and but for the order of the values."""
    found, expected = dict(found), dict(expected)
    if name in SHUFFLING:
        assert found.keys() == expected.keys()
        for key, buffer in expected.items():
            torch.testing.assert_close(found[key].sort().values, buffer.sort().values, rtol=1e-10, atol=1e-12)
    else:
        equal(found, expected)


def test_what_was_traced_first_is_let_go_of():
    """torch keeps lists of its functions, made when they are first asked for: of its own, not of a trace under way."""
    for cached in (torch.overrides.get_ignored_functions, torch.overrides._get_overridable_functions):
        cached.cache_clear()
    gs.trace(nn.Linear(3, 2), torch.randn(2, 3))
    assert torch.zeros in torch.overrides.get_ignored_functions()


class Remembering(nn.Module):
    """Keeps a table for the size of its last input, as a buffer and as an attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(1), persistent=False)
        self.layer, self.last = nn.Linear(4, 4), None

    def forward(self, x):
        if self.table.shape[0] != x.shape[1]:
            self.table = torch.arange(x.shape[1], device=x.device).to(x)
        self.last = self.table * 2
        self.new = self.last + 1
        return self.layer(x) + self.new[:, None]


def test_what_a_forward_keeps_in_its_module_is_taken_back():
    network, x = Remembering().eval(), torch.randn(2, 5, 4)
    graph = gs.trace(network, x)
    assert graph.module(x).equal(network(x))
    assert network.last.shape == (5,)
    again = gs.trace(network, x)
    assert again.module(x).equal(network(x))


@pytest.mark.parametrize("name", EVERY)
def test_evaluates_as_the_model_bit_for_bit(name):
    network = model(name)
    graph, x = traced(name)
    other = example(name, 3, seed=1)
    for inputs in (x, other):
        same_outputs(name, graph(inputs), network(inputs))


@pytest.mark.parametrize("name", EVERY)
def test_trains_as_the_model_bit_for_bit(name):
    network = model(name).train()
    x = example(name, 3)
    graph = gs.trace(network, x)
    assert graph.module.training
    torch.manual_seed(5)
    expected = network(x)
    torch.manual_seed(5)
    same_outputs(name, graph(x), expected)
    same_buffers(name, graph.module.named_buffers(), network.named_buffers())


class Modes(nn.Module):
    """Everything that acts differently in training."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.BatchNorm2d(4)
        self.fixed = torchvision.ops.FrozenBatchNorm2d(4)
        self.depth = torchvision.ops.StochasticDepth(0.5, "row")
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = x + self.depth(self.frozen(x)) + self.fixed(x)
        x = torchvision.ops.stochastic_depth(x, 0.4, "row", training=self.training)
        x = F.dropout2d(F.dropout(x, 0.2, training=self.training), 0.3, self.training)
        return self.head(F.dropout(self.drop(x).mean((2, 3)), 0.2))

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept_and_both_stay_available(training):
    network = Modes().train(training)
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    graph = gs.trace(network, x)
    flags = {path: m.training for path, m in graph.module.named_modules()}
    assert flags[""] is training
    assert flags["depth"] is training
    assert flags["frozen"] is False
    for mode in (training, not training):
        network.train(mode)
        graph.module.train(mode)
        graph.module.get_submodule("frozen").eval()
        torch.manual_seed(3)
        expected = network(x)
        torch.manual_seed(3)
        equal(graph(x), expected)


def test_the_model_is_not_modified_and_shares_no_memory():
    network = Modes().train()
    modes = {path: m.training for path, m in network.named_modules()}
    before = {name: t.clone() for name, t in network.state_dict().items()}
    graph = gs.trace(network, torch.zeros(2, 3, 4, 4))
    assert {path: m.training for path, m in network.named_modules()} == modes
    equal(dict(network.state_dict()), before)
    with torch.no_grad():
        for tensor in (*graph.module.parameters(), *graph.module.buffers()):
            tensor.add_(1)
    equal(dict(network.state_dict()), before)


# Attention -----------------------------------------------------------------------------------------------------------
class Attention(nn.Module):
    def __init__(self, call, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.call = call

    def forward(self, x, y=None, z=None):
        return self.call(self.attention, x, *(t for t in (y, z) if t is not None))


CALLS = {
    "self": lambda a, x, *_: a(x, x, x, need_weights=False)[0],
    "self with weights": lambda a, x, *_: a(x, x, x),
    "self with weights of heads": lambda a, x, *_: a(x, x, x, average_attn_weights=False),
    "memory": lambda a, x, y, *_: a(x, y, y),
    "all different": lambda a, x, y, z: a(x, y, z, need_weights=False)[0],
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_attention_is_lowered(call, batch_first, bias):
    torch.manual_seed(0)
    network = Attention(CALLS[call], batch_first=batch_first, bias=bias).double().eval()
    sizes = (5, 5, 5) if call.startswith("self") else (5, 7, 7)
    inputs = [torch.randn(*((3, n) if batch_first else (n, 3)), 8, dtype=torch.float64) for n in sizes]
    graph = gs.trace(network, inputs)
    assert deviation(graph(*inputs), network(*inputs)) < 1e-14
    assert not any(isinstance(m, nn.MultiheadAttention) for m in graph.module.modules())


def test_attention_with_other_widths_of_keys_and_values():
    torch.manual_seed(0)
    network = Attention(CALLS["all different"], kdim=6, vdim=5, bias=False, batch_first=True).double().eval()
    inputs = [torch.randn(3, n, c, dtype=torch.float64) for n, c in ((5, 8), (7, 6), (7, 5))]
    assert deviation(gs.trace(network, inputs)(*inputs), network(*inputs)) < 1e-14


def test_attention_with_dropout():
    torch.manual_seed(0)
    network = Attention(CALLS["self"], dropout=0.4, batch_first=True).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    graph = gs.trace(network, x)
    torch.manual_seed(1)
    first = graph(x)
    assert not torch.equal(first, graph(x))
    graph.module.eval(), network.eval()
    assert deviation(graph(x), network(x)) < 1e-14


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("kind", ["numbers", "booleans", "one for each head"])
def test_attention_with_a_mask(kind, weights):
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    mask = torch.zeros(5, 5, dtype=torch.float64).masked_fill(hidden, -torch.inf) if kind == "numbers" else hidden
    if kind == "one for each head":
        mask = hidden.expand(6, 5, 5)
    torch.manual_seed(0)
    network = Attention(lambda a, x, y: a(x, x, x, attn_mask=y, need_weights=weights)[0], batch_first=True)
    network = network.double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    assert deviation(gs.trace(network, [x, mask])(x, mask), network(x, mask)) < 1e-14


def test_a_transformer_of_torch():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    graph = gs.trace(network, x)
    assert deviation(graph(x), network(x)) < 1e-13


def test_attention_without_a_batch_axis_is_kept_whole():
    torch.manual_seed(0)
    network = Attention(lambda a, x: a(x[0], x[0], x[0])[0], batch_first=True).double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    graph = gs.trace(network, x)
    assert torch.equal(graph(x), network(x))
    assert re.search("is kept whole: .* without a batch axis", " ".join(frozen.reason for frozen in graph.frozen))


# What forwards do ----------------------------------------------------------------------------------------------------
class Tensors(nn.Module):
    """Tied weights and every way to hold a tensor."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.register_buffer("kept", torch.rand(4))
        self.register_buffer("transient", torch.rand(4), persistent=False)
        self.plain = torch.rand(4)
        self.listed = [torch.rand(4), torch.rand(4)]
        self.scale = nn.Parameter(torch.rand(4), requires_grad=False)

    def forward(self, x):
        made = torch.linspace(0, 1, 4) + torch.arange(4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
        x = self.encode(x) * self.kept + self.transient * self.scale + self.listed[1]
        return self.decode(x) * (self.plain * 2 + 1) + made


def test_tensors_of_every_kind():
    torch.manual_seed(0)
    network = Tensors()
    x = torch.randn(3, 4)
    graph = gs.trace(network, x)
    equal(graph(x), network(x))
    found = graph.module
    assert found.get_submodule("encode").weight is found.get_submodule("decode").weight
    assert not found.get_parameter("scale").requires_grad
    assert "kept" in found.state_dict()
    assert "transient" not in found.state_dict()
    equal(found.get_buffer("transient"), network.transient)
    network.plain.fill_(0)
    assert not any(t.is_meta for t in (*found.parameters(), *found.buffers()))
    assert not torch.equal(graph(x), network(x))


def in_place_on_a_view(net, x):
    h = net.a(x)
    part = h[:, :2]
    part += 1
    return net.b(h)


def in_place_not_used(net, x):
    h = net.a(x)
    F.relu(h, inplace=True)
    h.mul_(2)
    h.add_(1)
    return net.b(h)


def in_place_on_its_own(net, x):
    h = net.a(x)
    h += x[:, :1]
    h *= 2
    return net.b(h)


def written_by_index(net, x):
    h = net.a(x).clone()
    h[:, 1:3] = x[:, :2]
    h[0] = 0
    return net.b(h)


def sized(net, x):
    batch, width = x.shape
    mask = torch.ones(batch, 1) * torch.zeros(x.size(0), 1).add(2) + torch.full((batch, 1), 3.0)
    rows = torch.arange(x.shape[0])
    batch += 0
    return net.b(net.a(x) * mask + torch.eye(8)[:1] * rows[:, None] + width).view(batch, -1)


def looped(net, x):
    total = 0
    for piece in net.a(x).chunk(4, 1):
        total = total + piece
    first, *rest = x.split(1, 1)
    if x.dim() == 2 and x.ndim == 2 and len(x.shape) == 2 and x.is_floating_point() and 4 in x.shape:
        total = total + first + sum(rest)
    if x.shape[1]:
        total = total * len(rest)
    return net.b(torch.cat([total] * 4, 1))


def numpy_spelling(net, x):
    h = torch.cat([net.a(input=x)[:, :4], net.a(x)[:, 4:]], axis=1)
    return net.b(torch.relu(input=h) - h.mean(axis=1, keepdims=True))


@pytest.mark.parametrize(
    "forward",
    [
        in_place_on_a_view, in_place_not_used, in_place_on_its_own, written_by_index, sized, looped, numpy_spelling,
        lambda net, x: {"out": net.b(net.a(x)), "more": [x, (net.a(x).T,)]},
    ],
)  # fmt: skip
def test_forwards_are_followed(forward):
    torch.manual_seed(0)
    network = Network(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3))
    graph = gs.trace(network, torch.zeros(2, 4))
    x = torch.randn(5, 4)
    equal(graph(x), network(x))


def test_arguments_without_an_example_keep_their_defaults():
    class Optional(nn.Module):
        def forward(self, x, y=None, factor=3):
            return x * factor if y is None else y

    graph = gs.trace(Optional(), torch.zeros(2, 4))
    assert [spec.name for spec in graph.inputs] == ["x"]
    equal(graph(torch.ones(1, 4)), torch.full((1, 4), 3.0))


def test_inputs_say_what_they_are():
    graph = gs.trace(nn.Embedding(7, 4).double(), torch.zeros(1, 5, dtype=torch.int64))
    (spec,) = graph.inputs
    assert (spec.shape[1:], spec.dtype) == ((5,), torch.int64)
    assert graph(torch.zeros(3, 5, dtype=torch.int64)).dtype == torch.float64


def branches(net, x):
    if net.a(x).sum() > 0:
        return x
    return net.b(net.a(x))


def reads_a_number(net, x):
    return net.b(net.a(x)) * float(x.max())


def reads_an_item(net, x):
    return net.b(net.a(x)) * x.max().item()


def looks_inside(net, x):
    return net.b(net.a(x)) if 1.0 in x else x


def wrong_width(net, x):
    return net.b(x)


@pytest.mark.parametrize(
    ("forward", "line", "reason"),
    [
        (branches, "if net.a(x).sum() > 0:", "control flow depends on the values of a tensor"),
        (reads_a_number, "return net.b(net.a(x)) * float(x.max())", "a number is read out of a tensor"),
        (reads_an_item, "return net.b(net.a(x)) * x.max().item()", ""),
        (looks_inside, "return net.b(net.a(x)) if 1.0 in x else x", "`in` depends on the values of a tensor"),
        (wrong_width, "return net.b(x)", ""),
    ],
)
def test_what_cannot_be_followed_says_where_and_why(forward, line, reason):
    number = forward.__code__.co_firstlineno
    with pytest.raises(gs.TraceError, match=rf"test_trace\.py:\d+ in {forward.__name__}: `.*`: {reason}") as caught:
        gs.trace(Network(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3)), torch.zeros(2, 4))
    assert f"`{line}`" in str(caught.value)
    found = re.search(r"test_trace\.py:(\d+)", str(caught.value))
    assert found is not None
    assert number < int(found[1]) <= number + 2


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (Two(), torch.zeros(2, 4), r"Two\.forward needs an example for its argument y"),
        (nn.Linear(4, 2), [torch.zeros(2, 4)] * 2, "forward takes 1 inputs, 2 given"),
        (nn.Linear(4, 2), torch.tensor(1.0), r"example inputs are tensors \[batch, \.\.\.\]"),
        (nn.Linear(4, 2), torch.zeros(2, 3), "Linear"),
    ],
)
def test_wrong_inputs_are_refused(network, inputs, message):
    with pytest.raises(gs.SurgeryError, match=message):
        gs.trace(network, inputs)


def test_of_what_is_wrapped_the_module_inside_is_traced():
    network, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(2, 4)
    for wrapped in (torch.compile(network), nn.DataParallel(network), nn.DataParallel(torch.compile(network))):
        graph = gs.trace(wrapped, x)
        assert torch.equal(graph(x), network(x))
        assert graph.lineage[0]["model"] == "Sequential"
        assert [space.name for space in graph.spaces] == ["0"]


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 6)

    def forward(self, x):
        return self.b(self.a(x).relu())


def test_what_is_compiled_inside_is_followed_as_it_is_written(capfd):
    """By each way to compile; also after it has run, and where the module is kept."""
    for way in ("module", "in place", "forward", "forward of all"):
        torch.manual_seed(0)
        network = Network(lambda net, x: net.head(net.body(x).relu()), body=Body(), head=nn.Linear(6, 2)).eval()
        x = torch.randn(3, 4)
        expected = network(x)
        if way == "module":
            network.body = torch.compile(network.body, backend="eager")
        elif way == "in place":
            network.body.compile(backend="eager")
        else:
            part = network.body if way == "forward" else network
            part.forward = torch.compile(part.forward, backend="eager")
        for run in (False, True):
            graph = gs.trace(network, x)
            assert {space.size for space in graph.spaces} == {8, 6}, (way, run)
            assert set(graph.tensors()) == set(network.state_dict())
            torch.testing.assert_close(graph(x), expected)
            torch.testing.assert_close(network(x), expected)
    assert capfd.readouterr().err == "", "the compiler says nothing of sizes that are tried"


GIVEN = {}


def test_a_forward_that_was_given_is_not_kept_whole_as_its_copy_would_have_other_weights():
    """What it works on is found nowhere in it."""
    network = nn.Sequential(nn.Linear(4, 4), Body(), nn.Linear(6, 2)).eval()
    GIVEN["body"] = network[1]
    network[1].forward = lambda x: GIVEN["body"].b(GIVEN["body"].a(x).relu())
    with pytest.raises(gs.TraceError, match="Linear is made in forward"):
        gs.trace(network, torch.zeros(2, 4))


class Holding(nn.Module):
    """Functions in its attributes hold the model, its layers and weights, in each way that Python has."""

    def __init__(self, kind, opaque):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.w, self.opaque = nn.Parameter(torch.rand(6)), opaque
        layer, weight, other = self.b, self.w, self.a.bias

        def nested(x):
            return (lambda y: self.b(y) * self.w)(x)

        self.step = {
            "lambda": lambda x: self.b(x) * self.w,
            "what is computed from a weight": lambda x: self.b(x) * (2 * self.w),
            "layer and weight": lambda x: layer(x) * weight,
            "two weights": lambda x: layer(x) * weight + other,
            "default": lambda x, layer=layer, *, weight=weight: layer(x) * weight,
            "mode": lambda x: self.b(x) * self.w if self.training else self.b(x),
            "method": self.method,
            "partial": partial(Holding.method, self),
            "function in a function": nested,
        }[kind]
        self.steps = {"all": [self.step, (self.b.forward, torch.relu)]}

    def method(self, x):
        return self.b(x) * self.w

    def forward(self, x):
        x = self.a(x).relu()
        if self.opaque and float(x.sum()) > 1e9:
            return self.c(x)
        x = self.steps["all"][1][1](self.steps["all"][1][0](x))
        return self.c(self.step(self.steps["all"][0](x)))


HOLDING = ["lambda", "what is computed from a weight", "layer and weight", "two weights", "default", "mode", "method"]


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("kind", [*HOLDING, "partial", "function in a function"])
def test_functions_in_attributes_that_hold_the_model_hold_its_copy(kind, opaque):
    """A part that is kept whole has them as well; all copies follow their own weights, and none the original's."""
    torch.manual_seed(0)

    def made():
        return nn.Sequential(nn.Linear(4, 4), Holding(kind, opaque)).double()

    network, x = made(), torch.randn(3, 4, dtype=torch.float64)
    graph = gs.trace(network, x)
    assert bool(graph.frozen) == opaque
    other = made()
    other.load_state_dict({name: 1.5 * tensor for name, tensor in network.state_dict().items()})
    for copied in (graph.copy(), graph.copy().copy()):
        with torch.no_grad():
            for name, tensor in copied.tensors().items():
                tensor.copy_(other.get_parameter(name))
        assert_same_in_both_modes(copied, other, x)
    assert_same_in_both_modes(graph, network, x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_computed_again_in_the_backward_is_followed(reentrant):
    network = Network(
        lambda net, x: net.b(checkpoint(net.a, x, use_reentrant=reentrant)), a=nn.Linear(4, 6), b=nn.Linear(6, 2)
    )
    x = torch.randn(3, 4, requires_grad=True)
    graph = gs.trace(network, x)
    assert [space.size for space in graph.spaces] == [6]
    torch.testing.assert_close(graph(x), network(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_models_are_refused():
    scripted = torch.jit.script(nn.Linear(4, 3))
    with pytest.raises(gs.TraceError, match="Linear: is scripted, and has no Python forward; trace the module it was"):
        gs.trace(scripted, torch.zeros(2, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_int8_weights_are_refused():
    network = torchvision.models.quantization.mobilenet_v2(quantize=False).eval()
    assert "features.0.0" in {s.name for s in gs.trace(network, torch.zeros(2, 3, 32, 32)).spaces}
    int8 = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear})
    with pytest.raises(gs.TraceError, match="0: its weights are int8; trace the network before it is converted"):
        gs.trace(int8, torch.zeros(2, 4))


class Careful(nn.Linear):
    """Asks where its input is, and of which precision."""

    def forward(self, x):
        if x.device.type == "meta" or x.device == torch.device("meta"):
            return x
        with torch.autocast(device_type=x.device.type, enabled=False):
            y = super().forward(x)
        if x.device != torch.device("cpu"):
            y = -y
        precise = x.dtype if x.dtype == torch.float64 else torch.float32
        return y.to(precise).softmax(-1).to(x.dtype)


def test_networks_that_ask_for_device_and_precision_may_be_cast(tmp_path):
    """The trace is that of the network on the CPU, and keeps what was decided by the precision."""
    network = Careful(3, 4)
    graph = gs.trace(network, torch.zeros(2, 3))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph(x), network(x), rtol=0, atol=0)
    found = double(graph)(x.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, network.double()(x.double()), rtol=1e-6, atol=1e-6)
    save(graph, tmp_path / "m.pt")
    torch.testing.assert_close(load(tmp_path / "m.pt")(x), graph(x), rtol=0, atol=0)


def test_indices_are_no_numbers_of_another_precision():
    class Looked(nn.Embedding):
        def forward(self, x):
            return super().forward(x) if x.dtype == torch.int64 else x @ self.weight

    graph = gs.trace(Looked(3, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="finds False where the trace found True"):
        graph(torch.zeros(2, 3, dtype=torch.int64))
