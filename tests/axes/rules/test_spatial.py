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


def test_pixel_shuffle():
    network = nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2), nn.Tanh(), nn.Conv2d(3, 2, 1))
    graph = assert_contracts(network, (3, 4, 4))
    assert [s.size for s in graph.spaces] == [3]


WINDOWS = {
    "unfold and fold": (lambda h: F.fold(F.unfold(h, 3, padding=1), 4, 3, padding=1), 8),
    "nn.Unfold": (lambda h: F.unfold(h, (2, 1), stride=2).unflatten(2, (2, 2)), 16),
    "unfold one axis": (lambda h: h.unfold(2, 2, 1).unfold(3, 2, 2).mean((-1, -2)), 8),
    "unfold by name": (lambda h: h.unfold(dimension=3, size=2, step=2)[..., 1], 8),
    "pixel_unshuffle": (lambda h: F.pixel_unshuffle(h, 2), 32),
    "pixel_shuffle": (lambda h: F.pixel_shuffle(F.pixel_unshuffle(h, 2), 2), 8),
    "maxima and their places": (lambda h: F.max_pool2d(h, 2, return_indices=True)[0], 8),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name):
    operator, after = WINDOWS[name]
    network = Network(lambda n, x: n.b(operator(torch.tanh(n.a(x)))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(after, 2, 1))
    graph = assert_contracts(network, (3, 4, 4))
    assert sum(s.size for s in graph.spaces) >= 7
    assert all(not s.mixed for s in graph.spaces)


def test_sampling_where_the_input_says():
    network = Network(
        lambda n, x: n.b(F.grid_sample(n.a(x), x[:, :2].permute(0, 2, 3, 1), align_corners=False)),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 2, 1),
    )
    graph = assert_contracts(network, (3, 4, 4))
    assert [(s.size, s.mixed) for s in graph.spaces] == [(8, ())]


def test_windows_as_modules():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Unfold(2, stride=2), nn.Fold(4, 2, stride=2), nn.PixelUnshuffle(2), nn.Conv2d(32, 2, 1)
    )
    graph = assert_contracts(network, (3, 4, 4))
    assert [s.size for s in graph.spaces] == [8]
    assert not graph.frozen


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
