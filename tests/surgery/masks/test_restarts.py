"""What a ticket starts from."""

import itertools

import pytest
import torch
from contracts import typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import STEPS, RandomNetwork
from zoo import FEW, traced

import graphsurgery as gs
from graphsurgery.passes.mask import mask
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.masks.mask_set import MaskSet
from graphsurgery.surgery.masks.plans import DEAD, KEPT, Restart, Selection
from graphsurgery.surgery.masks.restarts import put, restart
from graphsurgery.surgery.masks.selection import select
from graphsurgery.surgery.masks.training import masked

SOME = ("paper/lenet_300_100", "paper/resnet20?width=8", *FEW)


def values(graph, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(t.shape, generator=generator, dtype=torch.float64) if t.is_floating_point() else t.clone()
        for n, t in graph.tensors().items()
    }


def case(name="paper/lenet5", keep=0.4):
    """A network after training, masks, and its values before."""
    graph, x = traced(name)
    return graph, x, select(graph, MaskSet.ones(graph), keep, Selection()), values(graph, 1)


@pytest.mark.parametrize("name", SOME)
def test_rewinding_gives_back_the_first_values_and_lr_rewinding_the_last(name):
    graph, x, masks, initial = case(name)
    start = restart(graph, masks, Restart("rewind"), initial)
    assert all(torch.equal(start.values[n], t) for n, t in initial.items())
    last = restart(graph, masks, Restart(), initial)
    expected = mask(graph, masks)
    put(graph, last.values)
    with torch.no_grad(), masked(graph, last.masks, last.dead) as module:
        assert deviation(module(x), expected(x)) < 1e-12


@pytest.mark.parametrize("kept", KEPT)
def test_signs_are_kept_where_they_shall_be(kept):
    graph, _, masks, initial = case()
    other = values(graph, 2)
    for name, living in masks.items():
        reference = graph.tensors()[name] if kept == "lr-rewind" else initial[name]
        signs = restart(graph, masks, Restart(kept), initial, fresh=other).values[name].sign()
        assert torch.equal(signs[living], reference.sign()[living])
        free = restart(graph, masks, Restart(kept, keep_sign=False), initial, fresh=other).values[name].sign()
        agree = float((free == reference.sign())[living].double().mean())
        if int(living.sum()) > 400:
            assert 0.4 < agree < 0.6


def test_magnitudes_are_those_of_the_action():
    graph, _, masks, initial = case()
    other = values(graph, 2)
    name, living = "fc1.weight", masks["fc1.weight"]
    first = initial[name]

    def start(kept, keep_sign=True, **options):
        return restart(graph, masks, Restart(kept, keep_sign=keep_sign), initial, **options).values[name][living]

    for sign in (True, False):
        constant = start("constant", sign).abs()
        torch.testing.assert_close(constant, first.std(correction=0).expand_as(constant))
        shuffled = start("reshuffle", sign).abs()
        assert torch.equal(shuffled.sort().values, first[living].abs().sort().values)
        assert not torch.equal(shuffled, first[living].abs())
        assert torch.equal(start("reinit", sign, fresh=other).abs(), other[name][living].abs())
    drawn = start("reinit", False)
    assert float(drawn.std()) == pytest.approx(float(first.std()), rel=0.05)
    assert torch.equal(start("reinit", False), drawn)
    assert not torch.equal(start("reinit", False, seed=1), drawn)


def test_a_new_start_is_new_for_biases_and_statistics_too():
    graph, _, masks, initial = case("paper/resnet20?width=8")
    other = values(graph, 2)
    found = restart(graph, masks, Restart("reinit"), initial, fresh=other)
    assert all(torch.equal(found.values[n], t) for n, t in other.items() if n not in masks)


def test_shuffled_masks_and_rescaling():
    graph, _, masks, initial = case()
    found = restart(graph, masks, Restart("rewind", shuffled=True, rescaled=True), initial, seed=5)
    assert found.masks == masks.shuffled(5)
    living = found.masks["fc1.weight"]
    factor = living.numel() / int(living.sum())
    torch.testing.assert_close(found.values["fc1.weight"], initial["fc1.weight"] * factor)


FIRST = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0, 2.0]], dtype=torch.float64)
LAST = torch.tensor([[0.5, -2.0, -0.1, 3.0, 5.0, 1.0]], dtype=torch.float64)
LIVING = torch.tensor([[False, False, False, False, True, True]])
RULES = {
    "zero": ([0, 0, 0, 0], [2.0, 2.0]),
    "freeze": ([1, -1, 1, -1], [2.0, 2.0]),
    "variant-1": ([0, -1, 0, -1], [2.0, 2.0]),
    "variant-2": ([0, -1, 0, -1], [2.0, 0.0]),
    "variant-1-reversed": ([1, 0, 1, 0], [2.0, 2.0]),
    "variant-2-reversed": ([1, 0, 1, 0], [0.0, 2.0]),
}


def line():
    network = torch.nn.Sequential(torch.nn.Linear(6, 1, bias=False)).double()
    with torch.no_grad():
        network[0].weight.copy_(LAST)
    return gs.trace(network, torch.zeros(2, 6).double())


@pytest.mark.parametrize("dead", RULES)
def test_dead_weights_are_what_the_rule_says(dead):
    graph, (constants, living) = line(), RULES[dead]
    found = restart(graph, MaskSet({"0.weight": LIVING}), Restart("rewind", dead=dead), {"0.weight": FIRST})
    assert found.values["0.weight"][LIVING].tolist() == living
    with masked(graph, found.masks, found.dead):
        pass
    assert graph.tensors()["0.weight"][~LIVING].tolist() == constants


def test_what_died_earlier_stays_what_it_is():
    graph = line()
    before = MaskSet({"0.weight": torch.tensor([[True, False, True, True, True, True]])})
    found = restart(
        graph, MaskSet({"0.weight": LIVING}), Restart("rewind", dead="variant-1"), {"0.weight": FIRST}, before=before
    )
    assert found.dead["0.weight"][~LIVING].tolist() == [0.0, -2.0, 0.0, -1.0]


@pytest.mark.parametrize("number", [1, 2])
def test_random_zeros_are_as_many(number):
    graph, _, masks, initial = case()
    rule, control = (
        restart(graph, masks, Restart("rewind", dead=f"variant-{number}{end}"), initial) for end in ("", "-random")
    )
    for name, living in masks.items():
        counts = [int((found.dead[name][~living] == 0).sum()) for found in (rule, control)]
        assert counts[0] == counts[1] > 0
        starts = [int((found.values[name][living] == 0).sum()) for found in (rule, control)]
        assert starts[0] == starts[1]
        assert (starts[0] > 0) == (number == 2)
        if living.numel() > 1000:
            assert not torch.equal(rule.dead[name] == 0, control.dead[name] == 0)


@given(st.integers(0, 10**6), st.sampled_from(KEPT), st.sampled_from(DEAD), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_random_networks_start_and_train(seed, kept, dead, keep_sign, shuffled):
    trainable = [kind for kind in STEPS if kind != "in_place"]
    graph, x, _ = typed(RandomNetwork(seed, 3, trainable), (3, 4, 4), seed=seed)
    try:
        masks = select(graph, MaskSet.ones(graph), 0.5, Selection(seed=seed))
    except gs.SurgeryError:
        return
    start = restart(graph, masks, Restart(kept, keep_sign, dead, shuffled), values(graph, seed), seed=seed)
    assert start.masks.densities == masks.densities
    put(graph, start.values)
    with masked(graph, start.masks, start.dead) as module:
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            module(*x).square().mean().backward()
            optimizer.step()
    for name, living in start.masks.items():
        constant = start.dead.get(name, torch.zeros(living.shape, dtype=torch.float64))
        assert torch.equal(graph.tensors()[name][~living], constant[~living])


def test_an_exported_start_computes_the_same(tmp_path):
    graph, _, masks, initial = case()
    start = restart(graph, masks, Restart("constant", dead="variant-1"), initial)
    put(graph, start.values)
    with masked(graph, start.masks, start.dead):
        pass
    gs.export_onnx(graph, tmp_path / "start.onnx")
    assert gs.check_onnx(graph, tmp_path / "start.onnx").holds


def test_bad_requests_are_refused():
    graph, _, masks, initial = case()
    with pytest.raises(gs.SurgeryError, match=r"restart: 'rewound' is unknown; living weights take lr-rewind"):
        Restart("rewound")
    with pytest.raises(gs.SurgeryError, match=r"restart: 'one' is unknown; dead weights take zero, freeze, variant-1"):
        Restart(dead="one")
    with pytest.raises(gs.SurgeryError, match=r"the initial values have no conv1.weight of the network's shape"):
        restart(graph, masks, Restart("rewind"), {})
    few = dict(itertools.islice(initial.items(), len(initial) - 1))
    with pytest.raises(gs.SurgeryError, match=r"the fresh values have no fc3.bias"):
        restart(graph, masks, Restart("reinit"), initial, fresh=few)
    other, _ = traced("paper/conv2?image_size=8")
    with pytest.raises(gs.SurgeryError, match=r"belong to another architecture"):
        restart(other, masks, Restart(), initial)
