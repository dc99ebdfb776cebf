"""Forms that the exporter takes compute what the original operators compute."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.onnx.exporting import check_onnx, export_onnx
from graphsurgery.onnx.exporting.plain import attention


class Attention(nn.Module):
    """Two heads of four channels over the tokens of some blocks, with a computed bias of the scores or none."""

    def __init__(self, blocks: tuple[int, ...], bias: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.blocks = blocks
        self.bias = None if bias is None else nn.Parameter(torch.randn(bias))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(x.shape[0], *self.blocks, 5, 3, 2, 4)
        q, k, v = qkv.movedim(-3, 0).transpose(-2, -3).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if self.bias is None else 2 * self.bias)
        return self.out(y.transpose(-2, -3).reshape(x.shape[0], *self.blocks, 5, 8))


class Bounded(nn.Module):
    """One tensor in three clamps, each with bounds of its own."""

    def __init__(self, lowest: float, highest: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        for number, layer in enumerate(self.layers):
            layer.register_buffer("lowest", torch.tensor(lowest + 0.1 * number))
            layer.register_buffer("highest", torch.tensor(highest))

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        a, b, c = (layer(torch.clamp(x, layer.lowest, max=layer.highest)) for layer in self.layers)
        return a + b + c


NETWORKS = {
    "attention in blocks": (lambda: Attention((3,)), (2, 3, 5, 8)),
    "attention in blocks, biased": (lambda: Attention((3,), (2, 5, 5)), (2, 3, 5, 8)),
    "attention, biased": (lambda: Attention((), (1, 2, 5, 5)), (2, 5, 8)),
    "clamps": (lambda: Bounded(-1.0, 0.5), (2, 4)),
    "clamps without bounds": (lambda: Bounded(-math.inf, math.inf), (2, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_export(name: str, tmp_path):
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    graph = gs.trace(build(), torch.zeros(shape))
    export_onnx(graph, tmp_path / "m.onnx")
    check_onnx(graph, tmp_path / "m.onnx", batches=(1, 3), rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.tensor([True, False, True, True, False, True])},
        {"attn_mask": torch.linspace(-1, 1, 30).reshape(5, 6)},
        {"enable_gqa": True},
    ],
)
def test_attention(options):
    generator = torch.Generator().manual_seed(0)
    heads = 2 if "enable_gqa" in options else 4
    q, k, v = (torch.randn(2, 3, h, n, 8, generator=generator) for h, n in ((4, 5), (heads, 6), (heads, 6)))
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(attention(q, k, v, **options), expected, rtol=1e-5, atol=1e-6)
