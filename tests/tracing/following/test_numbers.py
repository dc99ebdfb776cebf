"""Numbers that a model computes from its sizes stay computed, or are held; none is baked in without a word."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts import masked
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.surgery.deviation import deviation

WIDTH = 8


class Images(nn.Module):
    """Pixels with their channels last between two layers, and a function that handles them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(torch.tanh(self.a(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def windows(h: Tensor) -> Tensor:
    """As Swin Transformer and its heirs."""
    size = 2
    b, height, width, c = h.shape
    cut = h.view(b, height // size, size, width // size, size, c)
    cut = cut.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, c)
    cut = cut + cut.mean((1, 2), keepdim=True)
    batch = int(cut.shape[0] / (height * width / size / size))
    x = cut.view(batch, height // size, width // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(batch, height, width, -1)


def tokens_to_map(h: Tensor) -> Tensor:
    tokens = h.flatten(1, 2)
    side = int(np.sqrt(tokens.shape[1]))
    return tokens.view(len(h) if isinstance(h, list) else h.shape[0], side, int(tokens.shape[1] ** 0.5), -1)


def rows_of_constants(h: Tensor) -> Tensor:
    return h + torch.arange(2.0, dtype=h.dtype)[None, None, :, None].expand(h.shape[0], h.shape[1], -1, -1).mean(
        2, keepdim=True
    )


def table_cut_to_length(h: Tensor) -> Tensor:
    return h * torch.linspace(0, 1, 40, dtype=torch.float64)[: h.shape[1]][:, None, None]


def padded_to_windows(h: Tensor) -> Tensor:
    more = int(np.ceil(h.shape[1] / 3)) * 3 - h.shape[1]
    return F.pad(h, (0, 0, 0, 0, 0, more))


def resized(h: Tensor) -> Tensor:
    size = (int(h.shape[1] * 1.5), round(h.shape[2] * 1.5))
    return F.interpolate(h.permute(0, 3, 1, 2), size=size).permute(0, 2, 3, 1)


def product(h: Tensor) -> Tensor:
    return h.reshape(-1, np.prod(h.shape[1:])).reshape(h.shape) * math.prod(h.shape[1:3]) / h[0].numel()


def scaled(h: Tensor) -> Tensor:
    return h / np.sqrt(h.shape[-1]) * np.power(float(h.shape[1]), -0.5) + np.log(h.shape[1])


def largest(h: Tensor) -> Tensor:
    return h[:, : np.maximum(h.shape[1] - 2, 1)] * np.max(h.shape[1:3]) * math.gcd(h.shape[1], 4)


def array(h: Tensor) -> Tensor:
    return h * torch.from_numpy(np.arange(h.shape[1]))[:, None, None]


def number_of_numpy(h: Tensor) -> Tensor:
    return h * np.float32(h.shape[1])


def tensor_of_an_array(h: Tensor) -> Tensor:
    return h * torch.tensor(np.linspace(0, 1, h.shape[1]), dtype=h.dtype)[:, None, None]


def over_integers(h: Tensor) -> Tensor:
    for k in range(int(h.shape[1] / 2)):
        h = h + k
    return h


def looked_up(h: Tensor) -> Tensor:
    """A size is no key of a table, so it is held, as before."""
    return h * {2: 0.5, 3: 0.25}[int(h.shape[1] / 2)]


COMPUTED = [windows, tokens_to_map, rows_of_constants, padded_to_windows, resized, product, scaled]
COMPUTED += [largest]
HELD = [array, number_of_numpy, tensor_of_an_array, over_integers, looked_up, table_cut_to_length]


def test_tensors_are_after_a_trace_what_they_were_before():
    """A special method that is replaced for a while leaves other slots behind in the class: a number had a length."""
    before = dict(vars(torch.Tensor))
    traced(product)
    assert dict(vars(torch.Tensor)) == before
    assert torch.tensor([torch.tensor(1)]).tolist() == [1]


def traced(function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> tuple[Images, gs.ModelGraph]:
    torch.manual_seed(0)
    network = Images(function).to(dtype).eval()
    return network, gs.trace(network, torch.randn(2, 3, 4, 4, dtype=dtype))


@pytest.mark.parametrize("function", [*COMPUTED, *HELD])
def test_values_and_cuts(function: Callable[[Tensor], Tensor]) -> None:
    network, graph = traced(function)
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    assert deviation(graph(x), network(x)) < 1e-12
    kept = {"a": [0, 3, 5, 6]}
    assert deviation(compress(graph, kept)(x), masked(graph, kept)(x)) < 1e-12


@pytest.mark.parametrize("function", COMPUTED)
def test_other_sizes(function: Callable[[Tensor], Tensor]) -> None:
    network, graph = traced(function)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    assert deviation(graph(x), network(x)) < 1e-12


@pytest.mark.parametrize("function", HELD)
def test_other_sizes_are_refused_by_the_line(function: Callable[[Tensor], Tensor]) -> None:
    _, graph = traced(function)
    with pytest.raises(
        ValueError, match=r"test_numbers\.py:\d+: `.*` finds (6|3)(\.0)? where the trace found (4|2)(\.0)?"
    ):
        graph(torch.randn(1, 3, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("function", [windows, tokens_to_map, rows_of_constants, resized, product])
def test_saved_and_exported(function: Callable[[Tensor], Tensor], tmp_path: Any) -> None:
    _, graph = traced(function, torch.float32)
    x = torch.randn(3, 3, 4, 4)
    gs.save(graph, tmp_path / "n.pt")
    assert torch.equal(gs.load(tmp_path / "n.pt")(x), graph(x))
    gs.export_onnx(graph, tmp_path / "n.onnx")
    gs.check_onnx(graph, tmp_path / "n.onnx")
