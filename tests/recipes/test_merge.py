"""The merge recipe on networks that train in a second."""

from dataclasses import replace

import pytest
import torch
from rounding import alike

import graphsurgery as gs
from graphsurgery.recipes.merge import MergePlan, default_plan, merge, verdict
from graphsurgery.recipes.outcome import Row, at_chance
from graphsurgery.recipes.train import train
from graphsurgery.surgery.growth.fresh_weights import reinitialized
from graphsurgery.surgery.merging.averages import average
from graphsurgery.training.data import load_data
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.loop.run import Run

PLAN = TrainingPlan(epochs=4, lr=0.1, batch_size=64, device="cpu")
SPEC = "paper/cnn?width=3"
SILENT = SilentReporter()


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def parents(data):
    return [train(SPEC, data, replace(PLAN, seed=seed), reporter=SILENT)[0] for seed in (0, 1)]


@pytest.fixture(scope="module")
def merged(parents, data):
    return merge(parents, data, default_plan(parents, seed=3), reporter=SILENT)


def test_all_rows_are_there_in_order(merged):
    names = [row.name for row in merged.outcome.rows]
    assert names == [
        "parent 1",
        "parent 2",
        "ensemble",
        "weight average",
        "concatenated",
        "gated",
        "cut",
        "recalibrated",
        "merged",
        "control",
    ]


def test_has_the_size_of_a_parent(parents, merged):
    assert [s.size for s in merged.graph.spaces] == [s.size for s in parents[0].spaces]
    assert merged.outcome.row("merged").parameters == merged.outcome.row("parent 1").parameters


def test_every_contract_holds(merged):
    assert [check.name for check in merged.outcome.checks if not check.holds] == []
    assert len(merged.outcome.checks) == 4


def test_the_books_add_up(merged):
    epochs = {row.name: row.epochs for row in merged.outcome.rows}
    assert epochs["parent 1"] == 4
    assert epochs["concatenated"] == 8
    assert epochs["cut"] == 12
    assert epochs["merged"] == epochs["control"] == 16


def test_concatenated_is_as_good_as_the_ensemble_and_the_cut_loses_nothing(merged, data):
    rows = {row.name: row.test for row in merged.outcome.rows}
    ensemble = alike({"accuracy": rows["ensemble"]["accuracy"]}, len(data.test))
    assert rows["concatenated"]["accuracy"] == ensemble["accuracy"]
    assert rows["cut"]["loss"] == pytest.approx(rows["gated"]["loss"], rel=0.05)


def test_channels_come_from_both_parents(parents, merged):
    for space in parents[0].spaces:
        assert sum(merged.outcome.origins[space.name]) == space.size


def test_gates_close_to_the_budget(merged):
    assert merged.outcome.gates[0].expected > 0.7
    assert merged.outcome.gates[-1].expected == pytest.approx(0.5, abs=0.01)
    assert all(share == pytest.approx(0.5, abs=0.01) for share in merged.outcome.gates[-1].spaces.values())


@pytest.mark.parametrize("budget", [0.5, 1.5])
def test_other_budgets_and_three_parents(parents, data, budget):
    plan = replace(default_plan(parents), budget=budget, control=False)
    plan = replace(plan, gating=replace(plan.gating, epochs=3), fine_tuning=replace(plan.fine_tuning, epochs=1))
    found = merge([*parents, parents[0]], data, plan, reporter=SILENT)
    sizes = [s.size for s in parents[0].spaces]
    assert [s.size for s in found.graph.spaces] == [round(budget * n) for n in sizes]
    assert all(check.holds for check in found.outcome.checks)


def test_an_interrupted_merge_ends_like_an_uninterrupted_one(parents, data, merged, tmp_path):
    class Stop(Exception):
        pass

    class Interrupting(SilentReporter):
        def __init__(self):
            self.epochs = 0

        def epoch_finished(self, _):
            self.epochs += 1
            if self.epochs == 6:
                raise Stop

    plan = default_plan(parents, seed=3)
    with pytest.raises(Stop):
        merge(parents, data, plan, run=Run(tmp_path / "run"), reporter=Interrupting())
    found = merge(parents, data, plan, run=Run(tmp_path / "run"), reporter=SILENT)
    for key, tensor in merged.graph.module.state_dict().items():
        assert torch.equal(found.graph.module.state_dict()[key], tensor)


def test_regression_data(tmp_path):
    data = load_data("sine?train=200")
    plan = replace(PLAN, epochs=1, lr=0.01)
    parents = [train("paper/mlp?hidden=6", data, replace(plan, seed=s), reporter=SILENT)[0] for s in (0, 1)]
    found = merge(parents, data, replace(default_plan(parents), control=False), reporter=SILENT)
    assert found.outcome.metric == "mse"
    assert "mse" in found.outcome.verdict
    gs.save(found.graph, tmp_path / "merged.pt")
    assert gs.load(tmp_path / "merged.pt").lineage[-1]["pass"] == "merge"


def test_average_and_new_weights(parents):
    mean = average(parents)
    first, second = (p.module.state_dict() for p in parents)
    key = next(k for k in first if k.endswith("weight"))
    torch.testing.assert_close(mean.module.state_dict()[key], (first[key] + second[key]) / 2)
    new = reinitialized(parents[0], 1)
    assert not torch.equal(new.module.state_dict()[key], first[key])
    assert [s.size for s in new.spaces] == [s.size for s in parents[0].spaces]


@pytest.mark.parametrize(
    ("merged", "control", "words"),
    [(0.9, 0.8, "10.00 points better than one"), (0.9, 0.95, "5.00 points worse than one"), (0.9, 0.9, "as good as")],
)
def test_verdict_is_plain(merged, control, words):
    scores = {"parent 1": 0.85, "merged": merged, "control": control}
    rows = [Row(name, {"accuracy": value}, {}) for name, value in scores.items()]
    assert words in verdict(rows, "accuracy", True)


def test_refuses(parents, data):
    with pytest.raises(gs.SurgeryError, match="budget is 0, expected a multiple"):
        merge(parents, data, MergePlan(budget=0.0), reporter=SILENT)
    with pytest.raises(gs.SpecError, match="parent 1"):
        merge(parents, load_data("sine?train=50"), reporter=SILENT)
    lenet, _ = train("paper/lenet_300_100?in_features=64", data, replace(PLAN, epochs=0), reporter=SILENT)
    with pytest.raises(gs.SurgeryError, match="different topologies"):
        merge([parents[0], lenet], data, reporter=SILENT)


def test_a_parent_that_guesses_is_named(parents, data):
    plan = replace(default_plan(parents), control=False)
    plan = replace(plan, gating=replace(plan.gating, epochs=1), fine_tuning=replace(plan.fine_tuning, epochs=1))
    found = merge([parents[0], reinitialized(parents[1], 5)], data, plan, reporter=SILENT).outcome
    assert found.row("parent 1").note == ""
    assert found.row("parent 2").note == "no better than guessing: is it trained, and on this data?"
    assert found.verdict.endswith(" Warning: parent 2 is no better than guessing on this data.")


@pytest.mark.parametrize(
    ("accuracy", "classes", "examples", "guesses"),
    [
        (0.1, 10, 1000, True),
        (0.115, 10, 1000, True),
        (0.13, 10, 1000, False),
        (0.5, 2, 100, True),
        (0.9, None, 9, False),
    ],
)
def test_guessing_is_what_one_of_the_classes_gives(accuracy, classes, examples, guesses):
    assert at_chance({"accuracy": accuracy}, classes, examples) is guesses
    assert not at_chance({"mse": 1.0}, classes, examples)
