"""Numbers that are computed from widths and are no sizes keep their old values, in every way into a tensor."""

import math

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts, assert_direct_sum, typed
from torch import nn

from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.deviation import deviation

WAYS = {
    "power": lambda h, n: h * n**-0.5,
    "math.sqrt": lambda h, n: h / math.sqrt(n),
    "quotient": lambda h, n: h / n,
    "in place": lambda h, n: (h + 0).div_(n),
    "assigned in place": lambda h, n: _assigned(h, n),
    "full": lambda h, n: h / torch.full([], n**0.5, dtype=h.dtype),
    "full of the size": lambda h, n: h + torch.full((n,), n, dtype=h.dtype),
    "full by name": lambda h, n: h + torch.full(fill_value=n, size=(h.shape[0], n), dtype=h.dtype),
    "full_like": lambda h, n: h * torch.full_like(h, n),
    "full_like by name": lambda h, n: h * torch.full_like(h, fill_value=n),
    "new_full": lambda h, n: h * h.new_full((), n),
    "new_full of the size": lambda h, n: h * h.new_full((h.shape[0], n), n),
    "new_tensor": lambda h, n: h * h.new_tensor(n),
    "new_tensor of a list": lambda h, n: h * h.new_tensor([n]),
    "tensor": lambda h, n: h * torch.tensor(n),
    "tensor of a list": lambda h, n: h * torch.tensor([1.0 * n]),
    "tensor of a root": lambda h, n: h / torch.sqrt(torch.tensor(n, dtype=h.dtype)),
    "scalar_tensor": lambda h, n: h * torch.scalar_tensor(n, dtype=h.dtype),
    "ones": lambda h, n: h * (torch.ones(n, dtype=h.dtype) * n),
    "fill_": lambda h, n: h * torch.empty_like(h).fill_(n),
    "masked_fill": lambda h, n: h.masked_fill(h > 0, n),
    "masked_fill_": lambda h, n: (h + 0).masked_fill_(h > 0, n),
    "where": lambda h, n: torch.where(h > 0, h, n),
    "setitem": lambda h, n: _written(h, n),
    "clamp": lambda h, n: (9 * h).clamp(-n, n),
    "clamp by name": lambda h, n: (9 * h).clamp(max=0.1 * n),
    "linspace": lambda h, n: h * torch.linspace(0, n, 5, dtype=h.dtype).sum(),
    "arange": lambda h, n: h * torch.arange(n, 20, dtype=h.dtype).sum(),
    "a step": lambda h, n: h * torch.arange(0, 100, n, dtype=h.dtype).sum(),
    "add by alpha": lambda h, n: h.add(h * h, alpha=n),
    "addcmul by value": lambda h, n: torch.addcmul(h, h, h, value=n),
    "lerp": lambda h, n: torch.lerp(h, h * h, 1 / n),
    "power of it": lambda h, n: h.abs() ** (1 / n),
    "remainder": lambda h, n: h % (1 / n),
    "leaky relu": lambda h, n: F.leaky_relu(h, 1 / n),
    "threshold": lambda h, n: F.threshold(h, 1 / n, n),
    "pad": lambda h, n: F.pad(h[..., None], (1, 1), value=n).mean(-1),
    "layer norm": lambda h, n: F.layer_norm(h[..., None].expand(-1, -1, 3) * 1.0, (3,), eps=n).mean(-1) + h,
    "a rounded number": lambda h, n: h * (n // 3),
    "the larger": lambda h, n: h * max(n, 6),
    "numel": lambda h, n: h / (h.numel() / h.shape[0]),  # noqa: ARG005
    "a whole shape": lambda h, n: h / math.prod(h.shape[1:]),  # noqa: ARG005
}


def _assigned(h, n):
    h = h + 0
    h *= n
    return h


def _written(h, n):
    h = h[..., None].repeat(1, 1, 2)
    h[..., 0] = n**0.5
    return h.mean(-1)


def network(way):
    return Network(lambda n, x: n.b(way(torch.tanh(n.a(x)), n.a(x).shape[1])), a=nn.Linear(3, 8), b=nn.Linear(8, 2))


@pytest.mark.parametrize("way", WAYS)
def test_a_number_that_is_computed_from_a_width_keeps_its_value(way):
    graph = assert_contracts(network(WAYS[way]), (3,))
    assert [space.size for space in graph.spaces] == [8]
    graph, x, _ = typed(network(WAYS[way]), (3,))
    with torch.no_grad():
        for size in (9, 24):
            assert deviation(widen(graph, to={"a": size})(*x), graph(*x)) < 1e-12


FOLLOWING = {
    "beside the batch": lambda h: h / (h.shape[0] * h.shape[1]),
    "number of elements": lambda h: h / h.numel(),
    "beside positions": lambda h: h / math.prod(h.shape[1:]),
    "all of them": lambda h: h / math.prod(h.shape),
    "laid out together": lambda h: h * h.flatten(1).shape[1] ** -0.5,
    "in a factory": lambda h: h / torch.full((), h.shape[0] * h.shape[1] * h.shape[2], dtype=h.dtype),
    "with what the mode says": lambda h: h / h.shape[1],
}


@pytest.mark.parametrize("way", FOLLOWING)
def test_what_follows_the_batch_or_the_resolution_goes_on_doing_so(way):
    net = Network(
        lambda n, x: n.b(FOLLOWING[way](torch.tanh(n.a(x)))).mean((2, 3)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1)
    )
    graph, x, net = typed(net, (3, 4, 4))
    wide, small = widen(graph, to={"a": 13}), compress(graph, {"a": [0, 1, 5]})
    generator = torch.Generator().manual_seed(1)
    for shape in ((2, 3, 4, 4), (5, 3, 4, 4), (1, 3, 6, 9)):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            assert deviation(wide(x), net(x)) < 1e-12
    with torch.no_grad():
        net.b.weight[:, [2, 3, 4, 6, 7]] = 0
        assert deviation(small(x), net(x)) < 1e-12


def test_the_mode_still_chooses_a_number():
    class Modes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            factor = h.shape[1] ** 0.5 if self.training else h.shape[1] ** -0.5
            return self.b(h * factor)

    graph, x, net = typed(Modes(), (3,))
    wide = widen(graph, to={"a": 11})
    for training in (True, False):
        net.train(training)
        wide.module.train(training)
        with torch.no_grad():
            assert deviation(wide(*x), net(*x)) < 1e-12


class Gpt(nn.Module):
    """Attention as GPT-2 has it: its scale is a tensor that is filled with the root of the size of a head of values."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        q, k, v = (each(x).unflatten(-1, (2, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2)
        scores = scores / torch.full([], v.size(-1) ** 0.5, dtype=scores.dtype, device=scores.device)
        future = torch.ones(4, 4, dtype=torch.bool).triu(1)
        scores = torch.where(future, torch.full([], torch.finfo(torch.float64).min, dtype=scores.dtype), scores)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_the_scale_of_attention_keeps_its_value():
    graph = assert_contracts(Gpt(), (4, 6))
    graph, x, net = typed(Gpt(), (4, 6))
    assert sorted((space.size, space.outer) for space in graph.spaces) == [(2, True), (4, False), (6, False)]
    with torch.no_grad():
        for space in graph.spaces:
            assert deviation(widen(graph, to={space.name: 2 * space.size + 1})(*x), net(*x)) < 1e-12
        values = next(space for space in graph.spaces if space.size == 6)
        small = compress(graph, {values.name: [0, 2, 5]})
        net.out.weight.unflatten(1, (2, 6))[:, :, [1, 3, 4]] = 0
        assert deviation(small(*x), net(*x)) < 1e-12


def test_networks_may_calculate_with_other_numbers():
    """The size in the call may differ, and what it is filled with then is computed for each network."""

    def of(size):
        return Network(
            lambda n, x: n.b(torch.relu(n.a(x)) + torch.full((n.a(x).shape[1],), n.a(x).shape[1], dtype=x.dtype)),
            a=nn.Linear(3, size), b=nn.Linear(size, 2),
        )  # fmt: skip

    graphs = [typed(of(size), (3,))[0] for size in (8, 8, 6)]
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert deviation(concatenate(graphs[:2])(x), (graphs[0](x) + graphs[1](x)) / 2) < 1e-12
    assert_direct_sum(graphs[1:], [x], apart="full")
