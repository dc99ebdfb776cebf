"""What an edit did to the outputs, on random inputs."""

import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen
from graphsurgery.recipes.contracts.moved import moved


def _net(outputs=10):
    torch.manual_seed(0)
    return gs.trace(nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, outputs)), torch.zeros(2, 5))


def test_a_cut_moves_the_outputs_as_it_does():
    graph = _net()
    small = compress(graph, {"0": 2})
    found = moved(graph, small, seed=3)
    assert (found.inputs, found.stays) == (100, False)
    x = torch.cat([graph.example_inputs(4, seed=3 + start)[0] for start in range(0, 100, 4)])
    with torch.no_grad():
        old, new = graph(x), small(x)
    assert found.same == int((old.argmax(1) == new.argmax(1)).sum())
    assert 0 < found.same < 100
    far = [((n - o).abs().max() / o.abs().max()).item() for o, n in zip(old.split(4), new.split(4), strict=True)]
    assert found.deviation == pytest.approx(max(far), rel=1e-5)
    words = f"{found.deviation:.1e} of the largest; on {found.same} of 100 random inputs the class stays"
    assert str(found) == f"the outputs move by {words}"


def test_an_exact_edit_moves_nothing():
    graph = _net()
    found = moved(graph, widen(graph, by=2.0))
    assert found.stays
    assert found.same == found.inputs


def test_outputs_without_classes_have_none():
    graph = _net(outputs=1)
    assert moved(graph, compress(graph, {"0": 2})).same is None


def test_indices_are_one_input():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    graph = gs.trace(network, torch.zeros(2, 3, dtype=torch.long))
    found = moved(graph, compress(graph, {"1": 4}))
    assert (found.inputs, found.same) == (1, None)
    assert str(found).endswith("on 1 random input")
