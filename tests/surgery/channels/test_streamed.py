"""Scores of weights that are read row by row are those of weights in memory, and everything is read once."""

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from stored_rows import Rows

import graphsurgery as gs
from graphsurgery.errors import SurgeryError
from graphsurgery.passes.compress import compress
from graphsurgery.surgery.channels.importance import Scores
from graphsurgery.surgery.channels.nesting import Nesting
from graphsurgery.surgery.channels.streamed import StreamedScores
from graphsurgery.surgery.remapping import gathering


def stored_of(graph):
    tensors = graph.tensors()
    return {name: Rows(tensors[name].detach()) for name in dict.fromkeys(graph.types.canonical.values())}


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn", "random"])
@pytest.mark.parametrize("name", zoo.FEW)
def test_scores_are_those_of_weights_in_memory(name, criterion, monkeypatch):
    graph, _ = zoo.traced(name)
    monkeypatch.setattr(gathering, "_READ", 500)
    stored = stored_of(graph)
    scores, known = StreamedScores(graph, criterion, 0, stored), Scores(graph, criterion)
    sums = scores.read(stored)
    read = sum(rows.total for rows in stored.values())
    for space in graph.spaces:
        torch.testing.assert_close(scores.of(space), known.of(space), rtol=1e-12, atol=1e-15)
    assert read == sum(rows.total for rows in stored.values()) <= sum(rows.tensor.numel() for rows in stored.values())
    again = StreamedScores(graph, criterion, 0, {})
    again.know(sums)
    assert all(torch.equal(again.of(space), scores.of(space)) for space in graph.spaces)


@pytest.mark.parametrize("name", ["vit", "mobilenet_v3"])
def test_scores_in_groups(name):
    graph, _ = zoo.traced(name)
    nesting, scores = Nesting(graph), StreamedScores(graph, "l2", 0, stored_of(graph))
    for family in nesting.families:
        for space in family.inners:
            outers = nesting.outers(space)
            torch.testing.assert_close(
                scores.of(space, outers), Scores(graph, "l2").of(space, outers), rtol=1e-12, atol=0
            )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from(["l1", "l2", "bn"]), st.integers(1, 300))
def test_random_networks_are_cut_alike(seed, criterion, numbers):
    torch.manual_seed(seed)
    graph = gs.trace(RandomNetwork(seed).double().eval(), torch.randn(2, 3, 4, 4), check=False)
    if not any(space.chosen for space in graph.spaces):
        return
    usual, gathering._READ = gathering._READ, numbers
    try:
        small = compress(graph, 0.5, importance=StreamedScores(graph, criterion, 0, stored_of(graph)))
    finally:
        gathering._READ = usual
    expected = compress(graph, 0.5, importance=criterion)
    assert small.lineage == expected.lineage
    assert all(torch.equal(tensor, expected.tensors()[name]) for name, tensor in small.tensors().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_up_in_single(dtype):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(300, 8), torch.nn.Linear(8, 700)).to(dtype)
    graph = gs.trace(net, torch.zeros(2, 300, dtype=dtype), check=False)
    (space,) = graph.spaces
    exact = ((net[0].weight.double() ** 2).sum(1) + (net[1].weight.double() ** 2).sum(0)).sqrt()
    streamed = StreamedScores(graph, "l2", 0, stored_of(graph))
    for scores in (Scores(graph, "l2"), streamed):
        torch.testing.assert_close(scores.of(space), exact.detach(), rtol=1e-5, atol=0)


def test_an_unknown_criterion_is_refused():
    graph, _ = zoo.traced("vit")
    with pytest.raises(SurgeryError, match="importance l3 is unknown"):
        StreamedScores(graph, "l3", 0, {})
