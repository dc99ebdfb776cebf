"""Heads as detectors of libraries have them: strides in a plain tensor, grids that are kept for the next call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphsurgery as gs


class Head(nn.Module):
    """Boxes on a grid for each level, whose strides a tensor holds that is no buffer."""

    def __init__(self, asks=False):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(6, 4, 1) for _ in range(2))
        self.stride = torch.tensor([8.0, 16.0])
        self.shape, self.asks, self.points = None, asks, torch.empty(0)

    def forward(self, maps):
        if self.asks and float(maps[0].sum()) > 1e9:
            return maps
        found = [conv(x).flatten(2) for conv, x in zip(self.convs, maps, strict=True)]
        if self.shape != maps[0].shape:
            steps = [x.new_full((x.shape[2] * x.shape[3], 1), self.stride[i]) for i, x in enumerate(maps)]
            self.points, self.shape = torch.cat(steps).transpose(0, 1), maps[0].shape
        return {"boxes": torch.cat(found, 2) * self.points, "levels": found} if not self.training else found


class Detector(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1)
        self.head = Head(**options)

    def forward(self, x):
        x = self.stem(x)
        return self.head([x, self.down(x)])


def test_strides_in_a_plain_tensor_fill_a_grid():
    torch.manual_seed(0)
    model = Detector().double().eval()
    graph = gs.trace(model, torch.zeros(2, 3, 8, 8))
    assert not [node for node in graph.module.graph.nodes if "unfollowed" in node.meta]
    for side in (8, 12):
        x = torch.randn(3, 3, side, side, dtype=torch.float64)
        torch.testing.assert_close(graph(x)["boxes"], model(x)["boxes"])
    assert {space.name for space in graph.spaces} == {"stem", "down"}


def test_a_part_that_is_kept_whole_has_nothing_of_the_trace_in_it():
    torch.manual_seed(0)
    model = Detector(asks=True).double().eval()
    graph = gs.trace(model, torch.zeros(2, 3, 8, 8))
    assert [str(node.target) for node in graph.module.graph.nodes if "unfollowed" in node.meta] == ["head"]
    assert not graph.module.head.points.is_meta
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(graph(x)["boxes"], model(x)["boxes"])


class Shuffled(nn.Module):
    """A channel shuffle, and another structure of outputs in training."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.a(x)
        x = x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        y = self.b(x)
        return (y, x) if self.training else (y, (x, y))


@pytest.mark.parametrize("training", [False, True])
def test_a_choice_of_the_mode_that_is_no_tensor_beside_a_shuffle(training):
    torch.manual_seed(0)
    model = Shuffled().double().train(training)
    graph = gs.trace(model, torch.zeros(2, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(graph(x)[0], model(x)[0], rtol=1e-12, atol=1e-12)
