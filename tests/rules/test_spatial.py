"""Pooling, resizing, padding of positions, reductions."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts
from torch import nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {
    1: [
        nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(3), nn.AdaptiveMaxPool1d(3), nn.LPPool1d(2, 2),
        nn.Upsample(scale_factor=2), nn.ZeroPad1d(1), nn.ReflectionPad1d(1), nn.ReplicationPad1d((2, 1)),
    ],
    2: [
        nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((1, 3)), nn.AdaptiveMaxPool2d(3), nn.LPPool2d(2, 2),
        nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.UpsamplingBilinear2d(scale_factor=2),
        nn.UpsamplingNearest2d(8), nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d((2, 1, 0, 1)),
        nn.ConstantPad2d(1, 0.5),
    ],
    3: [nn.MaxPool3d(2), nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(3), nn.AdaptiveMaxPool3d(3)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "pool"), [(rank, pool) for rank, pools in POOLS.items() for pool in pools], ids=lambda v: str(v)
)
def test_modules(rank, pool):
    kind = CONVOLUTIONS[rank]
    graph = assert_contracts(nn.Sequential(kind(3, 8, 1), nn.Sigmoid(), pool, kind(8, 2, 1)), (3, *[4] * rank))
    assert [s.size for s in graph.spaces] == [8]


FUNCTIONS = {
    "max_pool1d": (1, lambda h: F.max_pool1d(h, 2)),
    "max_pool2d": (2, lambda h: F.max_pool2d(h, 2, stride=1)),
    "max_pool3d": (3, lambda h: F.max_pool3d(h, 2)),
    "avg_pool1d": (1, lambda h: F.avg_pool1d(h, 2)),
    "avg_pool2d": (2, lambda h: F.avg_pool2d(h, (2, 1))),
    "avg_pool3d": (3, lambda h: F.avg_pool3d(h, 2)),
    "adaptive_avg_pool1d": (1, lambda h: F.adaptive_avg_pool1d(h, 3)),
    "adaptive_avg_pool2d": (2, lambda h: F.adaptive_avg_pool2d(h, (3, 1))),
    "adaptive_avg_pool3d": (3, lambda h: F.adaptive_avg_pool3d(h, 2)),
    "adaptive_max_pool2d": (2, lambda h: F.adaptive_max_pool2d(h, 3)),
    "interpolate": (2, lambda h: F.interpolate(h, scale_factor=2.0, mode="nearest")),
    "interpolate to a computed size": (2, lambda h: F.interpolate(h, size=(h.shape[2] * 2, 3))),
    "lp_pool2d": (2, lambda h: F.lp_pool2d(h, 2.0, 2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    rank, function = FUNCTIONS[name]
    kind = CONVOLUTIONS[rank]
    network = Network(lambda n, x: n.b(function(torch.sigmoid(n.a(x)))), a=kind(3, 8, 1), b=kind(8, 2, 1))
    graph = assert_contracts(network, (3, *[4] * rank))
    assert [s.size for s in graph.spaces] == [8]


REDUCTIONS = {
    "mean": lambda h: h.mean((2, 3)),
    "mean in NumPy's words": lambda h: h.mean(axis=(2, 3), keepdims=True).flatten(1),
    "torch.mean": lambda h: torch.mean(h, dim=[-1, -2]),
    "sum": lambda h: torch.sum(h.sum(-1), 2),
    "amax and amin": lambda h: h.amax((2, 3)) - torch.amin(h, dim=(2, 3), keepdim=True)[:, :, 0, 0],
    "var and std": lambda h: torch.var(h, (2, 3)) + h.flatten(2).std(-1, False),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_over_positions(name):
    network = Network(lambda n, x: n.b(REDUCTIONS[name](n.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 2))
    graph = assert_contracts(network, (3, 4, 4))
    assert [(s.size, s.mixed) for s in graph.spaces] == [(8, ())]


@pytest.mark.parametrize(
    "reduce",
    [
        lambda h: h.mean(1, keepdim=True),
        lambda h: torch.amax(h, 1, True),
        lambda h: h.sum(),
        lambda h: torch.mean(h, (1, 2, 3))[:, None, None, None],
    ],
)
def test_reductions_over_channels_mix(reduce):
    network = Network(lambda n, x: n.b(n.a(x) * reduce(n.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1))
    graph = assert_contracts(network, (3, 4, 4))
    assert graph.spaces[0].mixed[0].startswith("mean at")


def test_pixel_shuffle():
    network = nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2), nn.Tanh(), nn.Conv2d(3, 2, 1))
    graph = assert_contracts(network, (3, 4, 4))
    assert [s.size for s in graph.spaces] == [3]


@pytest.mark.parametrize(
    "pool",
    [
        lambda h: F.max_pool2d(h, 3, 1, 1),
        lambda h: F.avg_pool2d(h, 2).repeat(1, 2, 2),
        lambda h: F.adaptive_avg_pool2d(h, (8, 4)),
    ],
)
def test_pooling_that_reaches_over_channels_is_frozen(pool):
    """`F.max_pool2d` of `[batch, channels, length]` pools channels and length."""
    network = Network(lambda n, x: n.b(pool(n.a(x))), a=nn.Conv1d(3, 8, 1), b=nn.Conv1d(8, 2, 1))
    graph = assert_contracts(network, (3, 4))
    assert not graph.spaces
