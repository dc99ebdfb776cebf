"""Every axis of a weight that no pass can change has a reason that names where it was taken."""

from __future__ import annotations

import pytest
import torch
from contracts import Network, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from zoo import EVERY, traced

import graphsurgery as gs
from graphsurgery.axes.algebra import is_fixed
from graphsurgery.passes.compress import compress
from graphsurgery.surgery.reasons import reasons


def assert_reasons(graph):
    found = reasons(graph)
    fixed = {
        (name, index)
        for name, known in graph.types.parameters.items()
        for index, axis in enumerate(known.axes)
        if is_fixed(axis)
    }
    assert found.keys() == fixed
    assert all(found.values())
    return found


@pytest.mark.parametrize("name", EVERY)
def test_every_axis_that_is_not_free_has_a_reason(name):
    assert_reasons(traced(name)[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_of_random_networks_too(seed):
    assert_reasons(typed(RandomNetwork(seed), (3, 4, 4), seed=seed)[0])


class Step(nn.Module):
    """One step of a recurrence, whose state comes in and goes out."""

    def __init__(self):
        super().__init__()
        self.read, self.keep = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x, state):
        return torch.tanh(self.read(x) + self.keep(state))


def test_the_state_of_a_recurrence_is_an_input():
    graph = gs.trace(Step(), [torch.randn(2, 4), torch.randn(2, 6)])
    assert_reasons(graph)
    where = "is an output of the network"
    with pytest.raises(gs.SurgeryError, match=rf"no channel can be removed; .*{where}"):
        compress(graph, 0.5)


def test_what_inference_recorded_is_the_reason():
    network = Network(
        lambda net, x: net.head(torch.relu(net.stem(x)).argsort(-1) / 6),
        stem=nn.Linear(4, 6),
        head=nn.Linear(6, 3),
    )
    found = assert_reasons(gs.trace(network, torch.randn(2, 4)))
    assert found["stem.weight", 0] == "argsort: an axis that is sorted"


def test_a_sum_with_the_input_names_the_sum():
    network = Network(lambda net, x: net.head(x + net.step(x)), step=nn.Linear(6, 6), head=nn.Linear(6, 3))
    with pytest.raises(
        gs.SurgeryError, match=r"network inputs or outputs \(step.weight: add: it is an axis of the network's"
    ):
        compress(gs.trace(network, torch.randn(2, 6)), 0.5)
