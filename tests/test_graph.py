"""What a typed network says of itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import traced

import graphsurgery as gs


def test_a_network_is_summed_up():
    network = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3))
    graph = gs.compress(gs.trace(network.eval(), torch.zeros(2, 5)), {"0": 8})
    assert repr(graph).splitlines() == [
        "ModelGraph of 5 nodes",
        "  input   input [batch, 5] torch.float32",
        "  weights 75 parameters, 300 bytes with buffers",
        "  spaces  1, 0 (8)",
        "  frozen  0 nodes",
        "  made by trace, compress",
    ]


@pytest.mark.parametrize("name", ["vit", "resnet18"])
def test_in_ten_lines_whatever_it_is(name):
    graph, _ = traced(name)
    lines = f"{graph}".splitlines()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 100
    assert f"{sum(p.numel() for p in graph.module.parameters()):,} parameters" in lines[2]
    assert f"spaces  {len(graph.spaces)}, " in lines[3]


def test_of_many_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 6)

        def forward(self, a, b, c, d):
            return self.first(a) + self.first(b) * c.sum() + d

    graph = gs.trace(Sum().eval(), tuple(torch.zeros(2, n) for n in (4, 4, 3, 6)))
    lines = repr(graph).splitlines()
    assert len(lines) <= 10
    assert "          … 2 more inputs" in lines
