"""Complex numbers between real ones, and complex weights, whose axes are typed as others are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contracts import assert_permutes, masked, random_choice
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.deviation import deviation

PIXELS, TOKENS = (3, 6, 6), (6, 3)


class Spectral(nn.Module):
    """Real layers around something complex, with one weight between them."""

    def __init__(
        self, forward: Callable[[Any, Tensor], Tensor], weight: tuple[int, ...], real: bool, seed: int
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rule = forward
        dtype = torch.float64 if real else torch.complex128
        self.w = nn.Parameter(torch.randn(weight, dtype=dtype))
        images = len(weight) > 2
        make = (lambda a, b: nn.Conv2d(a, b, 1)) if images else nn.Linear
        self.a, self.c, self.b = make(3, 8).double(), make(3, 8).double(), make(6 if weight[-1] == 6 else 8, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, x)


def filtered(n: Any, x: Tensor) -> Tensor:
    """A filter for each channel in the frequencies, as in GFNet: real numbers seen as complex ones."""
    spectrum = torch.fft.rfft2(torch.tanh(n.a(x)), norm="ortho") * torch.view_as_complex(n.w)
    return n.b(torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho"))


def filtered_by_complex_weights(n: Any, x: Tensor) -> Tensor:
    return n.b(torch.fft.irfft2(torch.fft.rfft2(torch.tanh(n.a(x))) * n.w, s=x.shape[-2:]))


def fourier_operator(n: Any, x: Tensor) -> Tensor:
    spectrum = torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(torch.tanh(n.a(x))), n.w)
    return n.b(torch.fft.irfft2(spectrum, s=x.shape[-2:]))


def product(n: Any, x: Tensor) -> Tensor:
    return n.b((torch.complex(torch.tanh(n.a(x)), n.c(x)) @ n.w).abs())


def parts(n: Any, x: Tensor) -> Tensor:
    y = torch.fft.rfft(torch.tanh(n.a(x)), dim=1) * n.w
    pairs = torch.view_as_real(y)
    return n.b(pairs[..., 0] * pairs[..., 1] + y.real.sin() + y.imag + torch.angle(y).sin() + y.conj().real)


def recurrence(n: Any, x: Tensor) -> Tensor:
    """A diagonal state space, convolved through frequencies as in S4D."""
    steps = torch.arange(x.shape[1], dtype=x.dtype)
    kernel = (torch.exp(n.w.unsqueeze(-1) * steps / 9)).sum(1).real
    length = 2 * x.shape[1]
    h = torch.tanh(n.a(x)).transpose(1, 2)
    y = torch.fft.irfft(torch.fft.rfft(h, n=length) * torch.fft.rfft(kernel, n=length), n=length)
    return n.b(y[..., : x.shape[1]].transpose(1, 2))


Case = tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...], bool, tuple[int, ...], list[int]]
CASES: dict[str, Case] = {
    "filters": (filtered, (8, 6, 4, 2), True, PIXELS, [8]),
    "complex filters": (filtered_by_complex_weights, (8, 6, 4), False, PIXELS, [8]),
    "Fourier operator": (fourier_operator, (8, 8, 6, 4), False, PIXELS, [8, 8]),
    "product": (product, (8, 6), False, TOKENS, [6, 8]),
    "parts": (parts, (4, 8), False, TOKENS, [8]),
    "recurrence": (recurrence, (8, 5), False, TOKENS, [5, 8]),
}


def traced(name: str, seed: int = 0) -> tuple[gs.ModelGraph, Tensor, nn.Module]:
    forward, weight, real, shape, _ = CASES[name]
    network = Spectral(forward, weight, real, seed).eval()
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return gs.trace(network, x[:2]), x, network


@pytest.mark.parametrize("name", CASES)
def test_contracts(name: str) -> None:
    graph, x, network = traced(name)
    with torch.no_grad():
        assert deviation(graph(x), network(x)) < 1e-12
        assert sorted(space.size for space in graph.spaces) == CASES[name][4]
        assert_permutes(graph, [x])
        kept = random_choice(graph)
        assert kept
        assert deviation(compress(graph, kept)(x), masked(graph, kept)(x)) < 1e-10
        assert deviation(widen(graph, 1.5)(x), graph(x)) < 1e-12


@pytest.mark.parametrize("name", ["filters", "complex filters", "Fourier operator"])
def test_networks_side_by_side(name: str) -> None:
    (a, x, _), (b, _, _) = traced(name, 0), traced(name, 1)
    with torch.no_grad():
        assert deviation(concatenate([a, b])(x), (a(x) + b(x)) / 2) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_saved(name: str, tmp_path: Any) -> None:
    graph, x, _ = traced(name)
    gs.save(compress(graph, 0.5), tmp_path / "n.pt")
    assert torch.equal(gs.load(tmp_path / "n.pt")(x), compress(graph, 0.5)(x))


def test_real_weights_seen_as_complex_ones_are_exported(tmp_path: Any) -> None:
    graph, _, _ = traced("filters")
    small = compress(graph, 0.5)
    gs.export_onnx(small, tmp_path / "n.onnx")
    gs.check_onnx(small, tmp_path / "n.onnx")
