"""Spaces whose channels are positions: bins that a softmax makes shares of and a fixed vector reads."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx_files import scripted
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import gate, gateable
from graphsurgery.passes.slim import slim
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.channels.slimming import Slimmable
from graphsurgery.surgery.gates import gates

BINS = 8


class Distances(nn.Module):
    """The mean of a distribution over bins, as YOLO reads it: by a convolution whose weight is 0, 1, 2, …"""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(BINS, dtype=torch.float).view(1, BINS, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, anchors = x.shape
        return self.conv(x.view(batch, 4, BINS, anchors).transpose(2, 1).softmax(1)).view(batch, 4, anchors)


class Head(nn.Module):
    """Boxes and scores of a small detector."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.SiLU())
        self.box = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.SiLU(), nn.Conv2d(10, 4 * BINS, 1))
        self.score = nn.Conv2d(6, 5, 1)
        self.distances = Distances()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat([self.distances(self.box(x).flatten(2)), self.score(x).flatten(2).sigmoid()], 1)


class Product(nn.Module):
    """The same by a product with a buffer, and by a sum of weighted shares."""

    def __init__(self, summed: bool) -> None:
        super().__init__()
        self.stem, self.bins, self.summed = nn.Linear(4, 6), nn.Linear(6, BINS), summed
        self.register_buffer("values", torch.logspace(0, 2, BINS))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.bins(self.stem(x).relu()).softmax(-1)
        return (shares * self.values).sum(-1, keepdim=True) if self.summed else shares @ self.values[:, None]


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    module = Head().eval()
    nn.init.uniform_(module.stem[1].running_var, 0.5, 2)
    return module, gs.trace(module, torch.zeros(2, 3, 8, 8))


def positional(graph):
    return [space for space in graph.spaces if space.positions]


def sizes(graph):
    return {space.name: space.size for space in graph.spaces}


def test_the_bins_of_a_head_are_found(head):
    (space,) = positional(head[1])
    assert space.size == BINS
    assert space.positions == "a softmax makes shares of them, which distances.conv.weight reads as 0 to 7"
    assert not space.chosen


def test_only_a_name_cuts_them(head):
    graph = head[1]
    (space,) = positional(graph)
    small = compress(graph, 0.5)
    assert sizes(small)[space.name] == BINS
    assert all(size < sizes(graph)[name] for name, size in sizes(small).items() if name != space.name)
    assert sizes(compress(graph, target="params=0.6x"))[space.name] == BINS
    assert sizes(compress(graph, {space.name: 4}))[space.name] == 4


def test_boxes_stay_boxes(head):
    """What is left of the distances is still a mean over all bins: it reaches beyond the middle."""
    graph = compress(head[1], 0.5)
    last = graph.module.get_submodule("box.2")
    with torch.no_grad():
        last.weight.zero_()
        last.bias.view(4, BINS).zero_()[:, -1] = 50
        boxes = graph.module(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))[:, :4]
    torch.testing.assert_close(boxes, torch.full_like(boxes, BINS - 1))


def test_no_pass_takes_them_by_default(head):
    graph = head[1]
    (space,) = positional(graph)
    assert space.name not in {each.name for each in gateable(graph)}
    assert len(list(gates(gate(graph)))) == len(gateable(graph))
    assert space.name not in Slimmable(slim(graph)).spaces
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(widen(graph, 1.5).module.eval()(x), head[0](x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("summed", [False, True])
def test_unevenly_spaced_bins(summed):
    torch.manual_seed(0)
    graph = gs.trace(Product(summed).eval(), torch.zeros(2, 4))
    small = compress(graph, 0.5)
    assert (small.module.get_submodule("stem").out_features, small.module.get_submodule("bins").out_features) == (
        3,
        BINS,
    )


def test_the_same_head_in_a_file(head, tmp_path):
    path = scripted(head[0], torch.zeros(2, 3, 8, 8), tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    (space,) = positional(graph)
    assert space.size == BINS
    rewrite_onnx(path, compress(graph, 0.5), tmp_path / "small.onnx")
    shapes = {tuple(i.dims) for i in onnx.load(tmp_path / "small.onnx").graph.initializer}
    assert (1, BINS, 1, 1) in shapes
    assert (4 * BINS, 5, 1, 1) in shapes


def test_a_trained_reader_of_shares_gives_no_meaning():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), nn.Linear(6, 3))
    assert not positional(gs.trace(network, torch.zeros(2, 4)))


def test_constants_that_read_what_is_trained():
    """A fixed filter bank: its rows have a meaning; of a network that is frozen as a whole nothing is said."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    network[2].requires_grad_(False)
    (space,) = positional(gs.trace(network, torch.zeros(2, 4)))
    assert space.positions == "only 2.weight reads them, which no training changes"
    network.requires_grad_(False)
    assert not positional(gs.trace(network, torch.zeros(2, 4)))
