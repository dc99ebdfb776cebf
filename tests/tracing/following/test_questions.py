"""Ways in which Python or torch lets a forward ask or act: the trace does what the module does, or is refused."""

import contextlib
import copy
import functools
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from asking import (
    FOUND,
    HELD,
    KEPT,
    REFUSED,
    RIGHT,
    SPELLED,
    TABLES,
    WIDTH,
    adds_the_last_result,
    assert_same,
    example,
    follow,
    hidden,
    name_of,
    network,
    only_the_first_call,
    own_swish,
    pattern_of_a_tensor,
    run_before,
    straight_through,
    weight_kept,
)
from contracts import Network
from torch import nn

import graphsurgery as gs
from graphsurgery.tracing.following import questions
from graphsurgery.tracing.likeness import comparing, verdicts

SIZES = ((2, 5), (1, 5), (3, 7), (2, 4))


@pytest.mark.parametrize("forward", [*RIGHT, *HELD, *SPELLED, *TABLES], ids=name_of)
@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_does_the_same_in_both_modes(forward, check):
    module, graph = follow(forward, check=check)
    assert "only as in evaluation" not in graph.lineage[0]
    for seed in (1, 2):
        assert_same(module, graph.module, example(seed=seed))


@pytest.mark.parametrize("forward", RIGHT, ids=name_of)
def test_does_the_same_at_another_length(forward):
    module, graph = follow(forward, check=True)
    assert_same(module, graph.module, example(3, 8, seed=1))


@pytest.mark.parametrize("forward", [*HELD, *SPELLED], ids=name_of)
def test_another_length_is_refused_by_the_line_that_asked(forward):
    _, graph = follow(forward, check=True)
    with pytest.raises(ValueError, match=r"asking\.py:\d+: `.*` finds .* where the trace found"):
        graph(example(2, 8))


@pytest.mark.parametrize("sizes", [(), ((2, 5),), ((1, 5),), ((3, 7), (2, 5))], ids=str)
@pytest.mark.parametrize("forward", KEPT, ids=name_of)
def test_what_is_kept_from_one_call_to_the_next_changes_nothing(forward, sizes):
    module = run_before(network(forward), *sizes)
    graph = gs.trace(module, example())
    for batch, length in SIZES:
        assert_same(module, graph.module, example(batch, length, seed=length))


@pytest.mark.parametrize("sizes", [((2, 5),), ((1, 5),), ((3, 7), (2, 5))], ids=str)
@pytest.mark.parametrize("forward", TABLES, ids=name_of)
def test_a_table_of_a_former_call_is_used_at_its_length(forward, sizes):
    module = run_before(network(forward), *sizes)
    graph = gs.trace(module, example())
    for batch in (1, 3):
        assert_same(module, graph.module, example(batch, seed=batch))
    with contextlib.suppress(ValueError):  # held
        assert_same(module, graph.module, example(2, 7))


@pytest.mark.parametrize("sizes", [(), ((2, 5),), ((3, 7),)], ids=str)
def test_a_network_that_remembers_is_refused(sizes):
    module = run_before(network(adds_the_last_result), *sizes)
    with pytest.raises(gs.TraceError, match=r"called again .* the model keeps something from one call to the next"):
        gs.trace(module, example())


@pytest.mark.parametrize(("forward", "message"), REFUSED, ids=name_of)
def test_is_refused(forward, message):
    with pytest.raises(gs.TraceError, match=message):
        follow(forward, check=True)


@pytest.mark.parametrize("forward", FOUND, ids=name_of)
def test_is_found_by_comparison(forward):
    with pytest.raises(
        gs.TraceError, match=r"its trace.*(differs from|has no gradient|has a gradient|does not)|the gradient of"
    ):
        follow(forward, check=True)


def scaled_behind_a_pattern(net, x):
    """The scale is 1, so that values tell nothing."""
    match x:
        case torch.Tensor():
            return net.b(net.a(x) * net.scale)
        case _:
            return net.b(net.a(x))


def unused(net, x):
    return net.b(net.a(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_parameter_that_the_trace_lacks_is_missed_where_it_has_a_gradient(dtype):
    layers = {"a": nn.Linear(4, WIDTH), "b": nn.Linear(WIDTH, 3)}
    network = Network(scaled_behind_a_pattern, {"scale": torch.ones(())}, **layers).to(dtype)
    with pytest.raises(gs.TraceError, match="in training scale has no gradient in its trace, and one in the model"):
        gs.trace(network, example().to(dtype))
    network.scale.requires_grad = False
    gs.trace(network, example().to(dtype))
    network.scale.requires_grad, network.rule = True, unused
    gs.trace(network, example().to(dtype))


def test_a_message_with_a_size_holds_nothing():
    def asserts(net, x):
        torch._assert(x.shape[1] > 0, f"{x.shape[1]} tokens")
        return net.b(hidden(net, x))

    _, graph = follow(asserts, check=True)
    assert graph(example(2, 9))[0].shape == (2, 9, 3)


# Layers that are not only their class -------------------------------------------------------------------------------


class Scaled(nn.Conv1d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, 2 * weight, bias)


class Centred(nn.InstanceNorm1d):
    def _apply_instance_norm(self, input):
        return super()._apply_instance_norm(input) + 1


class Computed(nn.Linear):
    """Its weight is a property."""

    def __init__(self, *args):
        super().__init__(*args)
        self.raw = nn.Parameter(self._parameters.pop("weight").detach())

    @property
    def weight(self):
        return self.raw * 2


class Renamed(nn.Linear):
    """Only the constructor is its own."""

    def __init__(self):
        super().__init__(4, 4)


def with_forward_hook():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, args, output: 2 * output)  # noqa: ARG005
    return layer


def with_pre_hook():
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))  # noqa: ARG005
    return layer


def with_keyword_hook():
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(lambda module, args, kwargs: ((3 * args[0],), kwargs), with_kwargs=True)  # noqa: ARG005
    return layer


def with_another_weight():
    """As torch.nn.utils.prune does: a hook puts a computed weight into the layer."""
    layer = nn.Linear(4, 4)
    layer.register_parameter("raw", nn.Parameter(layer._parameters.pop("weight").detach()))
    layer.register_buffer("kept", (torch.rand(4, 4) > 0.5).double())

    def put(module, args):  # noqa: ARG001
        module.weight = module.raw * module.kept

    layer.register_forward_pre_hook(put)
    return layer


def with_patched_forward():
    layer = nn.Linear(4, 4)
    layer.forward = (lambda self, x: F.linear(x, self.weight, self.bias).relu()).__get__(layer)
    return layer


LAYERS = {
    "own _conv_forward": lambda: Scaled(5, 5, 1),
    "own _apply_instance_norm": lambda: Centred(5, affine=True),
    "weight as a property": lambda: Computed(4, 4),
    "own constructor": Renamed,
    "forward hook": with_forward_hook,
    "pre-hook": with_pre_hook,
    "pre-hook with keywords": with_keyword_hook,
    "hook that computes the weight": with_another_weight,
    "patched forward": with_patched_forward,
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_a_layer_does_what_it_does(kind, check, tmp_path):
    torch.manual_seed(1)
    module, graph = follow(lambda net, x: net.b(hidden(net, net.own(x))), check=check, own=LAYERS[kind]())
    assert_same(module, graph.module, example(seed=1))
    gs.save(graph, tmp_path / "m.pt")
    assert_same(module, gs.load(tmp_path / "m.pt").module, example(seed=1))


@pytest.mark.parametrize("kind", ["forward hook", "pre-hook"])
def test_hooks_leave_the_layer_whole(kind):
    _, graph = follow(lambda net, x: net.b(hidden(net, net.own(x))), check=True, own=LAYERS[kind]())
    assert "own" in {node.target for node in graph.module.graph.nodes if node.op == "call_module"}


def test_hooks_of_the_network_itself_are_followed():
    module = network(lambda net, x: net.b(hidden(net, x)))
    module.register_forward_hook(lambda net, args, output: output * 2)  # noqa: ARG005
    module.register_forward_pre_hook(lambda net, args: (args[0] - 1,))  # noqa: ARG005
    assert_same(module, gs.trace(module, example()).module, example(seed=1))


def test_a_forward_that_is_patched_on_the_network_is_followed():
    module = network(lambda net, x: net.b(hidden(net, x)))
    module.forward = (lambda self, x: self.b(self.a(x).tanh())).__get__(module)
    graph = gs.trace(module, example())
    torch.testing.assert_close(graph(example(seed=1)), module(example(seed=1)))


def test_hooks_of_all_modules_are_refused():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(gs.TraceError, match="hooks are registered for every module"):
            gs.trace(network(lambda net, x: net.b(hidden(net, x))), example())
    finally:
        handle.remove()


# What stands around -------------------------------------------------------------------------------------------------


def test_decorated_and_open_signatures_are_followed():
    class Decorated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        @torch.no_grad()
        def forward(self, x, *rest, **options):
            assert not rest
            return self.a(x) * options.get("scale", 2.0)

    module = Decorated()
    graph = gs.trace(module, torch.randn(2, 4))
    x = torch.randn(3, 4)
    assert graph(x).equal(module(x))
    assert not graph(x).requires_grad


def test_a_function_with_its_own_gradient_is_kept_and_said():
    _, graph = follow(straight_through, check=True)
    assert any("Round has a gradient of its own" in frozen.reason for frozen in graph.frozen)
    with pytest.raises(gs.SurgeryError, match="KeptFunction"):
        gs.save(graph, "never.pt")


def test_a_function_with_the_gradient_of_autograd_is_followed():
    _, graph = follow(own_swish, check=True)
    assert [space.size for space in graph.spaces] == [WIDTH]


def test_indices_are_drawn_in_the_range_of_the_example(tmp_path):
    module = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 3))
    graph = gs.trace(module, torch.tensor([[3, 7, 11], [4, 9, 12]]))
    assert (graph.inputs[0].low, graph.inputs[0].high) == (3, 12)
    (drawn,) = graph.example_inputs(64)
    assert (int(drawn.min()), int(drawn.max())) == (3, 12)
    gs.save(graph, tmp_path / "m.pt")
    assert gs.load(tmp_path / "m.pt").inputs == graph.inputs


def test_a_comparison_can_be_left_out():
    follow(pattern_of_a_tensor, check=False)


def test_the_model_is_as_it_was():
    module = network(lambda net, x: net.b(net.bn(net.a(x).transpose(1, 2)).transpose(1, 2))).train()
    before = copy.deepcopy(module.state_dict())
    modes = [part.training for part in module.modules()]
    state = torch.get_rng_state()
    gs.trace(module, example())
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == modes
    for name, tensor in module.state_dict().items():
        assert tensor.equal(before[name])
    assert all(p.grad is None for p in module.parameters())


def test_what_the_models_own_train_leaves_in_evaluation_is_said():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.norm(x))

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

    graph = gs.trace(Frozen(), torch.randn(5, 4))
    (line,) = graph.lineage[0]["only as in evaluation"]
    assert line == "norm trains too here, while the model's own train() leaves it in evaluation"


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


def test_what_float64_does_not_show_is_rounding(monkeypatch):
    """Attention scales in another order than the model; with nothing allowed in float32, float64 has to tell."""
    monkeypatch.setattr(verdicts, "_ROUNDING", {torch.float64: 1e-10, torch.float32: 0.0})
    monkeypatch.setattr(verdicts, "_NOISE", 0.0)
    asked = []
    monkeypatch.setattr(comparing, "_in_double", spied(comparing._in_double, asked))
    gs.trace(Scores(), torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0)))
    assert asked
    with pytest.raises(gs.TraceError, match="its trace differs"):
        gs.trace(network(pattern_of_a_tensor).float(), example().float())


def spied(method, asked):
    def called(self):
        asked.append(self)
        return method(self)

    return called


REMEMBERING = [only_the_first_call, adds_the_last_result, weight_kept]


@pytest.mark.parametrize("forward", REMEMBERING, ids=name_of)
def test_what_is_kept_in_training_only_is_found_by_a_second_call(forward):
    def in_training(net, x):
        return forward(net, x) if net.training else net.b(hidden(net, x))

    with pytest.raises(gs.TraceError, match=r"called again .*the model keeps something|the gradient of"):
        follow(in_training, check=True)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_one_norm_in_other_directions_are_found(seed):
    """A part of the gradient is lost, and its norm may happen to be the same."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 4), network(weight_kept)).double()
    with pytest.raises(gs.TraceError, match=r"the gradient of 1\.a\.weight differs in its trace"):
        gs.trace(module, example())


def test_a_file_that_is_gone_says_nothing_of_the_next():
    """The next one may lie where it lay, with as many names."""
    for cached in [False, True] * 20:
        module = types.ModuleType("file_of_a_model")
        module.size = functools.lru_cache(len) if cached else len
        sys.modules["file_of_a_model"] = module
        with questions.truthful():
            assert module.size is len
        assert hasattr(module.size, "cache_info") is cached
        del sys.modules["file_of_a_model"], module
