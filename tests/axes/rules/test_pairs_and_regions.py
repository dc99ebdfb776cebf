"""Bilinear layers, distances, bags of embeddings, deformable convolutions and regions of interest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from contracts import Network, assert_contracts, assert_direct_sum, typed
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, RoIAlign

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.channels.planned_cost import PlannedCost, Widths
from graphsurgery.surgery.deviation import deviation

TOKENS, PIXELS, WORDS = (5, 3), (3, 6, 6), (7, 3)


def boxes(x: Tensor) -> Tensor:
    """A box for each image, of which the first says the number."""
    corners = torch.tensor([[0.0, 0.0, 4.0, 4.0]], dtype=x.dtype).expand(x.shape[0], -1)
    return torch.cat([torch.arange(x.shape[0], dtype=x.dtype)[:, None], corners], 1)


def words(x: Tensor) -> Tensor:
    """Indices below 9 from numbers."""
    return (x.abs() * 4).long().clamp(max=8)[..., 0]


def pixels(**layers: Any) -> dict[str, Any]:
    return {"a": nn.Conv2d(3, 8, 1), "o": nn.Conv2d(3, 18, 3, padding=1), "b": nn.Conv2d(6, 4, 1)} | layers


def tokens(**layers: Any) -> dict[str, Any]:
    return {"a": nn.Linear(3, 8), "c": nn.Linear(3, 5), "b": nn.Linear(6, 4)} | layers


Case = tuple[Callable[[Any, Tensor], Tensor], Callable[[], dict[str, Any]], tuple[int, ...], list[int]]
CASES: dict[str, Case] = {
    "bilinear": (
        lambda n, x: n.b(torch.tanh(n.m(torch.tanh(n.a(x)), n.c(x)))),
        lambda: tokens(m=nn.Bilinear(8, 5, 6)),
        TOKENS,
        [5, 6, 8],
    ),
    "bilinear function": (
        lambda n, x: n.b(F.bilinear(torch.tanh(n.a(x)), n.c(x), n.m.weight)),
        lambda: tokens(m=nn.Bilinear(8, 5, 6, bias=False)),
        TOKENS,
        [5, 6, 8],
    ),
    "bag": (
        lambda n, x: n.b(torch.tanh(n.e(words(x)))),
        lambda: {"e": nn.EmbeddingBag(9, 6, mode="mean"), "b": nn.Linear(6, 4)},
        WORDS,
        [6],
    ),
    "largest of a bag": (
        lambda n, x: n.b(n.e(words(x))),
        lambda: {"e": nn.EmbeddingBag(9, 6, mode="max", padding_idx=0), "b": nn.Linear(6, 4)},
        WORDS,
        [6],
    ),
    "bag with offsets": (
        lambda n, x: n.b(n.e(words(x).flatten(), 7 * torch.arange(x.shape[0]))),
        lambda: {"e": nn.EmbeddingBag(9, 6, mode="sum"), "b": nn.Linear(6, 4)},
        WORDS,
        [6],
    ),
    "bag function": (
        lambda n, x: n.b(F.embedding_bag(words(x), n.e.weight, mode="sum")),
        lambda: {"e": nn.Embedding(9, 6), "b": nn.Linear(6, 4)},
        WORDS,
        [6],
    ),
    "deformable": (
        lambda n, x: n.b(torch.tanh(n.d(torch.tanh(n.a(x)), n.o(x)))),
        lambda: pixels(d=DeformConv2d(8, 6, 3, padding=1)),
        PIXELS,
        [6, 8],
    ),
    "deformable, masked": (
        lambda n, x: n.b(n.d(torch.tanh(n.a(x)), n.o(x), n.w(x).sigmoid())),
        lambda: pixels(d=DeformConv2d(8, 6, 3, padding=1, bias=False), w=nn.Conv2d(3, 9, 3, padding=1)),
        PIXELS,
        [6, 8],
    ),
    "deformable in groups": (
        lambda n, x: n.b(n.d(torch.tanh(n.a(x)), n.o(x))),
        lambda: pixels(d=DeformConv2d(8, 6, 3, padding=1, groups=2)),
        PIXELS,
        [2, 3, 4],
    ),
    "deformable function": (
        lambda n, x: n.b(torchvision.ops.deform_conv2d(n.a(x).relu(), n.o(x), n.d.weight, n.d.bias, padding=1)),
        lambda: pixels(d=nn.Conv2d(8, 6, 3)),
        PIXELS,
        [6, 8],
    ),
}


def network(name: str, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    forward, layers, _, _ = CASES[name]
    return Network(forward, **layers())


@pytest.mark.parametrize("name", CASES)
def test_contracts(name: str) -> None:
    _, _, shape, spaces = CASES[name]
    graph = assert_contracts(network(name), shape)
    assert sorted(space.size for space in graph.spaces) == spaces
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert deviation(widen(graph, 1.5)(x), graph(x)) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_costs_before_and_after(name: str) -> None:
    graph, _, _ = typed(network(name), CASES[name][2])
    outer = {s.dim: max(1, s.size // 2) for s in graph.spaces if s.outer}
    small = compress(graph, {s.name: list(range(outer[s.dim])) for s in graph.spaces if s.outer})
    assert PlannedCost(graph).at(Widths(outer)) == cost(small)


@pytest.mark.parametrize("name", ["bilinear", "bag", "bag with offsets"])
def test_networks_side_by_side(name: str) -> None:
    (a, x, _), (b, _, _) = (typed(network(name, seed), CASES[name][2], seed=seed) for seed in (0, 1))
    with torch.no_grad():
        assert deviation(concatenate([a, b])(*x), (a(*x) + b(*x)) / 2) < 1e-12


def test_every_network_has_its_own_offsets() -> None:
    (a, x, _), (b, _, _) = (typed(network("deformable", seed), PIXELS, seed=seed) for seed in (0, 1))
    assert_direct_sum([a, b], x, apart="o")


def test_a_bilinear_layer_counts() -> None:
    graph, _, _ = typed(network("bilinear"), TOKENS)
    assert cost(graph).macs == 5 * (3 * 8 + 3 * 5 + 6 * 8 * 5 + 6 * 4)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("kind", ["similarity", "similarity function", "distance", "distance function"])
def test_distances(kind: str, p: float) -> None:
    calls: dict[str, Any] = {
        "similarity": nn.CosineSimilarity(-1),
        "similarity function": lambda a, b: F.cosine_similarity(a, b, -1),
        "distance": nn.PairwiseDistance(p, keepdim=True),
        "distance function": lambda a, b: F.pairwise_distance(a, b, p),
    }
    call = calls[kind]
    layers = {"call": call} if isinstance(call, nn.Module) else {}
    forward = lambda n, x: getattr(n, "call", call)(n.a(x), torch.tanh(n.c(x)))  # noqa: E731
    torch.manual_seed(0)
    graph = assert_contracts(Network(forward, a=nn.Linear(3, 8), c=nn.Linear(3, 8), **layers), (3,))
    assert [(space.size, bool(space.mixed)) for space in graph.spaces] == [(8, True)]
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert deviation(widen(graph, 1.5)(x), graph(x)) < 1e-12


@pytest.mark.parametrize("pool", ["roi_align", "roi_pool", "layer"])
def test_regions(pool: str) -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        h = torch.tanh(n.a(x))
        cut = n.r(h, boxes(x)) if pool == "layer" else getattr(torchvision.ops, pool)(h, boxes(x), (2, 2))
        return n.b(cut)

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1), "r": RoIAlign((2, 2), 1.0, 2)}
    graph = assert_contracts(Network(forward, **layers), PIXELS)
    assert [space.size for space in graph.spaces] == [8]


@pytest.mark.parametrize("name", ["bilinear", "bag", "deformable in groups", "distance", "regions"])
def test_saved_and_exported(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    if name == "distance":
        module, shape = (
            Network(lambda n, x: F.pairwise_distance(n.a(x), n.c(x)), a=nn.Linear(3, 8), c=nn.Linear(3, 8)),
            (3,),
        )
    elif name == "regions":
        forward = lambda n, x: torchvision.ops.roi_align(n.a(x), boxes(x), (2, 2), 1.0, 2)  # noqa: E731
        module, shape = Network(forward, a=nn.Conv2d(3, 8, 1)), PIXELS
    else:
        module, shape = network(name), CASES[name][2]
    x = torch.randn(3, *shape)
    graph = gs.trace(module.eval(), x)
    gs.save(graph, tmp_path / "n.pt")
    assert torch.equal(gs.load(tmp_path / "n.pt")(x), graph(x))
    gs.export_onnx(graph, tmp_path / "n.onnx")
    gs.check_onnx(graph, tmp_path / "n.onnx")
