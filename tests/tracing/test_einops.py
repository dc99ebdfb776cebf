"""Networks written with einops: patterns are followed through the calls that einops makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import einops
import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts
from einops import einsum, pack, rearrange, reduce, repeat, unpack
from einops.layers.torch import EinMix, Rearrange, Reduce
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.surgery.deviation import deviation

TOKENS, PIXELS = (5, 3), (3, 8, 8)


def attention(n: Any, x: Tensor) -> Tensor:
    q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=2) for t in n.qkv(n.a(x)).chunk(3, -1))
    scores = einsum(q, k, "b h i d, b h j d -> b h i j") * 4**-0.5
    mixed = einsum(scores.softmax(-1), v, "b h i j, b h j d -> b h i d")
    return n.b(rearrange(mixed, "b h n d -> b n (h d)"))


def packed_attention(n: Any, x: Tensor) -> Tensor:
    q, k, v = rearrange(n.qkv(n.a(x)), "b n (three h d) -> three b h n d", three=3, h=2)
    return n.b(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


def packed(n: Any, x: Tensor) -> Tensor:
    h = n.a(x)
    whole, shapes = pack([h, h[:, :2]], "b * c")
    first, second = unpack(whole.tanh(), shapes, "b * c")
    return n.b(first).mean(1) + n.b(second).mean(1)


def windows(n: Any, x: Tensor) -> Tensor:
    h = rearrange(n.a(x), "b c (x w) (y v) -> (b x y) (w v) c", w=4, v=4).softmax(1)
    h = rearrange(h, "(b x y) (w v) c -> b c (x w) (y v)", x=x.shape[2] // 4, y=x.shape[3] // 4, w=4)
    return n.b(h)


def parsed(n: Any, x: Tensor) -> Tensor:
    h = rearrange(n.a(x), "b c h w -> b (h w) c").relu()
    return n.b(rearrange(h, "b (h w) c -> b c h w", **einops.parse_shape(x, "b _ h w")))


def token_in_front(n: Any, x: Tensor) -> Tensor:
    return n.b(torch.cat([repeat(n.t, "() n d -> b n d", b=x.shape[0]), n.a(x)], 1))


def linear(**more: Any) -> dict[str, Any]:
    return {"a": nn.Linear(3, 8), "b": nn.Linear(8, 4), **more}


def conv(**more: Any) -> dict[str, Any]:
    return {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1), **more}


Case = tuple[Callable[[Any, Tensor], Tensor], Callable[[], dict[str, Any]], tuple[int, ...], list[int]]
CASES: dict[str, Case] = {
    "attention": (attention, lambda: linear(qkv=nn.Linear(8, 24)), TOKENS, [2, 4, 4, 8]),
    "packed attention": (packed_attention, lambda: linear(qkv=nn.Linear(8, 24)), TOKENS, [2, 4, 8]),
    "pack and unpack": (packed, linear, TOKENS, [8]),
    "windows": (windows, conv, PIXELS, [8]),
    "parsed shape": (parsed, conv, PIXELS, [8]),
    "repeated token": (token_in_front, lambda: linear(parameters={"t": torch.zeros(1, 1, 8)}), TOKENS, [8]),
    "groups": (
        lambda n, x: n.b(rearrange(rearrange(n.a(x), "... (g c) -> ... g c", g=2).tanh(), "... g c -> ... (g c)")),
        linear,
        TOKENS,
        [2, 4],
    ),
    "patches": (
        lambda n, x: n.b(rearrange(n.a(x), "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4)),
        lambda: conv(b=nn.Linear(128, 4)),
        PIXELS,
        [8],
    ),
    "list": (
        lambda n, x: n.b(rearrange([n.a(x), 2 * n.a(x)], "s b n c -> b n (s c)")),
        lambda: linear(b=nn.Linear(16, 4)),
        TOKENS,
        [8],
    ),
    "mean": (lambda n, x: n.b(reduce(n.a(x), "b c h w -> b c", "mean")), lambda: conv(b=nn.Linear(8, 4)), PIXELS, [8]),
    "upsampled": (lambda n, x: n.b(repeat(n.a(x), "b c h w -> b c (h k) (w l)", k=2, l=2)), conv, PIXELS, [8]),
    "layers": (
        lambda n, x: n.b(n.down(n.cut(n.a(x)))),
        lambda: conv(
            cut=Rearrange("b c (h p) w -> b h p w c", p=2), down=Reduce("b h p w c -> b c", "max"), b=nn.Linear(8, 4)
        ),
        PIXELS,
        [8],
    ),
    "mixed": (
        lambda n, x: n.b(n.m(n.a(x))),
        lambda: linear(m=EinMix("b n c -> b n d", weight_shape="c d", bias_shape="d", c=8, d=6), b=nn.Linear(6, 4)),
        TOKENS,
        [6, 8],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_is_followed_typed_and_cut(name: str) -> None:
    forward, layers, shape, spaces = CASES[name]
    torch.manual_seed(0)
    graph = assert_contracts(Network(forward, **layers()), shape)
    assert sorted(space.size for space in graph.spaces) == spaces


@pytest.mark.parametrize("name", CASES)
def test_at_another_size(name: str) -> None:
    forward, layers, shape, _ = CASES[name]
    torch.manual_seed(0)
    network = Network(forward, **layers()).double().eval()
    graph = gs.trace(network, torch.randn(2, *shape, dtype=torch.float64))
    other = (7, 3) if shape == TOKENS else (3, 12, 16)
    x = torch.randn(1, *other, dtype=torch.float64)
    assert deviation(graph(x), network(x)) < 1e-13


@pytest.mark.parametrize("name", ["attention", "windows"])
def test_saved_and_exported(name: str, tmp_path: Any) -> None:
    forward, layers, shape, _ = CASES[name]
    torch.manual_seed(0)
    x = torch.randn(2, *shape)
    graph = gs.trace(Network(forward, **layers()).eval(), x)
    gs.save(graph, tmp_path / "n.pt")
    assert torch.equal(gs.load(tmp_path / "n.pt")(x), graph(x))
    gs.export_onnx(graph, tmp_path / "n.onnx")
    gs.check_onnx(graph, tmp_path / "n.onnx")
