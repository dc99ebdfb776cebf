"""A share of `benchmarks/campaigns/drawn_networks.py`: all contracts on some networks, each by its seed."""

import copy

import pytest
import torch
from all_contracts import CRASHED, HOLDS, REFUSED, VIOLATED, Subject, examine, measured
from unusual_steps import KINDS, UNUSUAL, UnusualNetwork, fill

import graphsurgery as gs
from graphsurgery.network.outputs.naming import run
from graphsurgery.surgery.deviation import apart


@pytest.mark.parametrize("seed", range(5))
def test_all_contracts_hold_or_are_refused(seed):
    found = examine(seed, 1 + seed % 4, check=False)
    assert not {name: entry for name, entry in found.items() if entry.outcome not in (HOLDS, REFUSED)}
    assert sum(entry.outcome == HOLDS for entry in found.values()) >= 4


def test_there_are_sixty_kinds_of_steps_that_the_other_property_tests_do_not_draw():
    assert len(UNUSUAL) >= 60
    assert set(UNUSUAL) < set(KINDS)


@pytest.mark.parametrize("first", range(0, len(KINDS), 25))
def test_a_network_is_its_seed_and_follows_its_input(first):
    for kind in KINDS[first : first + 25]:
        one, two = (UnusualNetwork(first, 2, [kind]).double().eval() for _ in range(2))
        for network in (one, two):
            fill(network, 0)
        given = one.inputs(2, torch.Generator().manual_seed(0))
        other = one.inputs(2, torch.Generator().manual_seed(1))
        outputs = run(one, given, 0)
        assert apart(run(copy.deepcopy(two), given, 0), outputs) == 0, kind
        assert apart(run(one, other, 0), outputs) > 1e-3, kind
        run(one.train(), given, 0)


def test_what_is_wrong_is_found():
    subject = Subject(3, 1, ["conv"], check=False)
    assert measured(subject, lambda s, asked: asked(s.trace)).outcome == HOLDS

    def failing(cause):
        def contract(_subject, _asked):
            raise cause

        return measured(subject, contract)

    for off in (1e-3, float("nan"), float("inf")):
        assert measured(subject, lambda *_, off=off: off).outcome == VIOLATED
    assert failing(IndexError("gone")).outcome == CRASHED
    assert failing(gs.SurgeryError("no")).outcome == REFUSED
    words = failing(gs.SurgeryError("widen: layers.0.0 has 12 channels")).words
    assert words == "widen: … has N channels"


def test_a_wrong_edit_is_found():
    """A network of other weights in place of the edited one breaks each contract that compares."""
    subject = Subject(5, 1, ["conv"], check=False)
    subject.trace()
    assert subject.off(subject.graph) == 0
    assert subject.off(subject.other) > 1e-3
