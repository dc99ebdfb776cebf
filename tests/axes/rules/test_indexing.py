"""Parts of an axis: slices, indices, and writes into them."""

import pytest
import torch
from contracts import Network, assert_contracts, assert_permutes, typed
from torch import nn


def flat(operator, after=8):
    return Network(lambda n, x: n.b(operator(torch.tanh(n.a(x)))), a=nn.Linear(3, 8), b=nn.Linear(after, 2))


def between(operator, after=8):
    return Network(lambda n, x: n.b(operator(torch.tanh(n.a(x)))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(after, 2, 1))


def written(h, *writes):
    """A copy of h with parts written over."""
    h = h.clone()
    for index, value in writes:
        h[index] = value
    return h


ALL = slice(None)
SIZES = {
    "every second": (flat(lambda h: h[:, ::2] * h[:, 1::2], 4), (3,), [4]),
    "pairs are turned": (
        flat(lambda h: h * 0.5 + torch.stack([-h[..., 1::2], h[..., ::2]], -1).reshape(h.shape)), (3,), [4],
    ),
    "halves are turned": (flat(lambda h: h * 0.5 + torch.cat([-h[:, 4:], h[:, :4]], 1)), (3,), [4]),
    "select": (between(lambda h: h.select(2, 1)[:, :, None] + torch.select(h, 3, 0)[..., None]), (3, 4, 4), [8]),
    "narrow": (flat(lambda h: torch.cat([torch.narrow(h, 1, 5, 3), h.narrow(1, 0, 5)], 1)), (3,), [5, 3]),
    "narrow from the end": (flat(lambda h: h.narrow(1, -3, 3), 3), (3,), [5, 3]),
    "index_select": (between(lambda h: torch.index_select(h, 2, torch.tensor([0, 3]))), (3, 4, 4), [8]),
    "look up beside an ellipsis": (between(lambda h: h[..., torch.tensor([0, 3])]), (3, 4, 4), [8]),
    "look up by two tensors": (
        between(lambda h: h[:, :, torch.tensor([[0, 3]]), torch.tensor([[1], [2]])]), (3, 4, 4), [8],
    ),
    "look up by a list and a number": (between(lambda h: h[:, :, 1, [0, 3]][..., None]), (3, 4, 4), [8]),
    "look up beside a new axis": (between(lambda h: h[:, :, None, :, torch.tensor([1, 2])][:, :, 0]), (3, 4, 4), [8]),
    "look up apart": (
        between(
            lambda h: h.mT.transpose(1, 2)[:, torch.tensor([0, 1]), :, torch.tensor([2, 3])].permute(1, 2, 0)[..., None]
        ),
        (3, 4, 4), [8],
    ),
    "look up a part": (between(lambda h: h[:, :, 1:3, torch.tensor([0, 1])]), (3, 4, 4), [8]),
    "look up where channels say": (
        between(lambda h: h * torch.arange(4.0, dtype=h.dtype)[h.mean((2, 3)).abs().long()][..., None, None]),
        (3, 4, 4), [8],
    ),
    "gather": (
        between(lambda h: h.gather(2, (h[:, :1, 1:3] > 0).long().expand(-1, 8, 2, 4))), (3, 4, 4), [7],
    ),
    "take_along_dim": (between(lambda h: torch.take_along_dim(h, h.argsort(-1), dim=-1)), (3, 4, 4), [8]),
    "write positions": (
        between(lambda h: written(h, ((ALL, ALL, 0), 0), ((..., slice(1, 3)), h[..., 2:] * 2))), (3, 4, 4), [8],
    ),
    "write channels": (flat(lambda h: written(h, ((ALL, slice(0, 3)), 0.5))), (3,), [3, 5]),
    "write channels over channels": (flat(lambda h: written(h, ((ALL, slice(0, 4)), h[:, 4:] * 2))), (3,), [4]),
    "write into zeros": (flat(lambda h: written(torch.zeros_like(h), (ALL, h))), (3,), [8]),
    "write one value": (between(lambda h: written(h, ((ALL, ALL, 1), h[:, :, 0, :1]))), (3, 4, 4), [8]),
    "write beside a single axis": (flat(lambda h: written(h[:, :, None], ((ALL, ALL, 0), h * 2))[..., 0]), (3,), [8]),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_channels_follow(name):
    network, shape, sizes = SIZES[name]
    graph = assert_contracts(network, shape)
    assert [s.size for s in graph.spaces] == sizes
    assert all(not s.mixed for s in graph.spaces)


LAYOUTS = {"3·h·d": (3, 4, 2), "h·3·d": (4, 3, 2), "h·d·3": (4, 2, 3)}


@pytest.mark.parametrize("apart", [lambda x, d: x.unbind(d), lambda x, d: [x.select(d, i) for i in range(3)]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_queries_keys_and_values_in_one_axis(layout, apart):
    sizes = LAYOUTS[layout]
    three = sizes.index(3)

    def forward(net, x):
        packed = net.qkv(x).unflatten(-1, sizes)
        q, k, v = (part.transpose(1, 2) for part in apart(packed, 2 + three))
        weights = torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1)
        return net.out((weights @ v).transpose(1, 2).flatten(2))

    graph = assert_contracts(Network(forward, qkv=nn.Linear(3, 24), out=nn.Linear(8, 2)), (5, 3))
    assert [(s.size, s.outer, s.scalable) for s in graph.spaces] == [(4, True, True), (2, False, False)]


def test_a_packed_bias_of_three_parts():
    def forward(net, x):
        bias = torch.cat([net.q, torch.zeros_like(net.v), net.v])
        q, k, v = nn.functional.linear(x, net.w, bias).reshape(-1, 5, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        return net.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 5, 8))

    parameters = {"w": torch.zeros(24, 3), "q": torch.zeros(8), "v": torch.zeros(8)}
    graph = assert_contracts(Network(forward, parameters, out=nn.Linear(8, 2)), (5, 3))
    assert [(s.size, s.outer) for s in graph.spaces] == [(4, True), (2, False)]


FROZEN = {
    "one channel": (flat(lambda h: h.select(1, 3)[:, None], 1), (3,), "indexed by a constant"),
    "looked up": (flat(lambda h: h[:, (h[0] > 0).long()]), (3,), "looked up by indices"),
    "looked up by name": (flat(lambda h: h.index_select(1, (h[0] > 0).long())), (3,), "looked up by indices"),
    "gathered": (flat(lambda h: h.gather(1, (h > 0).long())), (3,), "looked up by indices"),
    "a part gathered": (
        between(lambda h: h.gather(2, (h[:, :1] > 0).long().expand(-1, 3, 4, 4)), 3),
        (3, 4, 4), "only a part is looked up",
    ),
    "written where a tensor says": (
        flat(lambda h: written(h, ((ALL, torch.tensor([1, 2])), 0))), (3,), "is written to by index",
    ),
    "a channel written": (flat(lambda h: written(h, ((ALL, 3), 0))), (3,), "indexed by a constant"),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_what_depends_on_places_is_frozen(name):
    network, shape, reason = FROZEN[name]
    graph, x, network = typed(network, shape)
    assert any(reason in f.reason for f in graph.frozen)
    assert not any(s.size == 8 for s in graph.spaces)
    with torch.no_grad():
        torch.testing.assert_close(graph(*x), network(*x), rtol=0, atol=0)
        assert_permutes(graph, x)
