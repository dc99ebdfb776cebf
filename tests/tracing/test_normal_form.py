"""Layers that are another layer, once they are looked at."""

import pytest
import torch
from contracts import Network, assert_contracts, typed
from torch import nn

import graphsurgery as gs
from graphsurgery.onnx.exporting.exporter import export_onnx
from graphsurgery.surgery.deviation import deviation


class Renamed(nn.SyncBatchNorm):
    """But another constructor."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-2, momentum=0.3)


CASES = {
    "vectors": (lambda norm: nn.Sequential(nn.Linear(3, 6), norm, nn.ReLU(), nn.Linear(6, 2)), (3,), nn.BatchNorm1d),
    "sequences": (lambda norm: nn.Sequential(nn.Conv1d(3, 6, 2), norm, nn.Conv1d(6, 2, 1)), (3, 4), nn.BatchNorm1d),
    "images": (lambda norm: nn.Sequential(nn.Conv2d(3, 6, 2), norm, nn.Conv2d(6, 2, 1)), (3, 4, 4), nn.BatchNorm2d),
    "volumes": (lambda norm: nn.Sequential(nn.Conv3d(3, 6, 1), norm, nn.Conv3d(6, 2, 1)), (3, 2, 2, 2), nn.BatchNorm3d),
}


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm, Renamed])
@pytest.mark.parametrize("name", CASES)
def test_a_batch_norm_that_synchronises_is_one(name, norm, tmp_path):
    build, shape, kind = CASES[name]
    network = build(norm(6))
    assert type(assert_contracts(network, shape).module.get_submodule("1")) is kind
    network.float().train()
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    graph = gs.trace(network, x)
    for mode in (True, False):
        torch.testing.assert_close(graph.module.train(mode)(x), network.train(mode)(x), rtol=0, atol=0)
    torch.testing.assert_close(dict(graph.module.named_buffers()), dict(network.named_buffers()), rtol=0, atol=0)
    gs.save(graph, tmp_path / "a.pt")
    stored = gs.load(tmp_path / "a.pt")
    torch.testing.assert_close(stored(x), network(x), rtol=0, atol=0)
    export_onnx(stored, tmp_path / "a.onnx")


def test_a_batch_norm_inside_a_branch_of_one_mode():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm, self.head = nn.Linear(3, 6), nn.SyncBatchNorm(6), nn.Linear(6, 2)

        def forward(self, x):
            y = torch.relu(self.body(x))
            return (self.head(y), self.norm(y)) if self.training else self.head(y)

    network, x = Auxiliary(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    graph = gs.trace(network, x)
    for found, expected in zip(graph.module.train()(x), network.train()(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert type(graph.module.get_submodule("norm")) is nn.BatchNorm1d


NAMED = {
    "values": lambda h: h.max(1, keepdim=True).values,
    "of a function": lambda h: torch.min(h, dim=1, keepdim=True).values,
    "sorted": lambda h: h.sort(-1).values.flip(-1),
    "largest": lambda h: h.topk(2, dim=1).values.sum(1, keepdim=True),
    "index": lambda h: h * h.max(1, keepdim=True).indices,
}


@pytest.mark.parametrize("name", NAMED)
def test_results_that_are_taken_by_name_can_be_saved(name, tmp_path):
    network = Network(
        lambda net, x: net.b(NAMED[name](net.a(x)).expand(-1, 6, -1)), a=nn.Conv1d(3, 6, 1), b=nn.Conv1d(6, 2, 1)
    )
    graph, x, network = typed(network, (3, 4))
    gs.save(graph, tmp_path / "m.pt")
    with torch.no_grad():
        assert deviation(graph(*x), network(*x)) < 1e-12
        assert torch.equal(gs.load(tmp_path / "m.pt")(*x), graph(*x))
