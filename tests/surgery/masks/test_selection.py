"""Which weights stay: criteria, counts, ties, scopes and rates."""

import math

import pytest
import torch
from contracts import typed
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork
from zoo import FEW, traced

import graphsurgery as gs
from graphsurgery.passes.mask import mask
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable
from graphsurgery.surgery.masks.plans import Selection
from graphsurgery.surgery.masks.selection import WEIGHT_CRITERIA, kinds_of, select

NINE = (
    "large_final", "small_final", "large_init", "small_init", "large_init_large_final", "small_init_small_final",
    "magnitude_increase", "movement", "random",
)  # fmt: skip
SOME = ("paper/lenet_300_100", "paper/conv2?image_size=8", "paper/resnet20?width=8", *FEW)


def values(graph, seed=1):
    """Other values of the weights, by name."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(w.shape, generator=generator, dtype=torch.float64) for n, w in maskable(graph).items()}


def one(criterion, keep, final, initial=None, gradient=None):
    """What is kept of one matrix."""
    network = torch.nn.Sequential(torch.nn.Linear(final.shape[1], final.shape[0], bias=False)).double()
    with torch.no_grad():
        network[0].weight.copy_(final)
    graph = gs.trace(network, torch.zeros(2, final.shape[1]).double())
    given = {
        key: {"0.weight": value} for key, value in (("initial", initial), ("gradients", gradient)) if value is not None
    }
    return select(graph, MaskSet.ones(graph), keep, Selection(criterion, output=1.0), **given)["0.weight"]


FINAL = torch.tensor([[0.9, -0.8, 0.1, -0.05], [0.5, -0.02, 0.3, -0.6]], dtype=torch.float64)
INITIAL = torch.tensor([[-0.1, -0.7, 0.6, 0.04], [0.2, -0.3, 0.35, 0.65]], dtype=torch.float64)
GRADIENT = torch.tensor([[1.0, 0.1, 0.2, 9.0], [0.3, 0.4, 0.5, 0.6]], dtype=torch.float64)
KEPT = {
    "large_final": [0, 1, 7],
    "small_final": [2, 3, 5],
    "large_init": [1, 2, 7],
    "small_init": [0, 3, 4],
    "large_init_large_final": [1, 6, 7],
    "small_init_small_final": [3, 4, 5],
    "magnitude_increase": [0, 1, 4],
    "movement": [0, 2, 7],
    "large_final_same_sign": [1, 4, 6],
    "large_final_diff_sign": [0, 3, 7],
    "snip": [3, 6, 7],
    "grad": [0, 3, 7],
}


@pytest.mark.parametrize("criterion", KEPT)
def test_criteria_rank_as_their_formula_says(criterion):
    kept = one(criterion, 3 / 8, FINAL, INITIAL, GRADIENT)
    assert kept.flatten().nonzero().flatten().tolist() == KEPT[criterion]


def test_there_are_nine_and_their_variants():
    assert set(NINE) | {"large_final_same_sign", "large_final_diff_sign", "snip", "grad"} == set(WEIGHT_CRITERIA)


@pytest.mark.parametrize("criterion", ["large_init_large_final", "small_init_small_final"])
def test_both_percentiles_are_the_same(criterion):
    """What is kept lies above one percentile on both axes (or below), and nothing else does."""
    generator = torch.Generator().manual_seed(0)
    final, initial = (torch.randn(40, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    kept = one(criterion, 0.3, final, initial)
    assert int(kept.sum()) == 600
    ranks = [v.abs().flatten().argsort().argsort().reshape(v.shape) for v in (final, initial)]
    if criterion.startswith("large"):
        border = min(int(rank[kept].min()) for rank in ranks)
        assert torch.equal((ranks[0] >= border) & (ranks[1] >= border), kept)
    else:
        border = max(int(rank[kept].max()) for rank in ranks)
        assert torch.equal((ranks[0] <= border) & (ranks[1] <= border), kept)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", SOME)
def test_counts_are_exact_and_the_dead_stay_dead(name, scope):
    graph, x = traced(name)
    initial = values(graph)
    plan = Selection("magnitude_increase", scope=scope, output=1.0)
    living = MaskSet.ones(graph)
    for keep in (0.5, 0.41):
        kept = select(graph, living, keep, plan, initial=initial)
        counts = {n: round(keep * int(m.sum())) for n, m in living.items()}
        if scope == "layer":
            assert {n: int(m.sum()) for n, m in kept.items()} == counts
        assert kept.kept == sum(counts.values())
        assert (kept & living) == kept
        living = kept
    with torch.no_grad():
        assert torch.isfinite(mask(graph, living)(x)).all()


@given(
    st.integers(0, 10**6),
    st.floats(0.05, 1.0),
    st.sampled_from(sorted(WEIGHT_CRITERIA)),
    st.sampled_from(["layer", "global"]),
)
@settings(max_examples=40, deadline=None)
def test_random_networks_keep_as_many_as_is_said(seed, keep, criterion, scope):
    graph, _, _ = typed(RandomNetwork(seed), (3, 4, 4), seed=seed)
    living = MaskSet.ones(graph)
    plan = Selection(criterion, scope=scope, seed=seed)
    kinds = kinds_of(graph)
    shares = {n: keep + (0.5 if kinds[n] == "output" else 0.0) * (1 - keep) for n in living}
    wanted = {n: round(m.numel() * shares[n]) for n, m in living.items()}
    try:
        kept = select(graph, living, keep, plan, initial=values(graph), gradients=values(graph, 2))
    except gs.SurgeryError as refusal:
        if not (0 in wanted.values() or "the floor" in str(refusal)):
            raise
        return
    assert kept.kept == sum(wanted.values())
    if scope == "layer":
        assert {n: int(m.sum()) for n, m in kept.items()} == wanted
    else:
        assert all(int(m.sum()) >= min(math.ceil(0.01 * m.numel()), m.numel()) for m in kept.values())
    assert select(graph, living, keep, plan, initial=values(graph), gradients=values(graph, 2)) == kept


def test_ties_are_broken_by_the_seed():
    graph, _ = traced("paper/lenet5")
    with torch.no_grad():
        for weight in maskable(graph).values():
            weight.fill_(1.0)
    found = [select(graph, MaskSet.ones(graph), 0.5, Selection(seed=seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert found[0].densities == found[2].densities
    assert found[0].iou(found[2]) < 0.5


def test_a_global_scope_takes_from_where_little_matters_down_to_a_floor():
    graph, _ = traced("paper/lenet5")
    with torch.no_grad():
        graph.module.fc1.weight *= 1e-6
    kept = select(graph, MaskSet.ones(graph), 0.1, Selection(scope="global", floor=0.02, output=1.0))
    assert int(kept["fc1.weight"].sum()) == math.ceil(0.02 * kept["fc1.weight"].numel())
    assert kept.kept == sum(round(0.1 * m.numel()) for m in kept.values())
    with pytest.raises(
        gs.SurgeryError, match=r"the floor of 20 % of each tensor is 12\d+ weights, and 6\d+ stay in all"
    ):
        select(graph, MaskSet.ones(graph), 0.1, Selection(scope="global", floor=0.2, output=1.0))


def test_rates_by_type_and_half_of_it_for_the_output():
    graph, _ = traced("paper/conv2?image_size=8")
    kinds = kinds_of(graph)
    assert [kinds[n] for n in maskable(graph)] == ["conv", "conv", "linear", "linear", "output"]
    kept = select(graph, MaskSet.ones(graph), 0.8, Selection(conv=0.5))
    expected = {"conv": 0.9, "linear": 0.8, "output": 0.9}
    for name, living in kept.items():
        assert int(living.sum()) == round(expected[kinds[name]] * living.numel())
    whole = select(graph, MaskSet.ones(graph), 0.8, Selection(conv=1.0, output=0.0, scope="global"))
    assert whole["fc3.weight"].all()


def test_all_heads_are_outputs():
    graph, _ = traced("vit")
    assert [n for n, kind in kinds_of(graph).items() if kind == "output"] == ["heads.head.weight"]


BAD = {
    "no initial": ("movement", 0.5, {}, r"criterion movement needs the weights before training"),
    "no gradient": ("snip", 0.5, {"initial": FINAL}, r"criterion snip needs gradients, and gradients need data"),
    "another": ("movement", 0.5, {"initial": FINAL[:1]}, r"the initial values have no 0.weight of the mask's shape"),
    "nan": ("movement", 0.5, {"initial": FINAL / 0}, r"0.weight have scores that are no numbers"),
    "empties": ("large_final", 0.05, {}, r"0.weight has 8 living weights of 8, and 5 % of them is none; keep more"),
    "zero": ("large_final", 0.0, {}, r"keep is 0, expected a share above 0"),
    "above": ("large_final", 1.5, {}, r"keep is 1.5, expected a share above 0"),
    "unknown": ("largest", 0.5, {}, r"criterion 'largest' is unknown; choose from large_final, small_final"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused(case):
    criterion, keep, given, message = BAD[case]
    with pytest.raises(gs.SurgeryError, match=message):
        one(criterion, keep, FINAL, **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "all"}, r"scope is 'all'; choose from layer, global"),
        ({"conv": 2.0}, r"conv is 2.0, expected a number"),
        ({"floor": 0.2}, r"floor is for weights that all compete; give --scope global"),
    ],
)
def test_bad_plans_are_refused(options, message):
    with pytest.raises(gs.SurgeryError, match=message):
        Selection(**options)
