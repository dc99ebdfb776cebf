"""Operators for which the order along an axis means something."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts, assert_permutes, typed
from torch import nn


def between(operator, after=8):
    return Network(lambda n, x: n.b(operator(torch.tanh(n.a(x)))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(after, 2, 1))


POSITIONS = {
    "roll": lambda h: torch.roll(h, (1, 2), (2, 3)) + h.roll(1, -1),
    "flip": lambda h: torch.flip(h, [2]) + h.flip(-1),
    "rot90": lambda h: torch.rot90(h, 1, (2, 3)) + h.rot90(2, dims=(-2, -1)),
    "cumsum": lambda h: torch.cumsum(h, 2) + h.cumprod(dim=-1),
    "logcumsumexp": lambda h: torch.logcumsumexp(h, 3),
    "diff": lambda h: F.pad(torch.diff(h), (1, 0)) + F.pad(h.diff(dim=2), (0, 0, 0, 1)),
    "sort": lambda h: h.sort(dim=-1)[0] + torch.sort(h, 2, True).values,
    "topk": lambda h: torch.topk(h, 2, 3)[0] + h.topk(2, dim=-1).values,
    "argsort": lambda h: h + h.argsort(-1),
    "maximum and its place": lambda h: h + h.max(-1, True).values + h.max(2, keepdim=True)[1],
    "argmax": lambda h: h + h.flatten(2).argmax(-1)[..., None, None],
    "triangle": lambda h: torch.tril(h) + h.triu(1),
    "one_hot": lambda h: h + F.one_hot((h[..., 0] > 0).long(), 4),
    "fft": lambda h: torch.fft.fft2(h).real + torch.fft.ifft(h, dim=2).imag,
    "rfft": lambda h: torch.fft.irfft2(torch.fft.rfft2(h, norm="ortho"), s=(4, 4)) + torch.fft.fftn(h, dim=(2, 3)).real,
    "fft of some": lambda h: torch.fft.fftn(h, (4, 4)).real + torch.fft.fftshift(h, (2, 3)),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_channels_pass(name):
    graph = assert_contracts(between(POSITIONS[name]), (3, 4, 4))
    assert [(s.size, s.mixed) for s in graph.spaces] == [(8, ())]
    assert not graph.frozen


CHANNELS = {
    "roll everything": (lambda h: torch.roll(h, 1), "rolled"),
    "rot90": (lambda h: torch.rot90(h[..., :1].expand(-1, -1, -1, 8), 1, (1, 3))[:, :, :, :4], "turned"),
    "argsort": (lambda h: h.argsort(1) * h, "sorted"),
    "argmax": (lambda h: h * h.argmax(1, True), "an index is found"),
    "maximum and its place": (lambda h: h * h.max(1, True)[1], "an index is found"),
    "triangle": (lambda h: torch.tril(h.transpose(1, 3)).transpose(1, 3)[:, :, :, :4], "a triangle"),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_frozen(name):
    operator, reason = CHANNELS[name]
    graph, x, network = typed(between(operator), (3, 4, 4))
    assert any(reason in f.reason for f in graph.frozen)
    assert not any(s.size == 8 for s in graph.spaces)
    with torch.no_grad():
        torch.testing.assert_close(graph(*x), network(*x), rtol=0, atol=0)
        assert_permutes(graph, x)


def test_channels_behind_those_that_are_divided_by_their_neighbours():
    layers = (nn.Conv2d(3, 8, 1), nn.LocalResponseNorm(3), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    graph = assert_contracts(nn.Sequential(*layers), (3, 4, 4))
    assert [(s.name, s.size, s.mixed) for s in graph.spaces] == [("0", 8, ()), ("2", 6, ())]
