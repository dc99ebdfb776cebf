"""Tensors that are drawn have the sizes that they are laid over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.network.outputs.naming import run
from graphsurgery.passes.compress import compress

Draw = Callable[[Tensor], Tensor]
ALIKE: dict[str, Draw] = {
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "randint_like": lambda h: torch.randint_like(h, 5),
    "bernoulli": lambda h: torch.bernoulli(torch.sigmoid(h)),
    "poisson": lambda h: torch.poisson(h.abs()),
    "normal of tensors": lambda h: torch.normal(h, h.abs()),
    "normal of a mean": lambda h: torch.normal(h),
    "distribution": lambda h: torch.distributions.Normal(h, h.exp()).rsample(),
    "normal in place": lambda h: torch.empty_like(h).normal_(),
    "uniform in place": lambda h: h.new_empty(h.shape).uniform_(-1, 1),
    "exponential in place": lambda h: torch.empty_like(h).exponential_(),
    "bernoulli in place": lambda h: torch.empty_like(h).bernoulli_(torch.sigmoid(h)),
}
OF_SIZES: dict[str, Draw] = {
    "randn of sizes": lambda h: torch.randn(h.shape[0], 1, 8, dtype=h.dtype),
    "randn of a size": lambda h: torch.randn(h.size(), dtype=h.dtype),
    "randn of a width": lambda h: torch.randn(h.shape[-1], dtype=h.dtype),
    "rand": lambda h: torch.rand((1, 1, 8), dtype=h.dtype),
    "randint": lambda h: torch.randint(5, (h.shape[0], 1, 8)),
    "randint of two bounds": lambda h: torch.randint(-5, 5, size=(h.shape[0], 1, 8)),
    "normal of sizes": lambda h: torch.normal(0.0, 1.0, (h.shape[0], 1, 8), dtype=h.dtype),
}
DRAWS = ALIKE | OF_SIZES


def around(draw: Draw, share: float) -> Network:
    """Noise of a channel's own between two layers."""
    torch.manual_seed(0)
    forward = lambda n, x: n.b(h + share * draw(h)) if (h := torch.tanh(n.a(x))) is not None else x  # noqa: E731
    return Network(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 2))


@pytest.mark.parametrize("name", DRAWS)
def test_types(name: str) -> None:
    """With a share of 0 of the noise the contracts can be measured; its sizes have to fit all the same."""
    graph = assert_contracts(around(DRAWS[name], 0.0), (5, 3))
    assert [space.size for space in graph.spaces] == [8]
    assert not graph.frozen


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_numbers_are_drawn(name: str, tmp_path: Any) -> None:
    network = around(DRAWS[name], 1.0).double().eval()
    x = torch.randn(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph = gs.trace(network, x[:2])
    (found,), (expected,) = (run(module, [x], 5).values() for module in (graph.module, network))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(found, run(network, [x], 6)["0"])
    small = compress(graph, 0.5)
    gs.save(small, tmp_path / "n.pt")
    assert torch.equal(run(gs.load(tmp_path / "n.pt").module, [x], 5)["0"], run(small.module, [x], 5)["0"])


def test_softmax_with_noise_mixes_its_axis() -> None:
    network = Network(lambda n, x: n.b(0 * F.gumbel_softmax(n.a(x), dim=-1)), a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    graph = assert_contracts(network, (5, 3))
    assert [bool(space.mixed) for space in graph.spaces] == [True]


def test_places_that_are_drawn_fix_their_axis() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        return n.b(torch.tanh(n.a(x)) + 0 * torch.multinomial(torch.softmax(n.p(x), -1), 2).sum(-1, keepdim=True))

    network = Network(forward, a=nn.Linear(3, 8), p=nn.Linear(3, 4), b=nn.Linear(8, 2))
    graph = assert_contracts(network, (3,))
    assert [space.size for space in graph.spaces] == [8]
    assert [reason for _, reason in graph.frozen] == ["an axis from which places are drawn"]
