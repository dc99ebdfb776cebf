"""Parts that repeat are folded into one box, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.reports.diagrams.diagram import Box, Diagram
from graphsurgery.reports.diagrams.network_diagram import network_diagram
from graphsurgery.reports.diagrams.page import rendered
from graphsurgery.reports.diagrams.repeats import folded, repeats


def chain(kinds, *more):
    """Boxes in a row, one for each letter, with more edges."""
    boxes = {str(i): Box(f"{kind}{i}", alike=kind, parameters=1, nodes=(str(i),)) for i, kind in enumerate(kinds)}
    edges = [(str(i), str(i + 1)) for i in range(len(kinds) - 1)]
    return Diagram("t", (), boxes, (*edges, *more), (), {})


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ("xababab", [(1, 2, 3)]),
        ("xabababa", [(1, 2, 3)]),
        ("xaaaab", [(1, 1, 4)]),
        ("xabcabcydedede", [(1, 3, 2), (8, 2, 3)]),
        ("abab", []),  # folding would hide but two
        ("abcd", []),
    ],
)
def test_what_repeats(kinds, found):
    assert [(one.first, one.period, one.copies) for one in repeats(chain(kinds))] == found


def test_what_reads_something_else_is_no_repeat():
    kinds = "xabcabcabc"
    assert [one.copies for one in repeats(chain(kinds))] == [3]
    # The third copy reads another box beside the one before it; a box far away that all read is no difference.
    assert [one.copies for one in repeats(chain(kinds, ("2", "9")))] == [2]
    assert [one.copies for one in repeats(chain(kinds, ("0", "3"), ("0", "6"), ("0", "9")))] == [3]


def test_a_fold_stands_for_what_it_hides():
    whole = chain("xabababy")
    small = folded(whole)
    assert list(small.boxes) == ["0", "1", "2", "3", "7"]
    fold = small.boxes["3"]
    assert fold.title == "2 more like the 2 boxes above"
    assert (fold.parameters, fold.copies, fold.nodes) == (4, 2, ("3", "4", "5", "6"))
    assert small.edges == (("0", "1"), ("1", "2"), ("2", "3"), ("3", "7"))
    assert folded(small) is None


def test_the_page_has_both_pictures():
    assert rendered(chain("xababab")).count('class="picture"') == 2
    assert rendered(chain("xyz")).count('class="picture"') == 1


def test_stages_of_a_network_fold():
    torch.manual_seed(0)
    block = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Tanh()]
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *[layer for _ in range(3) for layer in block])
    diagram = network_diagram(gs.trace(network.eval(), torch.zeros(2, 3, 5, 5)), "net")
    small = folded(diagram)
    assert len(diagram.boxes) - len(small.boxes) == 3
    assert sum(box.macs for box in small.boxes.values()) == sum(box.macs for box in diagram.boxes.values())


class Residual(nn.Module):
    """Blocks that add to what they read, and a mask that all of them read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.mask = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x)) * self.mask
        return self.head(x)


def test_residual_blocks_fold():
    diagram = network_diagram(gs.trace(Residual().eval(), torch.zeros(2, 6)), "net")
    assert [(one.period, one.copies) for one in repeats(diagram)] == [(3, 3)]  # the mask comes amid the first block
