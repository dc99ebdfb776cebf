"""Ways in which Python or torch lets a forward ask or act, as small networks, and what a trace has to make of each."""

import copy
import functools
import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from contracts import Network
from torch import is_tensor as torch_is_tensor
from torch import nn

import graphsurgery as gs
from graphsurgery.network.outputs.naming import named_outputs, run

WIDTH = 6


def network(forward, **more):
    torch.manual_seed(0)
    layers = {"a": nn.Linear(4, WIDTH), "bn": nn.BatchNorm1d(WIDTH), "b": nn.Linear(WIDTH, 3), **more}
    forward = forward if "bn" in forward.__code__.co_names else _normed(forward)
    return Network(forward, **layers).double()


def _normed(forward):
    """With a norm behind it, so that a mode that is not followed shows."""

    def followed(net, x):
        y = forward(net, x)
        h = net.bn(net.a(x).transpose(1, 2)).transpose(1, 2)
        return y, net.b(h)

    followed.__name__ = forward.__name__
    return followed


def example(batch=2, length=5, seed=0):
    return torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(module, x):
    """The gradient of everything that is trained, and of the input, by name."""
    x = x.clone().requires_grad_()
    named = {**dict(module.named_parameters()), "input": x}
    trained = {name: t for name, t in named.items() if t.requires_grad}
    torch.manual_seed(0)
    out = [t for t in named_outputs(module(x * 1)).values() if t.requires_grad]
    found = torch.autograd.grad(sum(t.sin().sum() for t in out), list(trained.values()), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(trained.items(), found, strict=True)}


def assert_same(module, traced, x):
    """Values in both modes, statistics and gradients are the same."""
    module, traced = copy.deepcopy(module), copy.deepcopy(traced)
    for training in (False, True):
        expected, found = run(module.train(training), [x], 0), run(traced.train(training), [x], 0)
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)
        learnt = dict(module.named_buffers())
        for name, buffer in traced.named_buffers():
            if name in learnt:  # else a constant of the forward
                torch.testing.assert_close(buffer, learnt[name])
    expected, found = gradients(module, x), gradients(traced, x)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


def follow(forward, *, check, **layers):
    module = network(forward, **layers)
    return module, gs.trace(module, example(), check=check)


def run_before(module, *sizes):
    """The module, after it was run in evaluation on inputs of these batches and lengths."""
    with torch.no_grad():
        for seed, (batch, length) in enumerate(sizes):
            module.eval()(example(batch, length, seed=100 + seed))
    return module.train()


def hidden(net, x):
    return torch.relu(net.a(x))


# Questions about types ----------------------------------------------------------------------------------------------


def is_instance(net, x):
    return net.b(2 * hidden(net, x) if isinstance(x, torch.Tensor) else hidden(net, x))


def is_tensor(net, x):
    return net.b(2 * hidden(net, x) if torch.is_tensor(x) else hidden(net, x))


def is_tensor_by_name(net, x):
    return net.b(2 * hidden(net, x) if torch_is_tensor(x) else hidden(net, x))


def is_tensor_to_a_script(net, x):
    return net.b(2 * hidden(net, x) if torch.jit.isinstance(x, torch.Tensor) else hidden(net, x))


def are_tensors_to_a_script(net, x):
    return net.b(2 * hidden(net, x) if torch.jit.isinstance([x, x], list[torch.Tensor]) else hidden(net, x))


def type_is(net, x):
    return net.b(2 * hidden(net, x) if type(x) is torch.Tensor else hidden(net, x))


def type_equals(net, x):
    return net.b(2 * hidden(net, x) if type(x) == torch.Tensor else hidden(net, x))  # noqa: E721


def subclass(net, x):
    return net.b(2 * hidden(net, x) if issubclass(type(x.shape), tuple) else hidden(net, x))


def shape_is_tuple(net, x):
    return net.b(2 * hidden(net, x) if isinstance(x.shape, tuple) else hidden(net, x))


def size_is_int(net, x):
    return net.b(2 * hidden(net, x) if isinstance(x.shape[1], int) else hidden(net, x))


def size_is_no_bool(net, x):
    return net.b(hidden(net, x) if isinstance(x.shape[1], bool) else 2 * hidden(net, x))


def weight_is_parameter(net, x):
    return net.b(2 * hidden(net, x) if isinstance(net.a.weight, nn.Parameter) else hidden(net, x))


def result_is_no_parameter(net, x):
    return net.b(hidden(net, x) if isinstance(net.a.weight * 1, nn.Parameter) else 2 * hidden(net, x))


def has_no_such_attribute(net, x):
    return net.b(hidden(net, x) if hasattr(x, "foo") else 2 * hidden(net, x))


def has_attribute(net, x):
    return net.b(2 * hidden(net, x) if hasattr(x, "shape") and hasattr(x.shape, "numel") else hidden(net, x))


def attribute_or_default(net, x):
    return net.b(hidden(net, x) * getattr(x, "scale", 2.0))


def tensor_is_not_callable(net, x):
    return net.b(hidden(net, x) if callable(x) or callable(x.shape) else 2 * hidden(net, x))


def method_is_callable(net, x):
    return net.b(2 * hidden(net, x) if callable(x.relu) else hidden(net, x))


def pattern_of_a_shape(net, x):
    match x.shape:
        case (_, _, channels):
            return net.b(hidden(net, x) * channels)
        case _:
            return net.b(hidden(net, x))


def pattern_of_a_size(net, x):
    match x.shape[-1]:
        case int(channels):
            return net.b(hidden(net, x) * channels)
        case _:
            return net.b(hidden(net, x))


def pattern_of_a_result(net, x):
    match {"out": hidden(net, x)}:
        case {"out": y}:
            return net.b(2 * y)
        case _:
            return net.b(hidden(net, x))


def pattern_of_a_tensor(net, x):
    match x:
        case torch.Tensor():
            return net.b(2 * hidden(net, x))
        case _:
            return net.b(hidden(net, x))


# dtypes and devices -------------------------------------------------------------------------------------------------


def dtype_is_floating(net, x):
    return net.b(hidden(net, x) if x.dtype.is_floating_point else x.to(torch.float64) * 0)


def dtype_of_indices(net, x):
    index = x.argmax(-1, keepdim=True)
    return net.b(hidden(net, x) if index.dtype.is_floating_point else 2 * hidden(net, x))


def dtype_is_complex(net, x):
    return net.b(hidden(net, x) if x.dtype.is_complex or x.is_complex() else 2 * hidden(net, x))


def dtype_size(net, x):
    return net.b(hidden(net, x) * (2.0 if x.dtype.itemsize == 8 else 1.0))


def dtype_among(net, x):
    return net.b(hidden(net, x) if x.dtype in (torch.float16, torch.bfloat16) else 2 * hidden(net, x))


def dtype_looked_up(net, x):
    return net.b(hidden(net, x) * {torch.float64: 2.0, torch.float32: 2.0}[x.dtype])


def on_cpu(net, x):
    return net.b(2 * hidden(net, x) if x.is_cpu and not x.is_cuda and not x.is_meta else hidden(net, x))


def device_type(net, x):
    return net.b(2 * hidden(net, x) if x.device.type == "cpu" and x.device.index is None else hidden(net, x))


def layout(net, x):
    return net.b(2 * hidden(net, x) if x.layout == torch.strided and not x.is_sparse else hidden(net, x))


def smallest_number(net, x):
    h = hidden(net, x)
    return net.b(h.masked_fill(h > 1, torch.finfo(h.dtype).eps))


# Sizes as Python numbers --------------------------------------------------------------------------------------------


def over_range(net, x):
    return sum(net.b(hidden(net, x[:, t])) for t in range(x.shape[1]))


def over_range_by_two(net, x):
    return sum(net.b(hidden(net, x[:, t])) for t in range(0, x.shape[1], 2))


def over_list_of_range(net, x):
    return sum((t + 1) * net.b(hidden(net, x[:, t])) for t in list(range(x.shape[1]))[::-1])


def over_unbound(net, x):
    return sum(net.b(hidden(net, part)) for part in x.unbind(1))


def over_split(net, x):
    return sum(net.b(hidden(net, part)).sum(1) for part in x.split(1, 1))


def over_split_function(net, x):
    return sum(net.b(hidden(net, part)).sum(1) for part in torch.split(x, 2, dim=1))


def over_chunks(net, x):
    return sum(net.b(hidden(net, part)).sum(1) for part in x.chunk(7, 1))


def over_zip(net, x):
    pairs = zip(x.unbind(1), x.flip(1).unbind(1), strict=True)
    return sum(net.b(hidden(net, p + 2 * q)) for p, q in pairs)


def over_enumerate(net, x):
    return sum((i + 1) * net.b(hidden(net, part)) for i, part in enumerate(x.unbind(1)))


def over_rows(net, x):
    return sum(net.b(hidden(net, row)) for row in x.transpose(0, 1))


def repeated_list(net, x):
    return net.b(hidden(net, x)).sum(1) * len([0] * x.shape[1])


def sum_of_a_repeated_list(net, x):
    return net.b(hidden(net, x)).sum(1) * sum([1.0] * x.shape[1])


def length(net, x):
    return net.b(hidden(net, x)).sum(1) / len(x.transpose(0, 1))


def length_of_parts(net, x):
    return net.b(hidden(net, x)).sum(1) / len(x.split(1, 1))


def mask_as_long_as_the_batch(net, x):
    steps = torch.arange(x.shape[1]).expand(len(x), x.shape[1])
    return net.b(hidden(net, x)) * (steps < 3).unsqueeze(-1)


def as_int(net, x):
    return net.b(hidden(net, x)) * int(x.shape[1] / 2)


def as_float(net, x):
    return net.b(hidden(net, x)) * float(x.shape[1])


def rounded(net, x):
    return net.b(hidden(net, x)) * round(x.shape[1] / 2)


def floor_and_ceil(net, x):
    return net.b(hidden(net, x)) * math.floor(x.shape[1] / 2) * math.ceil(x.shape[1] / 3)


def square_root(net, x):
    return net.b(hidden(net, x)) / math.sqrt(x.shape[1])


def divided_with_rest(net, x):
    whole, rest = divmod(x.shape[1], 2)
    return net.b(hidden(net, x)) * (whole + 10 * rest)


def largest(net, x):
    return net.b(hidden(net, x)) * max(x.shape[1], 3) * min(x.shape[1], 6)


def numpy_number(net, x):
    return net.b(hidden(net, x)) * float(np.sqrt(int(x.shape[1])))


def numpy_asked(net, x):
    return net.b(hidden(net, x)) * float(np.asarray(x.shape[1]) + 1)


def list_index(net, x):
    return net.b(hidden(net, x)) * [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0][x.shape[1]]


def list_slice(net, x):
    return net.b(hidden(net, x)) * sum([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0][: x.shape[1]])


def key_in_a_text(net, x):
    return net.b(hidden(net, x)) * {"5 tokens": 2.0}.get(f"{x.shape[1]} tokens", 3.0)


def key_by_percent(net, x):
    return net.b(hidden(net, x)) * {"5": 2.0}.get("%d" % x.shape[1], 3.0)  # noqa: UP031


def key_by_str(net, x):
    return net.b(hidden(net, x)) * {"5": 2.0}.get(str(x.shape[1]), 3.0)


def key_of_a_table(net, x):
    return net.b(hidden(net, x)) * {5: 2.0}.get(x.shape[1], 3.0)


def member_of_a_set(net, x):
    return net.b(hidden(net, x)) * (2.0 if x.shape[1] in {5, 6} else 3.0)


def member_of_a_tuple(net, x):
    return net.b(hidden(net, x)) * (2.0 if x.shape[1] in (5, 8) else 3.0)


def size_in_a_shape(net, x):
    return net.b(hidden(net, x)) * (2.0 if 5 in x.shape else 3.0)


def shape_equals(net, x):
    return net.b(hidden(net, x)) * (2.0 if x.shape[1:] == (5, 4) else 3.0)


def pattern_of_a_number(net, x):
    match x.shape[1]:
        case 5:
            return net.b(hidden(net, x))
        case _:
            return 2 * net.b(hidden(net, x))


@functools.lru_cache
def _table(n):
    return torch.arange(n, dtype=torch.float64)


def cached_table(net, x):
    return net.b(hidden(net, x)) + _table(x.shape[1])[:, None]


def copied(net, x):
    h = copy.copy(x) + 1
    return net.b(hidden(net, h)) + net.b(hidden(net, x))


# Gradients ----------------------------------------------------------------------------------------------------------


class Round(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx, x):  # noqa: ARG004
        return x.round()

    @staticmethod
    def backward(ctx, slope):  # noqa: ARG004
        return slope


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return -ctx.factor * slope, None


class Swish(torch.autograd.Function):
    """Saves memory; the gradient is that of autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return slope * (s + x * s * (1 - s))


class TwoSteps(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return torch.sign(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, slope):  # noqa: ARG004
        return slope.clamp(-1, 1)


def straight_through(net, x):
    return net.b(Round.apply(3 * hidden(net, x)))


def reversed_gradient(net, x):
    return net.b(Reverse.apply(hidden(net, x), 0.5))


def own_swish(net, x):
    return net.b(Swish.apply(net.a(x)))


def in_two_steps(net, x):
    return net.b(TwoSteps.apply(net.a(x)))


def without_gradient(net, x):
    with torch.no_grad():
        h = hidden(net, x)
    return net.b(h)


def without_gradient_inside(net, x):
    h = net.a(x)
    with torch.no_grad():
        scale = h.abs().mean(-1, keepdim=True) + 1
    return net.b(torch.relu(h) / scale)


def grad_mode_set(net, x):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    h = hidden(net, x)
    torch.set_grad_enabled(before)
    return net.b(h)


@torch.no_grad()
def _frozen(net, x):
    return hidden(net, x).chunk(2, -1)


def decorated(net, x):
    return net.b(torch.cat(_frozen(net, x), -1))


def with_gradient_again(net, x):
    with torch.no_grad():
        h = net.a(x)
        with torch.enable_grad():
            y = net.b(torch.relu(h))
    return y


def output_without_gradient(net, x):
    with torch.no_grad():
        y = hidden(net, x)
    return net.b(hidden(net, x)), y


def detached(net, x):
    return net.b(hidden(net, x).detach()) + net.b(hidden(net, x))


def data(net, x):
    return net.b(hidden(net, x).data)


def asks_for_gradients(net, x):
    h = hidden(net, x)
    return net.b(2 * h if h.requires_grad else h)


# Writes, randomness, contexts ---------------------------------------------------------------------------------------


def written_in_evaluation(net, x):
    y = net.b(hidden(net, x)).sigmoid()
    if net.training:
        return y
    y[..., 0:2] = y[..., 0:2] * 2 - 0.5
    return y


def written_in_training(net, x):
    h = hidden(net, x)
    y = h + 1
    if net.training:
        y[..., :2] *= 3
    return net.b(y)


def noise_in_training(net, x):
    h = hidden(net, x)
    if net.training:
        h = h + torch.empty_like(h).uniform_(-0.5, 0.5)
    return net.b(h)


def normal_in_training(net, x):
    h = hidden(net, x)
    if net.training:
        h = h + h.new_empty(h.shape).normal_() * 0.1
    return net.b(h)


def noise_like(net, x):
    h = hidden(net, x)
    return net.b(h + torch.randn_like(h) if net.training else h)


def noise_of_fixed_shape(net, x):
    h = hidden(net, x)
    return net.b(h + torch.rand(WIDTH, dtype=torch.float64) if net.training else h)


def python_draws(net, x):
    return net.b(hidden(net, x) * random.random())


def numpy_draws(net, x):
    return net.b(hidden(net, x) * np.random.rand())  # noqa: NPY002


def torch_draws_outside(net, x):
    noise = torch.empty(WIDTH, dtype=torch.float64)
    noise.normal_()
    return net.b(hidden(net, x) + noise)


def accumulated(net, x):
    total = torch.zeros(3, dtype=torch.float64)
    total += net.b(hidden(net, x)).sum((0, 1))
    return total


def half_precision(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net.b(hidden(net, x).float().double())
    return y


# What stays from one call to the next ------------------------------------------------------------------------------


def grid_for_the_last_size(net, x):
    if getattr(net, "size", None) != x.shape[1:]:
        net.grid = torch.arange(x.shape[1], dtype=x.dtype)
        net.size = x.shape[1:]
    return net.b(hidden(net, x)) + net.grid[:, None]


def grid_that_has_the_size(net, x):
    if not hasattr(net, "grid") or net.grid.shape[0] != x.shape[1]:
        net.grid = torch.linspace(0, 1, x.shape[1], dtype=x.dtype)
    return net.b(hidden(net, x)) * net.grid[:, None]


def table_that_grows(net, x):
    if not hasattr(net, "table") or net.table.shape[0] < x.shape[1]:
        net.table = torch.arange(x.shape[1], dtype=x.dtype).cos()
    return net.b(hidden(net, x)) + net.table[: x.shape[1], None]


def table_by_text(net, x):
    tables = net.__dict__.setdefault("tables", {})
    key = f"{x.shape[1]}"
    if key not in tables:
        tables[key] = torch.arange(x.shape[1], dtype=x.dtype)
    return net.b(hidden(net, x)) + tables[key][:, None]


def counted_calls(net, x):
    net.calls = getattr(net, "calls", 0) + 1
    return net.b(hidden(net, x))


def last_result(net, x):
    net.last = hidden(net, x)
    net.seen = [net.last]
    return net.b(net.seen[-1])


def table_by_size(net, x):
    tables = net.__dict__.setdefault("tables", {})
    if x.shape[1] not in tables:
        tables[x.shape[1]] = torch.arange(x.shape[1], dtype=x.dtype)
    return net.b(hidden(net, x)) + tables[x.shape[1]][:, None]


def only_the_first_call(net, x):
    first = not hasattr(net, "begun")
    net.begun = True
    return net.b(hidden(net, x) * (2 if first else 1))


def adds_the_last_result(net, x):
    y = net.b(hidden(net, x))
    last, net.last = getattr(net, "last", None), y.detach()
    return y if last is None or last.shape != y.shape else y + last


def weight_kept(net, x):
    if not hasattr(net, "doubled"):
        net.doubled = net.a.weight * 2
    return net.b(torch.relu(x @ net.doubled.t()))


# Randomness ---------------------------------------------------------------------------------------------------------


def mixed_up(net, x):
    y = net.b(hidden(net, x))
    return y + y[torch.randperm(x.shape[0])] if net.training else y


def shuffled_tokens(net, x):
    y = net.b(hidden(net, x))
    return y[:, torch.randperm(x.shape[1])] if net.training else y


def bernoulli(net, x):
    y = net.b(hidden(net, x))
    return y * torch.bernoulli(y.sigmoid().detach()) if net.training else y


def drawn_mask(net, x):
    y = hidden(net, x)
    return net.b(y * (torch.rand_like(y) < 0.7) if net.training else y)


def gumbel(net, x):
    y = net.b(hidden(net, x))
    return F.gumbel_softmax(y, dim=-1) if net.training else y.softmax(-1)


def reparametrized(net, x):
    y = net.b(hidden(net, x))
    return y + y.exp() * torch.randn_like(y) if net.training else y


def kept_or_not(net, x):
    y = hidden(net, x)
    return net.b(y * torch.empty(x.shape[0], 1, 1, dtype=x.dtype).bernoulli_(0.5) if net.training else y)


def drawn_rows(net, x):
    y = net.b(hidden(net, x))
    if not net.training:
        return y[:, 0]
    return y[torch.arange(x.shape[0]), torch.multinomial(torch.ones(x.shape[0], x.shape[1]), 1)[:, 0]]


def draws_in_evaluation_too(net, x):
    y = net.b(hidden(net, x))
    return y + torch.rand_like(y)


def dropout_function(net, x):
    return net.b(F.dropout(hidden(net, x), 0.3, net.training))


def dropout_always(net, x):
    return net.b(F.dropout(hidden(net, x), 0.3))


def alpha_dropout(net, x):
    return net.b(F.alpha_dropout(hidden(net, x), 0.3, net.training))


def channels_dropped(net, x):
    return net.b(F.dropout1d(hidden(net, x), 0.3, net.training))


def random_slopes(net, x):
    return net.b(F.rrelu(net.a(x), training=net.training))


def own_generator(net, x):
    generator = torch.Generator().manual_seed(3)
    return net.b(hidden(net, x)) + torch.randn(3, generator=generator, dtype=x.dtype)


def seeds_itself(net, x):
    torch.manual_seed(5)
    return net.b(hidden(net, x)) + torch.randn(3, dtype=x.dtype)


RIGHT = (
    is_instance, is_tensor, is_tensor_by_name, is_tensor_to_a_script, are_tensors_to_a_script, type_is, type_equals,
    subclass,
    shape_is_tuple, size_is_int, size_is_no_bool,
    weight_is_parameter, result_is_no_parameter, has_no_such_attribute, has_attribute, attribute_or_default,
    tensor_is_not_callable, method_is_callable, pattern_of_a_shape, pattern_of_a_size, pattern_of_a_result,
    dtype_is_floating, dtype_of_indices, dtype_is_complex, dtype_size, dtype_among, dtype_looked_up, on_cpu,
    device_type, layout, smallest_number, divided_with_rest, square_root, floor_and_ceil,
    as_float, rounded, numpy_asked, cached_table, copied,
    straight_through, reversed_gradient, own_swish, in_two_steps, without_gradient, without_gradient_inside,
    grad_mode_set, decorated, with_gradient_again, output_without_gradient, detached, data,
    written_in_evaluation, written_in_training, noise_in_training, normal_in_training, noise_like, noise_of_fixed_shape,
    accumulated, mixed_up, shuffled_tokens, bernoulli, drawn_mask, gumbel, reparametrized, kept_or_not, drawn_rows,
    draws_in_evaluation_too, dropout_function, dropout_always, alpha_dropout, channels_dropped, random_slopes,
    repeated_list, length, length_of_parts, mask_as_long_as_the_batch,
)  # fmt: skip
"""The trace does the same, at every length that the module takes."""

HELD = (
    over_range, over_range_by_two, over_list_of_range, over_unbound, over_split, over_split_function, over_chunks,
    over_zip, over_enumerate, over_rows, as_int, sum_of_a_repeated_list,
    largest, numpy_number, list_index, list_slice, key_by_percent, member_of_a_tuple, size_in_a_shape,
    shape_equals, pattern_of_a_number,
)  # fmt: skip
"""The trace does the same where the length is the same, and refuses another one by name of the line."""

REFUSED = (
    (key_of_a_table, "a size that follows the input cannot be looked up"),
    (member_of_a_set, "a size that follows the input cannot be looked up"),
    (python_draws, "draws random numbers outside the graph"),
    (numpy_draws, "draws random numbers outside the graph"),
    (torch_draws_outside, "draws random numbers outside the graph"),
    (asks_for_gradients, "asks whether a gradient is wanted"),
    (half_precision, "under torch.autocast"),
    (table_by_size, "a size that follows the input cannot be looked up"),
    (own_generator, "draws from a generator of its own, which a graph does not have"),
    (seeds_itself, "draws random numbers outside the graph"),
)
"""The trace cannot do the same and says so."""

KEPT = (
    grid_for_the_last_size, grid_that_has_the_size, counted_calls, last_result,
)  # fmt: skip
"""What is kept from one call to the next changes nothing: the trace does the same at every length, whether the module
was run before or not."""

TABLES = (table_that_grows, table_by_text)
"""As these, where it was not run before; else the length may be held."""

FOUND = (pattern_of_a_tensor, only_the_first_call, adds_the_last_result, weight_kept)
"""The trace would do something else, which is found when it is compared with the module."""

SPELLED = (key_in_a_text, key_by_str)
"""The length is written into a text: a message, or a key that must be held."""


def name_of(case):
    return getattr(case, "__name__", None)
