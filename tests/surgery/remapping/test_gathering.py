"""Weights that are read from files are gathered as those in memory are, and no more than some rows at a time."""

from __future__ import annotations

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from stored_rows import Rows

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.surgery.remapping import gathering
from graphsurgery.surgery.remapping.gathering import gather, rows_at_a_time


def check(graph, small, at_once):
    """Every tensor of an edit, from rows of the tensors before."""
    before, after, origin = graph.tensors(), small.tensors(), small.origin
    for name, typed in origin.parameters.items():
        stored = Rows(before[name].detach())
        found = gather(origin.edit, typed, stored, origin.folded.get(name, {}))
        if name in after:
            assert torch.equal(found, after[name])
        apart = any(
            (lifted := origin.edit.lift_in(typed.axes, i)) and lifted.beside is not None for i in range(len(typed.axes))
        )
        whole = apart or not stored.shape
        assert whole or stored.largest <= max(at_once, stored.tensor[:1].numel())
        assert stored.total <= stored.tensor.numel()


@pytest.mark.parametrize(("name", "within"), [("vit", "each"), ("mobilenet_v3", "groups"), ("convnext", "groups")])
def test_what_is_read_row_by_row_is_what_is_in_memory(name, within, monkeypatch):
    graph, _ = zoo.traced(name)
    small = compress(graph, 0.5, within=within)
    monkeypatch.setattr(gathering, "_READ", 50)
    check(graph, small, 50)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.6]), st.integers(1, 2000))
def test_random_networks(seed, keep, numbers):
    torch.manual_seed(seed)
    graph = gs.trace(RandomNetwork(seed).double().eval(), torch.zeros(2, 3, 4, 4), check=False)
    if not graph.spaces:
        return
    usual, gathering._READ = gathering._READ, numbers
    try:
        check(graph, compress(graph, keep, importance="random", seed=seed), numbers)
    finally:
        gathering._READ = usual


def test_rows_at_a_time_are_some_megabytes_or_one_row():
    assert rows_at_a_time((100_000, 4096)) == 1024
    assert rows_at_a_time((3, 10**9)) == 1
    assert rows_at_a_time((7, 0)) == rows_at_a_time(()) == gathering._READ


def test_a_tensor_without_rows_is_read():
    graph = gs.trace(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), torch.zeros(2, 3))
    small = compress(graph, 0.5)
    number = Rows(torch.tensor(7))
    typed = type(next(iter(graph.types.parameters.values())))("n", ())
    assert gather(small.origin.edit, typed, number, {}) == 7
