"""Edits of edits: nodes keep their names, graphs stay whole, and what is written is read again."""

from __future__ import annotations

import pytest
import torch
from contracts import random_choice, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import INDEXED, SHUFFLES, STEPS, RandomNetwork

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import fold, gate
from graphsurgery.passes.prune_dead import prune_dead
from graphsurgery.passes.slim import slim
from graphsurgery.passes.widen import undo, widen
from graphsurgery.surgery.deviation import deviation

EDITS = {
    "widen": lambda graph, seed: widen(graph, 1.5, seed=seed),
    "undo": lambda graph, seed: undo(widen(graph, 1.4, seed=seed)),
    "compress": lambda graph, seed: compress(graph, 0.6, importance="random", seed=seed),
    "fold": lambda graph, seed: fold(gate(graph, seed=seed)),
    "cut gates": lambda graph, seed: compress(gate(graph, seed=seed), 0.7, importance="gate"),
    "slim": lambda graph, seed: slim(graph),  # noqa: ARG005
    "prune dead": lambda graph, seed: prune_dead(graph),  # noqa: ARG005
}


@given(st.integers(0, 10**6), st.lists(st.sampled_from(sorted(EDITS)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_edits_in_a_row(seed, edits):
    kinds = [*INDEXED, *STEPS, *INDEXED, *SHUFFLES]
    graph, x, _ = typed(RandomNetwork(seed, steps=6, kinds=kinds), (3, 4, 4), seed=seed)
    for name in edits:
        try:
            graph = EDITS[name](graph, seed)
        except gs.SurgeryError:  # nothing to grow, to cut or to gate
            continue
        graph.module.graph.lint()
        names = [node.name for node in graph.module.graph.nodes]
        assert len(set(names)) == len(names)
        with torch.no_grad():
            assert all(t.isfinite().all() for t in [graph(*x)])


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_results_by_index_and_stored_shapes(seed):
    graph, x, _ = typed(RandomNetwork(seed, steps=5, kinds=INDEXED), (3, 4, 4), seed=seed)
    with torch.no_grad():
        expected = graph(*x)
        for by in (1.5, 2.0):
            wide = widen(graph, by, seed=seed)
            assert deviation(wide(*x), expected) < 1e-11
            gated = gate(wide, loc=60.0)
            assert deviation(gated(*x), expected) < 1e-11
            assert deviation(undo(wide)(*x), expected) < 1e-11
        kept = random_choice(graph, seed, exact=False)
        small = compress(graph, kept) if kept else graph
        small(*x)


@pytest.mark.parametrize("seed", range(6))
def test_what_was_cut_is_saved_and_read_again(seed, tmp_path):
    graph, x, _ = typed(RandomNetwork(seed, steps=5, kinds=INDEXED), (3, 4, 4), seed=seed)
    small = compress(gate(widen(graph, 1.5)), 0.5)
    gs.save(small, tmp_path / "small.pt")
    with torch.no_grad():
        assert deviation(gs.load(tmp_path / "small.pt")(*x), small(*x)) == 0
