"""The contracts of a cut and of a mask, measured on the network that is written."""

from __future__ import annotations

import itertools

import pytest
import torch
from contracts import Network, random_choice, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from torch import nn
from zoo import EVERY, traced

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import gate
from graphsurgery.passes.mask import mask
from graphsurgery.recipes.contracts.edit_checks import check_cut, check_masked
from graphsurgery.recipes.contracts.subjects import holes
from graphsurgery.surgery.gates import gates

IN_GROUPS = itertools.product(("resnext", "regnet_y", "shufflenet_v2", "mobilenet_v3", "vit"), ("same", "each"))
"""Networks with spaces inside of others, where the choice is one."""


@pytest.mark.parametrize(("name", "within"), [*((name, "groups") for name in EVERY), *IN_GROUPS])
def test_cuts_of_known_networks_hold(name, within):
    graph, _ = traced(name)
    found = check_cut(graph, compress(graph, 0.5, within=within))
    if any(space.mixed for space in graph.spaces):
        assert found.check is None or found.check.holds
    else:
        assert found.check.holds
        assert found.deviation < 1e-10


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_cuts_of_random_networks_hold(seed):
    graph, _, _ = typed(RandomNetwork(seed, steps=5), (3, 4, 4), seed=seed)
    kept = random_choice(graph, seed)
    if not kept:
        return
    found = check_cut(graph, compress(graph, kept), seed)
    assert found.check.holds
    assert found.check.allowed == 1e-10


def test_gates_count_as_in_evaluation():
    graph, _ = traced("paper/lenet5")
    gated = gate(graph)
    for module in gates(gated).values():
        with torch.no_grad():
            module.loc.copy_(torch.linspace(-3, 3, module.channels))
    assert check_cut(gated, compress(gated, 0.5, importance="gate")).check.holds


def test_in_float32_it_is_measured_in_float64():
    graph, _ = traced("paper/resnet20?width=8")
    graph.module.float()
    found = check_cut(graph, compress(graph, 0.5))
    assert found.check.holds
    assert found.deviation < 1e-10


@pytest.mark.parametrize("name", ["conv2.weight", "fc3.bias", "conv1.weight"])
def test_a_wrong_number_is_found(name):
    graph, _ = traced("paper/lenet5")
    small = compress(graph, 0.5)
    with torch.no_grad():
        small.tensors()[name].view(-1)[0] += 1e-3
    found = check_cut(graph, small)
    assert not found.check.holds
    assert found.deviation > 1e-8


def test_what_mixes_channels_is_named():
    graph, _ = traced("convnext")
    found = check_cut(graph, compress(graph, 0.5))
    assert found.check is None
    assert "spaces are mixed by layer_norm" in found.why
    assert found.deviation > 1e-3


def test_a_network_that_insists_on_its_precision():
    class Insists(nn.Module):
        """Kept whole, since it asks for a value; its weights are in float64 where it casts to float32."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def forward(self, x):
            return nn.functional.linear(x.float(), self.weight if bool(x.sum() < 1e9) else -self.weight)

    network = Network(lambda n, x: n.b(torch.relu(n.a(n.c(x)))), a=nn.Linear(3, 8), b=nn.Linear(8, 2), c=Insists())
    graph = gs.trace(network.eval(), torch.zeros(2, 3))
    found = check_cut(graph, compress(graph, {"a": 3}))
    assert found.check.holds
    assert found.check.allowed == 1e-3


def test_outputs_that_are_infinite_are_equal_to_their_like():
    network = Network(
        lambda n, x: torch.log(torch.relu(n.b(torch.relu(n.a(x))))), a=nn.Linear(3, 8), b=nn.Linear(8, 40)
    )
    graph, x, _ = typed(network, (3,))
    assert bool(graph(*x).isinf().any())
    assert check_cut(graph, compress(graph, {"a": 3})).check.holds


def test_a_network_from_elsewhere_is_refused():
    graph, _ = traced("paper/lenet5")
    with pytest.raises(gs.SurgeryError, match=r"was not cut in this process"):
        check_cut(graph, graph)


@pytest.mark.parametrize("name", ["paper/lenet5", "vit", "resnext"])
def test_masked_networks_hold_and_others_do_not(name):
    graph, _ = traced(name)
    masks = holes(graph, 0)
    masked = mask(graph, masks)
    assert check_masked(graph, masked, masks).holds
    with torch.no_grad():
        masked.tensors()[[*masks][-1]][0] += 1  # all that one channel reads: some of it is always 0
    assert not check_masked(graph, masked, masks).holds
