"""Sums of products by an equation."""

import pytest
import torch
from contracts import Network, assert_contracts, typed
from torch import nn

from graphsurgery.passes.concatenate import concatenate
from graphsurgery.surgery.deviation import deviation


def between(product, after=5, **parameters):
    return Network(
        lambda n, x: n.b(torch.tanh(product(torch.tanh(n.a(x)), n))),
        {name: torch.zeros(*shape) for name, shape in parameters.items()},
        a=nn.Linear(3, 8),
        b=nn.Linear(after, 2),
    )


WEIGHTED = {
    "a weight": between(lambda h, n: torch.einsum("bnc,cd->bnd", h, n.w), w=(8, 5)),
    "a transposed weight": between(lambda h, n: torch.einsum("bnc,dc->bnd", h, n.w), w=(5, 8)),
    "a weight first": between(lambda h, n: torch.einsum("dc, bnc -> bnd", n.w, h), w=(5, 8)),
    "an ellipsis": between(lambda h, n: torch.einsum("...c,cd->...d", h, n.w), w=(8, 5)),
    "no output": between(lambda h, n: torch.einsum("bnz,zy", h, n.w).transpose(1, 2).transpose(1, 2), w=(8, 5)),
    "operands in a list": between(lambda h, n: torch.einsum("bnc,cd->bnd", [h, n.w]), w=(8, 5)),
    "a weight for every token": between(lambda h, n: torch.einsum("bnc,ncd->bnd", h, n.w), w=(4, 8, 5)),
    "two values and a weight": between(lambda h, n: torch.einsum("bnc,bnc,cd->bnd", h, h.exp(), n.w), w=(8, 5)),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_that_is_read(name):
    graph = assert_contracts(WEIGHTED[name], (4, 3))
    assert [(s.size, s.scalable, s.mixed) for s in graph.spaces] == [(8, True, ()), (5, True, ())]
    assert not graph.frozen


@pytest.mark.parametrize("name", ["a weight", "a weight first", "an ellipsis"])
def test_the_direct_sum_is_the_mean(name):
    graphs = [typed(WEIGHTED[name], (4, 3), seed=seed)[0] for seed in range(2)]
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        assert deviation(concatenate(graphs)(x), (graphs[0](x) + graphs[1](x)) / 2) < 1e-12


def test_heads_and_their_sizes():
    network = between(lambda h, n: torch.einsum("bnhd,hde->bne", h.unflatten(-1, (4, 2)), n.w), w=(4, 2, 5))
    graph = assert_contracts(network, (3, 3))
    assert sorted((s.size, s.outer) for s in graph.spaces) == [(2, False), (4, True), (5, True)]


def test_a_product_of_values_takes_no_factor():
    network = between(lambda h, n: torch.einsum("bnc,bmc,bme->bne", h, h, torch.tanh(n.v(h))))
    network.v = nn.Linear(8, 5)
    graph = assert_contracts(network, (4, 3))
    assert [(s.size, s.scalable) for s in graph.spaces] == [(8, False), (5, True)]


def test_a_value_that_stands_there_twice_takes_no_factor():
    graph = assert_contracts(between(lambda h, n: torch.einsum("bnc,bnc,cd->bnd", h, h, n.w), w=(8, 5)), (4, 3))
    assert [(s.size, s.scalable) for s in graph.spaces] == [(8, False), (5, True)]


@pytest.mark.parametrize("equation", ["bnc,bn->bn", "bnc,nc->bn"])
def test_a_letter_of_one_operand_is_summed_away(equation):
    def product(h, n):
        first = h if equation == "bnc,nc->bn" else h * 2
        second = n.p[:, :1] * n.q if equation == "bnc,nc->bn" else h[:, :, 0] * 0 + n.p[:, 0]
        return torch.einsum(equation, first, second)[..., None].expand(-1, -1, 5)

    graph = assert_contracts(between(product, p=(4, 1), q=(4, 1)), (4, 3))
    assert all(s.mixed for s in graph.spaces if s.size == 8)


def test_a_stretched_letter_is_summed_away():
    network = between(lambda h, n: torch.einsum("bnc,c->bn", h, n.p)[..., None].expand(-1, -1, 5), p=(1,))
    graph = assert_contracts(network, (4, 3))
    assert graph.spaces[0].mixed == ("sum at einsum",)


def test_the_form_with_lists_of_numbers_is_frozen():
    network = between(lambda h, n: torch.einsum(h, [0, 1, 2], n.w, [2, 3], [0, 1, 3]), w=(8, 5))
    graph = assert_contracts(network, (4, 3))
    assert graph.frozen[0].reason == "einsum: its equation is no text"


BY_NUMBERS = {
    "the last axis": lambda h, n: torch.tensordot(h, n.w, 1),
    "by name": lambda h, n: torch.tensordot(a=h, b=n.w, dims=1),
    "lists": lambda h, n: torch.tensordot(h, n.w, ([2], [0])),
    "from the end": lambda h, n: torch.tensordot(h, n.w.t(), dims=[[-1], [-1]]),
    "a weight first": lambda h, n: torch.tensordot(n.w, h, dims=([0], [2])).permute(1, 2, 0),
}


@pytest.mark.parametrize("name", BY_NUMBERS)
def test_products_over_axes_that_are_named_by_numbers(name):
    graph = assert_contracts(between(BY_NUMBERS[name], w=(8, 5)), (4, 3))
    assert sorted(space.size for space in graph.spaces) == [5, 8]
    assert not graph.frozen


def test_a_product_over_two_axes_by_default():
    network = between(lambda h, n: torch.tensordot(h, n.w)[:, None], w=(4, 8, 5))
    graph = assert_contracts(network, (4, 3))
    assert [space.size for space in graph.spaces] == [8, 5]
