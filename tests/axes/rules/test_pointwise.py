"""Pointwise operators with broadcasting."""

import operator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from contracts import Network, assert_contracts, assert_direct_sum, typed
from torch import nn

import graphsurgery as gs
from graphsurgery.network.operators import Trait, modules, operators
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.surgery.deviation import deviation

NEEDS = {nn.Threshold: (0.1, 0.2)}
VISION = {"stochastic_depth": [torchvision.ops.stochastic_depth]}
CASTS = (
    "bool", "int", "long", "float", "double", "half", "bfloat16", "cpu", "cuda", "to",
    "type", "type_as", "cdouble", "cfloat", "chalf",
)  # fmt: skip


def between(operator, **parameters):
    return Network(
        lambda net, x: net.b(operator(torch.sigmoid(net.a(x)), net)),
        {name: torch.zeros(*shape) for name, shape in parameters.items()},
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 2, 1),
    )


@pytest.mark.parametrize(
    "kind", [*modules(Trait.ELEMENTWISE), torchvision.ops.StochasticDepth], ids=lambda kind: kind.__name__
)
def test_modules(kind):
    arguments = (0.5, "row") if kind.__name__ == "StochasticDepth" else NEEDS.get(kind, ())
    module = kind(*arguments)
    dims = {"Dropout1d": (4,), "Dropout3d": (2, 2, 2)}.get(kind.__name__, (4, 4))
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(dims)]
    assert_contracts(nn.Sequential(convolution(3, 8, 1), module, convolution(8, 2, 1)), (3, *dims))


def options_of(name):
    """What an elementwise operator needs besides its tensor."""
    if name == "stochastic_depth":
        return (0.5, "row", False)
    if "dropout" in name:
        return (0.5, False)
    return {"threshold": (0.5, 0.25), "fill": (0.5,)}.get(name.strip("_"), ())


def written(spelling, h):
    """What an elementwise operator makes of a copy of h, in h's dtype and finite."""
    name = spelling if isinstance(spelling, str) else spelling.__name__
    operand = (h > 0.5) if "bitwise" in name or name in ("invert", "inv") else h.clone()
    if name == "dropout1d":
        return spelling(operand[:, :, 0], 0.5, False)[:, :, None]
    if name == "dropout3d":
        return spelling(operand[..., None], 0.5, False)[..., 0]
    options = options_of(name)
    value = getattr(operand, spelling)(*options) if isinstance(spelling, str) else spelling(operand, *options)
    return torch.nan_to_num(value.to(h.dtype), 0.5, 2.0, -2.0)


@pytest.mark.parametrize("first", "abcdefghijklmnopqrstuvwxyz")
def test_every_spelling_of_elementwise_operators(first):
    named = [
        spelling
        for known in operators(Trait.ELEMENTWISE)
        if known.name.startswith(first)
        for spelling in (*known.functions, *known.methods, *VISION.get(known.name, ()))
        if spelling not in CASTS
    ]
    graph = assert_contracts(between(lambda h, _: h + sum(written(s, h) for s in named)), (3, 2, 2))
    assert [s.size for s in graph.spaces] == [8]
    assert not graph.frozen


def combined(spelling, h, p):
    """What a binary operator makes of h and p, in h's dtype and finite."""
    name = spelling if isinstance(spelling, str) else spelling.__name__
    first, second = h.clone(), p[:, None, None].expand_as(h)
    if "logical" in name or "bitwise" in name:
        operands = [first > 0.5, second > 0.5]
    elif name.startswith("masked_fill"):
        operands = [first, second > 0.5, 0.5]
    elif name.startswith(("addc", "lerp")):
        operands = [first, second, second + 2]
    elif name == "where":
        operands = [first, second > 0.5, second] if isinstance(spelling, str) else [second > 0.5, first, second]
    elif name.startswith("ldexp"):
        operands = [first, torch.round(second)]
    else:
        operands = [first, second]
    value = getattr(operands[0], spelling)(*operands[1:]) if isinstance(spelling, str) else spelling(*operands)
    return torch.nan_to_num(value.to(h.dtype), 0.5, 2.0, -2.0)


PAIRS = [
    spelling
    for known in operators(Trait.BROADCAST)
    for spelling in (*known.functions, *known.methods)
    if getattr(spelling, "__module__", None) != "_operator"
]


def test_binary_names():
    network = between(lambda h, net: h + sum(combined(s, h, net.p) for s in PAIRS), p=(8,))
    graph = assert_contracts(network, (3, 2, 2))
    assert [s.size for s in graph.spaces] == [8]
    assert not graph.frozen


OPERATORS = {
    "scalars": lambda h, _: 2 / (1 + h * 3 - 1) ** 2,
    "a vector of channels": lambda h, net: h * net.p[:, None, None] + net.p[:, None, None],
    "a scalar parameter": lambda h, net: net.s * h,
    "itself": lambda h, _: torch.maximum(h, h * 0.5) - torch.minimum(h, h**2),
    "where": lambda h, net: torch.where(h > net.p[:, None, None], h, 0.5),
    "where as a method": lambda h, _: h.where(h > 0.5, h * 2),
    "masked_fill": lambda h, _: h.masked_fill(h.le(0.5), 0.25),
    "clamp to numbers": lambda h, _: h.clamp(0.3, max=0.7) + torch.clamp(h, min=0.6),
    "clamp to tensors": lambda h, net: torch.clamp(h, min=net.p[:, None, None]),
    "clip to a tensor": lambda h, net: h.clip(max=net.p[:, None, None]).clamp_min(0),
    "lerp": lambda h, _: torch.lerp(h, h**2, 0.3),
    "addcmul": lambda h, net: torch.addcmul(h, h, net.p[:, None, None], value=0.5),
    "positions": lambda h, _: h * h[:, :, :1] + h[:, :, :, -1:],
    "a map of one channel": lambda h, _: h * h.mean(1, keepdim=True),
    "comparisons": lambda h, _: h * ((h > 0.4) & (h < 0.6) | h.ge(0.9)),
    "in place": lambda h, net: operator.imul(operator.iadd(h, net.p[:, None, None]), 2),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operands_meet(name):
    graph = assert_contracts(between(OPERATORS[name], p=(8,), s=(1,)), (3, 4, 4))
    assert [s.size for s in graph.spaces] == [8]
    assert not graph.frozen


def test_casts_keep_types():
    network = between(lambda h, _: h.float().to(torch.float64).type_as(h).double().cpu().type(torch.float64))
    graph, x, network = typed(network, (3, 4, 4))
    assert not graph.frozen
    assert deviation(graph(*x), network(*x)) == 0


@pytest.mark.parametrize("slopes", [1, 8])
def test_prelu(slopes):
    networks = [nn.Sequential(nn.Linear(3, 8), nn.PReLU(slopes), nn.Linear(8, 2)) for _ in range(2)]
    graph = assert_contracts(networks[0], (3,))
    assert [s.name for s in graph.spaces] == ["0"]
    graphs = [typed(network, (3,), seed=seed)[0] for seed, network in enumerate(networks)]
    assert_direct_sum(graphs, [torch.randn(3, 3, dtype=torch.float64)], apart="1" if slopes == 1 else None)


def test_a_value_written_between_two_reads_is_gated_anew():
    def forward(net, x):
        h = net.a(x)
        first = net.b(h)
        F.relu(h, inplace=True)
        return first + net.c(h)

    assert_contracts(Network(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 2), c=nn.Linear(8, 2)), (3,))


def with_glu(call, dim, after=4, **layers):
    return partial(
        Network, lambda n, x: n.b(call(n, torch.tanh(n.a(x)))), a=nn.Conv2d(3, 8, 1), glu=nn.GLU(dim),
        b=nn.Conv2d(after, 2, 1), **layers,
    )  # fmt: skip


GLUS = {
    "a function from the back": (with_glu(lambda _, h: F.glu(h, -3), 1), [4]),
    "a layer from the back": (with_glu(lambda n, h: n.glu(h), -3), [4]),
    "the last axis": (with_glu(lambda n, h: n.glu(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), -1), [4]),
    "positions": (with_glu(lambda n, h: n.glu(h), 2, 8), [8]),
    "a concat with itself": (with_glu(lambda n, h: n.glu(torch.cat([h, h.relu()], 1)), 1, 8), [8]),
    "two branches": (with_glu(lambda n, h: n.glu(torch.cat([h, n.c(h)], 1)), 1, 8, c=nn.Conv2d(8, 8, 1)), [8]),
    "two halves": (with_glu(lambda n, h: n.glu(torch.cat([n.c(h), n.c(h)], 1)), 1, 3, c=nn.Conv2d(8, 3, 1)), [8, 3]),
    "three quarters": (with_glu(lambda n, h: n.glu(torch.cat([h, n.c(h)], 1)), 1, 6, c=nn.Conv2d(8, 4, 1)), [4, 2]),
}


def test_glu_halves_move_together():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 12), nn.GLU(-1), nn.Linear(6, 3)).double()
    graph = gs.trace(network, torch.zeros(2, 5))
    assert [(space.name, space.size) for space in graph.spaces] == [("0", 6)]
    small = compress(graph, {"0": [0, 2, 5]})
    with torch.no_grad():
        network[2].weight[:, [1, 3, 4]] = 0
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(small(x), network(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", GLUS)
def test_gated_linear_units_of_every_form(name):
    make, spaces = GLUS[name]
    graph = assert_contracts(make(), (3, 4, 4))
    assert sorted((s.size for s in graph.spaces), reverse=True) == spaces
    assert not any(s.mixed for s in graph.spaces)
    assert not graph.frozen
    graphs = [typed(make(), (3, 4, 4), seed=seed)[0] for seed in range(2)]
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    assert deviation(concatenate(graphs)(x), (graphs[0](x) + graphs[1](x)) / 2) < 1e-12


def copied_to_halves(_, h):
    whole = h.new_zeros(h.shape[0], 16, 4, 4)
    whole[:, :8].copy_(h)
    whole[:, 8:].copy_(2 * h)
    return whole[:, :8] + whole[:, 8:]


def copied_to_a_part(_, h):
    h = h.clone()
    h[:, 2:5].copy_(h[:, :1] * 2)
    return h


def stretched(_, h):
    return h + torch.zeros_like(h).copy_(h[:, :1])


COPIES = {
    "to another layer's output": (lambda n, h: n.c(h).copy_(h), [8]),
    "of a vector": (lambda n, h: h + torch.zeros_like(h).copy_(n.w[:, None, None]), [8]),
    "to both halves": (copied_to_halves, [8]),
    "of one channel": (stretched, [7]),
    "of one channel to a part": (copied_to_a_part, [1, 3, 3]),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_every_form(name):
    """What is copied to an axis of channels is those channels; one that is stretched along others is fixed."""
    call, spaces = COPIES[name]
    network = Network(
        lambda n, x: n.b(call(n, torch.tanh(n.a(x)))), {"w": torch.zeros(8)},
        a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    graph = assert_contracts(network, (3, 4, 4))
    assert [s.size for s in graph.spaces] == spaces


@pytest.mark.parametrize("gated", [None, lambda h: F.glu(h, 1), lambda h: F.glu(h.mT).mT])
def test_gated_linear_units_halve_an_axis(gated):
    network = Network(
        lambda n, x: n.b((gated or n.glu)(n.a(x))), a=nn.Conv1d(3, 8, 1), glu=nn.GLU(1), b=nn.Conv1d(4, 2, 1)
    )
    graph = assert_contracts(network, (3, 5))
    assert [(s.size, s.mixed) for s in graph.spaces] == [(4, ())]
