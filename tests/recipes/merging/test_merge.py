"""The merge recipe on networks that train in a second."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from rounding import alike
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import graphsurgery as gs
from graphsurgery.recipes.merging.merge import _left_open, merge, verdict
from graphsurgery.recipes.merging.plan import MergePlan, default_plan
from graphsurgery.recipes.outcome import Row, at_chance
from graphsurgery.recipes.train import curves_of, train
from graphsurgery.surgery.growth.fresh_weights import reinitialized
from graphsurgery.surgery.merging.averages import average
from graphsurgery.training.data import load_data
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives.tasks import CrossEntropy

PLAN = TrainingPlan(epochs=4, lr=0.1, batch_size=64, device="cpu")
SPEC = "paper/cnn?width=3"
SILENT = SilentReporter()


@pytest.fixture(scope="module")
def data():
    return load_data("digits?train=500")


@pytest.fixture(scope="module")
def parents(data):
    return [train(SPEC, data, replace(PLAN, seed=seed), reporter=SILENT).graph for seed in (0, 1)]


def quick(parents, by="joint", **settings):
    """A plan of few epochs."""
    plan = default_plan(parents, seed=3, by=by, controls=(), **settings)
    return replace(plan, wide=replace(plan.wide, epochs=2), fine_tuning=replace(plan.fine_tuning, epochs=3))


@pytest.fixture(scope="module")
def by_gates(parents, data):
    return merge(parents, data, default_plan(parents, seed=3, by="gates", controls=("longer",)), reporter=SILENT)


@pytest.fixture(scope="module")
def by_joint(parents, data):
    return merge(parents, data, default_plan(parents, seed=3, by="joint", controls=("distilled",)), reporter=SILENT)


@pytest.fixture(scope="module")
def by_auto(parents, data):
    return merge(parents, data, default_plan(parents, seed=3, by="auto"), reporter=SILENT)


PARENTS = ["parent 1", "parent 2", "ensemble", "weight average"]
CONTROL_ROWS = [f"control: {name}" for name in ("longer", "faster", "best of 3", "distilled", "wide", "mixed")]


def test_all_rows_are_there_in_order(by_gates, by_joint, by_auto):
    def names(found):
        return [row.name for row in found.outcome.rows]

    gates = ["concatenated", "gated", "cut", "recalibrated", "merged", "control: longer"]
    assert names(by_gates) == [*PARENTS, *gates]
    assert names(by_auto) == [*PARENTS, "soup", "aligned average", "distilled", "merged", *CONTROL_ROWS]
    joint = ["concatenated", "joint", "cut", "recalibrated", "merged", "control: distilled"]
    assert names(by_joint) == [*PARENTS, *joint]


def test_the_curves_begin_with_those_of_the_parents(parents, by_gates):
    stages = [record.stage for record in by_gates.outcome.curves]
    assert stages[: 2 * PLAN.epochs] == ["parent 1"] * PLAN.epochs + ["parent 2"] * PLAN.epochs
    assert by_gates.outcome.curves[: PLAN.epochs] == curves_of(parents[0], "parent 1")


def test_has_the_size_of_a_parent(parents, by_gates, by_joint, by_auto):
    for found in (by_gates, by_joint, by_auto):
        assert [s.size for s in found.graph.spaces] == [s.size for s in parents[0].spaces]
        assert found.outcome.row("merged").parameters == found.outcome.row("parent 1").parameters


def test_every_contract_holds(by_gates, by_joint, by_auto):
    for found in (by_gates, by_joint, by_auto):
        assert [check.name for check in found.outcome.checks if not check.holds] == []
    assert [check.name for check in by_gates.outcome.checks] == [
        "concatenated = mean of the parents",
        "gates open = no gates",
        "expected open share = budget, in every space",
        "cut = reads masked",
    ]
    joint = ["concatenated = mean of the parents", "cut = reads masked"]
    assert [check.name for check in by_joint.outcome.checks] == joint
    assert [check.name for check in by_auto.outcome.checks] == ["parent 2 aligned = parent 2"]


def test_the_books_add_up(by_gates, by_joint, by_auto, data):
    epochs = {row.name: row.epochs for row in by_gates.outcome.rows}
    assert (epochs["parent 1"], epochs["concatenated"], epochs["cut"]) == (4, 8, 12)
    assert epochs["merged"] == epochs["control: longer"] == 16
    rows = {row.name: row for row in by_auto.outcome.rows}
    same = ("distilled", *CONTROL_ROWS)
    assert {rows[name].epochs for name in same if name != "control: best of 3"} == {16}
    assert rows["control: best of 3"].epochs == 12
    parent = 4 * len(data.train) * rows["parent 1"].macs
    assert rows["parent 1"].training_macs == parent
    assert rows["distilled"].training_macs == rows["control: longer"].training_macs == 4 * parent
    rows = {row.name: row for row in by_joint.outcome.rows}
    assert (rows["joint"].epochs, rows["merged"].epochs) == (10, 16)
    assert rows["joint"].training_macs == 2 * parent + 2 * len(data.train) * rows["joint"].macs
    assert rows["merged"].training_macs == rows["joint"].training_macs + 1.5 * parent


def test_concatenated_is_as_good_as_the_ensemble_and_the_cut_loses_nothing(by_gates, data):
    rows = {row.name: row.test for row in by_gates.outcome.rows}
    ensemble = alike({"accuracy": rows["ensemble"]["accuracy"]}, len(data.test))
    assert rows["concatenated"]["accuracy"] == ensemble["accuracy"]
    assert rows["cut"]["loss"] == pytest.approx(rows["gated"]["loss"], rel=0.05)


def test_channels_come_from_both_parents(parents, by_gates, by_joint):
    for found in (by_gates, by_joint):
        for space in parents[0].spaces:
            assert sum(found.outcome.origins[space.name]) == space.size


def test_gates_close_to_the_budget(by_gates):
    assert by_gates.outcome.gates[0].expected > 0.7
    assert by_gates.outcome.gates[-1].expected == pytest.approx(0.5, abs=0.01)
    assert all(share == pytest.approx(0.5, abs=0.01) for share in by_gates.outcome.gates[-1].spaces.values())


@pytest.mark.parametrize("by", ["joint", "gates"])
@pytest.mark.parametrize("budget", [0.5, 1.5])
def test_other_budgets_and_three_parents(parents, data, budget, by):
    found = merge([*parents, parents[0]], data, quick(parents, by, budget=budget), reporter=SILENT)
    sizes = [s.size for s in parents[0].spaces]
    assert [s.size for s in found.graph.spaces] == [round(budget * n) for n in sizes]
    broken = [check.name for check in found.outcome.checks if not check.holds]
    assert broken in ([], ["expected open share = budget, in every space"])


def test_auto_delivers_nothing_worse_than_the_best_parent_on_validation_data(by_auto):
    rows = {row.name: row.validation["accuracy"] for row in by_auto.outcome.rows}
    tried = ("parent 1", "parent 2", "soup", "aligned average", "distilled")
    assert rows["merged"] == max(rows[name] for name in tried)
    assert "the best of 4 on validation data" in by_auto.outcome.row("merged").note
    assert by_auto.outcome.row("distilled").note.endswith("what the parents say, of mixtures of examples")


def test_auto_delivers_a_parent_where_nothing_else_helps(parents, data):
    plan = quick(parents, "auto")
    plan = replace(plan, fine_tuning=replace(plan.fine_tuning, lr=0.1, weight_decay=5.0))
    found = merge(parents, data, plan, reporter=SILENT)
    note = found.outcome.row("merged").note
    best = note.partition(":")[0]
    assert best in ("parent 1", "parent 2", "soup")
    assert found.outcome.row("merged").validation == found.outcome.row(best).validation
    assert found.graph.lineage[-1]["pass"] == "merge"
    assert "--by" not in note, "on as many examples it is worse beyond doubt"


@pytest.mark.parametrize(
    ("metric", "best", "trained", "words"),
    [
        ("accuracy", 0.9, 0.87, ", whose 100 examples tell ±3.1 points; --by distil takes what has learnt"),
        ("accuracy", 0.9, 0.86, ""),
        ("accuracy", 1.0, 0.99, ", whose 100 examples tell ±1.3 points; --by distil takes what has learnt"),
        ("mse", 0.20, 0.21, ""),
    ],
)
def test_auto_says_what_few_examples_leave_open(by_auto, data, metric, best, trained, words):
    some = replace(data, validation=TensorDataset(torch.zeros(100, 1)))
    books = SimpleNamespace(objective=SimpleNamespace(score=metric), data=some)
    rows = (replace(by_auto.outcome.rows[0], validation={metric: score}) for score in (best, trained))
    assert _left_open(*rows, SimpleNamespace(books=books, way="distil")) == words


def test_of_equal_scores_auto_delivers_what_has_been_trained(parents, data):
    few = replace(data, validation=TensorDataset(*data.validation[:1]))
    found = merge(parents, few, quick(parents, "auto"), reporter=SILENT).outcome
    scores = {row.validation["accuracy"] for row in found.rows if row.name in ("parent 1", "distilled", "merged")}
    assert scores == {1.0}
    assert found.row("merged").note.startswith("distilled: ")


def test_a_soup_of_parents_from_unlike_starts_is_one_parent_and_of_one_start_is_both(parents, data):
    from graphsurgery.training.loop.fit import fit
    from graphsurgery.training.objectives.tasks import objective_for

    alone = merge(parents, data, quick(parents, "soup"), reporter=SILENT)
    assert "alone: no other helps" in alone.outcome.row("soup").note
    tuned = [parents[0].copy(), parents[0].copy()]
    for seed, graph in enumerate(tuned):
        plan = replace(PLAN, epochs=1, lr=0.001, seed=seed)
        fit(graph.module, data.train, plan, objective=objective_for(data), reporter=SILENT)
    scores = merge(tuned, data, quick(tuned, "soup"), reporter=SILENT).outcome
    best = max(scores.row(f"parent {n}").validation["accuracy"] for n in (1, 2))
    assert scores.row("merged").validation["accuracy"] >= best
    assert scores.row("weight average").validation["accuracy"] > 0.5


def test_the_aligned_average_has_a_lower_barrier(parents, data):
    found = merge(parents, data, quick(parents, "average"), reporter=SILENT)
    note = found.outcome.row("aligned average").note
    before, after = (float(word) for word in note.replace(",", "").split() if word.replace(".", "").isdigit())
    assert after < before
    assert found.outcome.row("merged").epochs == 8
    aligned, plain = (found.outcome.row(name).test["accuracy"] for name in ("aligned average", "weight average"))
    assert aligned > plain


def test_the_best_parent_learns_from_all_on_mixtures(parents, data):
    plan = default_plan(parents, seed=3, by="distil")
    assert (plan.imitation.mixed, plan.epochs, plan.fine_tuning.lr) == (True, 8, 0.25)
    found = merge(parents, data, plan, reporter=SILENT)
    rows = {row.name: row for row in found.outcome.rows}
    best = max(rows["parent 1"], rows["parent 2"], key=lambda row: row.rank("accuracy", higher_is_better=True))
    assert found.graph.lineage[-1]["chosen"] == best.name
    assert rows["merged"].parameters == best.parameters
    assert rows["merged"].note == "fine-tuned on labels and what the parents say, of mixtures of examples"
    equal = ("merged", "control: longer", "control: faster", "control: distilled", "control: wide", "control: mixed")
    assert {rows[name].epochs for name in equal} == {16}
    assert "on mixtures of examples and of their labels" in rows["control: mixed"].note
    assert rows["merged"].test["loss"] != rows["control: distilled"].test["loss"]


@pytest.mark.parametrize("by", ["distil", "auto"])
def test_of_unlike_widths_the_result_has_that_of_the_first(parents, data, by):
    """Whichever is better: only parents of that size learn, or are delivered."""
    wide = train("paper/cnn?width=4", data, PLAN, reporter=SILENT).graph
    for both in ([parents[0], wide], [wide, parents[0]]):
        found = merge(both, data, quick(both, by), reporter=SILENT)
        assert found.graph.lineage[-1]["chosen"] == "parent 1"
        assert found.outcome.row("merged").parameters == found.outcome.row("parent 1").parameters
        assert "control: mixed" not in [row.name for row in found.outcome.rows]


def test_averages_need_equal_sizes(parents, data):
    wide = train("paper/cnn?width=4", data, PLAN, reporter=SILENT).graph
    for by in ("average", "soup"):
        with pytest.raises(gs.SurgeryError, match=f"unlike sizes, whose weights have no average; --by {by} needs"):
            merge([parents[0], wide], data, quick(parents, by), reporter=SILENT)
    found = merge([parents[0], wide], data, quick(parents, "auto"), reporter=SILENT)
    assert "aligned average" not in [row.name for row in found.outcome.rows]


def test_labels_are_not_needed(parents, data):
    plan = quick(parents)
    plan = replace(plan, imitation=replace(plan.imitation, labels=0.0))
    hidden = TensorDataset(data.train.tensors[0], torch.zeros_like(data.train.tensors[1]))
    found = merge(parents, replace(data, train=hidden), plan, reporter=SILENT)
    assert found.outcome.row("merged").test["accuracy"] > 0.5


def test_teachers_answer_examples_that_are_drawn_anew(parents, data):
    """Of data that are not tensors in memory nothing is kept: an image may be another one in each epoch."""

    class Drawn(Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, index):
            return data.train[index]

    found = merge(parents, replace(data, train=Drawn()), quick(parents), reporter=SILENT)
    assert found.outcome.row("merged").parameters


def test_an_interrupted_merge_ends_like_an_uninterrupted_one(parents, data, tmp_path):
    class Stop(Exception):
        pass

    class Interrupting(SilentReporter):
        def __init__(self):
            self.epochs = 0

        def epoch_finished(self, _):
            self.epochs += 1
            if self.epochs == 4:
                raise Stop

    plan = quick(parents)
    whole = merge(parents, data, plan, reporter=SILENT)
    with pytest.raises(Stop):
        merge(parents, data, plan, run=Run(tmp_path / "run"), reporter=Interrupting())
    found = merge(parents, data, plan, run=Run(tmp_path / "run"), reporter=SILENT)
    for key, tensor in whole.graph.module.state_dict().items():
        assert torch.equal(found.graph.module.state_dict()[key], tensor)


def test_regression_data(tmp_path):
    data = load_data("sine?train=200")
    plan = replace(PLAN, epochs=1, lr=0.01)
    parents = [train("paper/mlp?hidden=6", data, replace(plan, seed=s), reporter=SILENT).graph for s in (0, 1)]
    found = merge(parents, data, quick(parents, "auto"), reporter=SILENT)
    assert found.outcome.metric == "mse"
    assert found.outcome.row("distilled").note == "fine-tuned on labels and what the joint network says"
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
    [
        (0.9, 0.8, "10.00 points better than the strongest control (longer)"),
        (0.9, 0.95, "5.00 points worse than the strongest control (longer)"),
        (0.9, 0.9, "as good as the strongest control (longer)"),
    ],
)
def test_verdict_names_the_strongest_control(merged, control, words):
    scores = {"parent 1": 0.85, "merged": merged, "control: longer": control, "control: wide": 0.1}
    rows = [Row(name, {"accuracy": value}, {}) for name, value in scores.items()]
    assert words in verdict(rows, CrossEntropy(10))


def test_default_plans():
    names = [
        ("paper/cnn?width=3", "sgd", 2.5),
        ("paper/lenet_300_100?in_features=64", "sgd", 1),
        ("paper/cnn?width=3", "adam", 1),
    ]
    for spec, optimizer, factor in names:
        data = load_data("digits")
        plan = replace(PLAN, epochs=0, optimizer=optimizer)
        parent = train(spec, data, plan, reporter=SILENT).graph
        record = {**parent.lineage[-1], "plan": {**parent.lineage[-1]["plan"], "epochs": 20}}
        parent = replace(parent, lineage=(record,))
        joint, gates = (default_plan([parent, parent], by=by) for by in ("joint", "gates"))
        assert (joint.wide.epochs, joint.fine_tuning.epochs) == (10, 30)
        assert joint.wide.lr == joint.fine_tuning.lr == pytest.approx(factor * plan.lr)
        assert (gates.wide.epochs, gates.fine_tuning.epochs) == (20, 20)
        assert (gates.wide.lr, gates.fine_tuning.lr) == pytest.approx((0.3 * plan.lr, plan.lr))
        assert gates.wide.schedule == "constant"
        auto, distil = (default_plan([parent, parent], by=by) for by in ("auto", "distil"))
        assert auto.epochs == distil.epochs == joint.epochs
        assert default_plan([parent, parent], budget=0.5).by == "joint"
        assert (auto.imitation.mixed, distil.imitation.mixed, joint.imitation.mixed) == (True, True, False)
        assert default_plan([parent, parent], rate=2).wide.lr == pytest.approx(2 * plan.lr)
        gates = default_plan([parent, parent], rate=2, by="gates")
        assert (gates.wide.lr, gates.fine_tuning.lr) == pytest.approx((0.6 * plan.lr, 2 * plan.lr))


def test_refuses(parents, data):
    with pytest.raises(gs.SurgeryError, match="budget is 0, expected a multiple"):
        MergePlan(budget=0.0)
    for by in ("distil", "average", "soup"):
        with pytest.raises(gs.SurgeryError, match=f"budget is 2, --by {by} keeps a parent's size; use --by joint"):
            MergePlan(by=by, budget=2.0)
    with pytest.raises(gs.SurgeryError, match="gate_lr is 0; it must be above 0"):
        MergePlan(by="gates", gate_lr=0.0)
    with pytest.raises(gs.SurgeryError, match="by is 'luck'; choose from auto, distil, joint, gates, average, soup"):
        MergePlan(by="luck")
    with pytest.raises(gs.SurgeryError, match="unknown control 'luck'; choose from longer, faster"):
        MergePlan(controls=("luck",))
    with pytest.raises(gs.SpecError, match="parent 1"):
        merge(parents, load_data("sine?train=50"), reporter=SILENT)
    lenet = train("paper/lenet_300_100?in_features=64", data, replace(PLAN, epochs=0), reporter=SILENT).graph
    with pytest.raises(gs.SurgeryError, match="different topologies"):
        merge([parents[0], lenet], data, reporter=SILENT)


def test_a_parent_that_guesses_is_named(parents, data):
    plan = quick(parents, "average")
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


class AttendingChannels(nn.Module):
    """A softmax over channels, and one attention head over pixels."""

    def __init__(self, width):
        super().__init__()
        self.stem, self.norm, self.qkv = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = (x * x.softmax(1)).flatten(2).transpose(1, 2)
        return self.head(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)).mean(1))


@pytest.mark.parametrize("by", ["joint", "gates"])
def test_what_the_parents_compute_one_by_one_is_cut_in_proportion(by, data):
    parents = []
    for seed, width in enumerate((6, 4)):
        torch.manual_seed(seed)
        graph = gs.trace(AttendingChannels(width), torch.zeros(2, 1, 8, 8))
        fit(graph.module, data.train, replace(PLAN, epochs=2, seed=seed), objective=CrossEntropy(10), reporter=SILENT)
        parents.append(graph)
    plan = replace(quick(parents, by), parent_epochs=2.0)
    found = merge(parents, data, plan, reporter=SILENT)
    sizes = {space.name: space.size for space in found.graph.spaces}
    assert sizes == {"stem": 4, "stem:2": 2, "qkv": 4, "qkv:2": 2, "qkv:3": 4, "qkv:4": 2}
    assert {name: sum(counts) for name, counts in found.outcome.origins.items()} == {"stem": 6, "qkv": 6, "qkv:2": 6}
    assert found.outcome.origins["stem"] == (4, 2)
