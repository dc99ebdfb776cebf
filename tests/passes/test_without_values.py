"""A network on the meta device: what does not look at weights works on it, and everything else refuses it."""

import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.errors import SurgeryError
from graphsurgery.passes.gate import fold, gate
from graphsurgery.passes.slim import slim

LOOK = {
    "compress l2": lambda graph: gs.compress(graph, 0.5),
    "compress l1": lambda graph: gs.compress(graph, target="params=0.5x", importance="l1"),
    "compress bn": lambda graph: gs.compress(graph, 0.5, importance="bn"),
    "slim": slim,
    "concatenate": lambda graph: gs.concatenate([graph, graph]),
    "align": lambda graph: gs.align(graph, graph),
    "prune_dead": gs.prune_dead,
    "factorize": lambda graph: gs.factorize(graph, rank=0.5),
    "fold": lambda graph: fold(gate(graph)),
}
DO_NOT = {
    "a random cut": lambda graph: gs.compress(graph, 0.5, importance="random"),
    "a cut to a target": lambda graph: gs.compress(graph, target="params=0.5x", importance="random"),
    "channels that are named": lambda graph: gs.compress(graph, {graph.spaces[0].name: [0, 3]}),
    "widen": lambda graph: gs.widen(graph, 2),
    "deepen": gs.deepen,
}


def without_values():
    with torch.device("meta"):
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 5),
        )  # fmt: skip
    return gs.trace(net.eval(), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("name", LOOK)
def test_what_looks_at_weights_says_that_there_are_none(name):
    with pytest.raises(SurgeryError, match=r"looks at the weights, and .* has no values \(it is on the meta device\)"):
        LOOK[name](without_values())


@pytest.mark.parametrize("name", DO_NOT)
def test_what_does_not_gives_the_sizes(name):
    graph = without_values()
    new = DO_NOT[name](graph)
    assert gs.cost(new) != gs.cost(graph)
    assert all(tensor.is_meta for tensor in new.tensors().values())


def test_large_weights_without_values_are_not_gathered_row_by_row():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 2**14), nn.ReLU(), nn.Linear(2**14, 2**14), nn.ReLU(), nn.Linear(2**14, 4))
    small = gs.compress(gs.trace(net, torch.zeros(2, 4)), 0.5, importance="random")
    assert small.tensors()["2.weight"].shape == (2**13, 2**13)
