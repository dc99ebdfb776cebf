"""Losses and distances that a forward computes of its own channels."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_permutes, typed
from torch import nn

from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import undo, widen
from graphsurgery.surgery.deviation import deviation


def scaled(loss):
    """A network that divides what it gives by a loss of two of its values."""
    return Network(
        lambda n, x: n.c((h := torch.sigmoid(n.a(x))) / (1 + loss(h, torch.sigmoid(n.b(x))))),
        a=nn.Linear(3, 8),
        b=nn.Linear(3, 8),
        c=nn.Linear(8, 4),
    )


LOSSES = {
    "mse_loss": F.mse_loss,
    "a sum": lambda a, b: F.mse_loss(a, b, reduction="sum"),
    "number by number": lambda a, b: F.l1_loss(a, b, reduction="none"),
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": nn.HuberLoss(),
    "binary_cross_entropy": F.binary_cross_entropy,
    "kl_div": lambda a, b: F.kl_div(a, b, reduction="batchmean").square(),
    "cross_entropy of shares": lambda a, b: F.cross_entropy(a, b.softmax(1)),
    "triplet_margin_loss": lambda a, b: F.triplet_margin_loss(a, b, b.flip(0)),
    "pairwise_distance": lambda a, b: F.pairwise_distance(a, b, keepdim=True),
    "cdist": lambda a, b: torch.cdist(a, b).mean(),
    "dist": torch.dist,
    "vecdot": lambda a, b: torch.linalg.vecdot(a, b).unsqueeze(-1),
    "inner": lambda a, b: torch.inner(a, b).mean(1, keepdim=True),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_inside_a_forward(name):
    graph, x, network = typed(scaled(LOSSES[name]), (3,))
    assert not graph.frozen
    assert [space.size for space in graph.spaces] == [8]
    with torch.no_grad():
        assert deviation(graph(*x), network(*x)) < 1e-12
        assert_permutes(graph, x)
        wide = widen(graph, to={graph.spaces[0].name: 11})
        assert deviation(wide(*x), graph(*x)) < 1e-12
        assert deviation(undo(wide)(*x), graph(*x)) < 1e-12
        assert compress(graph, 0.5)(*x).shape == (3, 4)


def test_labels_name_the_classes_that_they_stand_for():
    loss = lambda a, b: F.cross_entropy(a, b.argmax(1))  # noqa: E731
    graph, _, _ = typed(scaled(loss), (3,))
    assert not graph.spaces
    assert {frozen.reason for frozen in graph.frozen} == {
        "an axis in which an index is found",
        "classes that labels name",
    }
