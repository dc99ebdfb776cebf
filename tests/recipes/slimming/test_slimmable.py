"""Slimmable: trained for every width, delivered at any."""

import itertools

import pytest
import torch
import zoo
from contracts import FLOAT32

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.recipes.slimming import width_choice
from graphsurgery.recipes.slimming.plan import SlimPlan
from graphsurgery.recipes.slimming.slimmable import (
    Statistics,
    load_slimmable,
    measure_widths,
    save_slimmable,
    train_slimmable,
)
from graphsurgery.recipes.slimming.width_choice import search, width_for
from graphsurgery.recipes.train import fresh
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.channels.targets import parse_target
from graphsurgery.surgery.deviation import deviation
from graphsurgery.training.data import load_data
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives import objective_for

PLAN = SlimPlan(TrainingPlan(epochs=8, lr=0.1, device="cpu"))


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(digits):
    graph = fresh("paper/cnn?width=8", digits, 0)
    return train_slimmable(graph, digits, PLAN, reporter=SilentReporter()).outcome.statistics.slimmable


def test_every_width_works_with_statistics_of_its_own(digits, trained):
    statistics = Statistics(trained)
    outcome = measure_widths(statistics, digits, (0.25, 0.5, 1.0))
    assert [row.name for row in outcome.rows] == ["width 1", "width 0.5", "width 0.25"]
    for row, least in zip(outcome.rows, (0.9, 0.85, 0.6), strict=True):
        assert row.test["accuracy"] > least
    assert len(statistics.known) == 3
    wrong = trained.extract(0.25)
    whole = evaluate(wrong.module, digits.test, objective_for(digits))["accuracy"]
    assert whole < outcome.row("width 0.25").test["accuracy"]


def test_a_delivered_width_is_the_slimmable_network_at_that_width(digits, trained):
    graph = Statistics(trained).network(0.5, digits)
    trained.graph.module.eval()
    narrow = trained.at(0.5)
    for path, norm in narrow.module.named_modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            own = graph.module.get_submodule(path)
            norm.running_mean, norm.running_var = own.running_mean.clone(), own.running_var.clone()
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert deviation(graph(x), narrow(x)) < FLOAT32


def test_statistics_are_found_on_demand_and_kept_in_the_file(digits, trained, tmp_path):
    statistics = Statistics(trained)
    with pytest.raises(gs.SurgeryError, match=r"statistics of width 0.37 are not known; give --data"):
        statistics.network(0.37)
    first = statistics.network(0.37, digits)
    save_slimmable(statistics, tmp_path / "us.pt", note="kept")
    again, metadata = load_slimmable(tmp_path / "us.pt")
    assert metadata["note"] == "kept"
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert deviation(again.network(0.37)(x), first(x)) == 0
        assert deviation(again.network(dict(trained.sizes(0.37)))(x), first(x)) == 0


def test_a_target_picks_the_largest_width(trained):
    whole = cost(trained.graph)
    for text in ("macs=0.4x", "params=0.3x", "size=0.5x"):
        width = width_for(trained, parse_target(text))
        quantity, _, share = text.partition("=")
        of = {"macs": lambda c: c.macs, "params": lambda c: c.parameters, "size": lambda c: c.bytes}[quantity]
        limit = float(share.rstrip("x")) * of(whole)
        assert of(cost(trained.extract(width))) <= limit
        assert of(cost(trained.extract(min(1.0, width + 0.1)))) > limit


def test_the_search_ends_at_its_target_and_leaves_the_network_as_it_was(digits, trained):
    trained.graph.module.eval()
    before = {name: tensor.clone() for name, tensor in trained.graph.module.state_dict().items()}
    path = search(trained, digits, parse_target("macs=0.5x"), step=0.25)
    assert path[-1].cost <= 0.5 * path[0].cost < path[-2].cost
    for one, next_one in itertools.pairwise(path):
        changed = [name for name in one.sizes if one.sizes[name] != next_one.sizes[name]]
        assert len(changed) == 1
    assert not trained.graph.module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.graph.module.state_dict().items())
    assert cost(trained.extract(path[-1].sizes)).macs == path[-1].cost


@pytest.fixture(scope="module")
def switchable(digits):
    plan = SlimPlan(TrainingPlan(epochs=4, lr=0.1, device="cpu"), switchable=(0.25, 0.5))
    graph = fresh("paper/cnn?width=8", digits, 0)
    return train_slimmable(graph, digits, plan, reporter=SilentReporter()).outcome.statistics.slimmable


def test_switchable_widths_need_no_data(digits, switchable, tmp_path):
    statistics = Statistics(switchable)
    outcome = measure_widths(statistics, digits)
    assert outcome.widths == (1.0, 0.5, 0.25)
    assert all(row.test["accuracy"] > 0.5 for row in outcome.rows)
    assert not statistics.known
    save_slimmable(statistics, tmp_path / "s.pt", note="kept")
    again, metadata = load_slimmable(tmp_path / "s.pt")
    assert metadata == {"note": "kept"}
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        for width in (0.25, 0.5, 1.0):
            assert deviation(again.network(width)(x), statistics.network(width)(x)) == 0
    with pytest.raises(gs.SurgeryError, match=r"width 0.4 has no BatchNorms of its own"):
        again.network(0.4)
    with pytest.raises(gs.SurgeryError, match="has its own widths only; train one without"):
        search(switchable, digits, parse_target("macs=0.5x"))
    assert width_for(switchable, parse_target("macs=0.4x")) == 0.5


def test_a_latency_picks_the_first_width_below_which_all_are_fast_enough(trained, monkeypatch):
    rounds = []

    def timed(_, widths):
        rounds.append(widths)
        return {width: 2 * width for width in widths}

    monkeypatch.setattr(width_choice, "latencies", timed)
    assert width_for(trained, parse_target("latency=3ms")) == 1.0
    assert rounds == [(0.25, 0.438, 0.625, 0.812, 1.0)]
    assert width_for(trained, parse_target("latency=1ms")) == pytest.approx(0.5, abs=0.04)
    assert width_for(trained, parse_target("latency=0.5x")) <= 0.5
    with pytest.raises(gs.SurgeryError, match=r"latency=0.1ms is 0.1 ms; the narrowest network takes 0.5 ms"):
        width_for(trained, parse_target("latency=100us"))


def test_latencies_are_those_of_onnx_runtime(trained):
    timed = width_choice.latencies(trained, (0.25, 1.0))
    assert timed.keys() == {0.25, 1.0}
    assert all(milliseconds > 0 for milliseconds in timed.values())


def test_bad_requests_are_refused(digits, trained, tmp_path):
    with pytest.raises(gs.SurgeryError, match=r"params=0.001x is .*; the narrowest network has"):
        width_for(trained, parse_target("params=0.001x"))
    with pytest.raises(gs.SurgeryError, match="a target of width is not possible"):
        width_for(trained, parse_target("width=0.5"))
    with pytest.raises(gs.SurgeryError, match="slim: keep_best is not for it"):
        SlimPlan(TrainingPlan(keep_best=True))
    for options in ({"distil": False}, {"rule": "random"}):
        with pytest.raises(gs.SurgeryError, match="--distil-after says when"):
            SlimPlan(TrainingPlan(), warmup=0.2, **options)
    for options in ({"rule": "widest"}, {"switchable": (0.5,)}):
        with pytest.raises(gs.SurgeryError, match=r"widths is 6, and .* trained in each step"):
            SlimPlan(TrainingPlan(), widths=6, **options)
    with pytest.raises(gs.SurgeryError, match="step is 1, expected a share"):
        search(trained, digits, parse_target("macs=0.5x"), step=1.0)
    with pytest.raises(gs.SurgeryError, match=r"the search ends at"):
        search(trained, digits, parse_target("macs=0.01x"), step=0.9)
    with pytest.raises(gs.SurgeryError, match="a target of latency is not possible; use params, macs, size"):
        search(trained, digits, parse_target("latency=5ms"))
    with pytest.raises(gs.SurgeryError, match="compress: a target of latency is not possible"):
        compress(trained.graph, target="latency=5ms")
    gs.save(trained.graph, tmp_path / "plain.pt")
    with pytest.raises(gs.SurgeryError, match=r"plain.pt: is no slimmable network; make one with graphsurgery slim"):
        load_slimmable(tmp_path / "plain.pt")


def test_files_with_former_names_of_settings_open(tmp_path):
    graph, _ = zoo.traced("paper/cnn")
    gs.save(graph, tmp_path / "us.pt", slim={"minimum": 0.5, "divisor": 2, "switchable": []}, statistics={}, norms={})
    again, _ = load_slimmable(tmp_path / "us.pt")
    assert (again.slimmable.min_width, again.slimmable.round_to) == (0.5, 2)
