"""Mimic: a student learns what its teachers say."""

from dataclasses import replace

import pytest
import torch
from rounding import alike
from torch import nn
from torch.utils.data import TensorDataset

import graphsurgery as gs
from graphsurgery.recipes.compression.shrink import Cut, recovery, shrink, with_gradients
from graphsurgery.recipes.mimicking.mimic import hopeless, mimic
from graphsurgery.recipes.mimicking.plan import MimicPlan
from graphsurgery.recipes.outcome import Row
from graphsurgery.recipes.train import fresh, train
from graphsurgery.training.data import load_data
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives.tasks import CrossEntropy

PLAN = TrainingPlan(epochs=2, lr=0.05, device="cpu")
STUDENT = "paper/lenet_300_100?in_features=64"


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def teachers(digits):
    plans = [replace(PLAN, seed=seed, epochs=4) for seed in (0, 1)]
    return {f"t{p.seed}": train("paper/cnn?width=4", digits, p, reporter=SilentReporter()).graph.module for p in plans}


def test_everything_is_measured(digits, teachers, tmp_path):
    student = fresh(STUDENT, digits, 0)
    before = {name: tensor.clone() for name, tensor in student.tensors().items()}
    result, outcome = mimic(
        student, teachers, digits, MimicPlan(PLAN, copies=1), cache=tmp_path, reporter=SilentReporter()
    )
    assert [row.name for row in outcome.rows] == ["t0", "t1", "ensemble", "student on labels", "mimic"]
    assert outcome.row("mimic").test["accuracy"] > 0.7
    assert "2,300 answered examples, agrees with the teachers on" in outcome.row("mimic").note
    assert result.lineage[-1]["pass"] == "mimic"
    assert len(list(tmp_path.glob("logits-*.npy"))) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.tensors().items())
    assert "its teacher (ensemble)" in outcome.verdict


def test_a_bottleneck_is_multiplied_back(digits, teachers):
    student = fresh(STUDENT, digits, 0)
    plan = MimicPlan(PLAN, bottleneck=10, control=False)
    result, outcome = mimic(student, teachers, digits, plan, reporter=SilentReporter())
    narrow, whole = outcome.row("mimic with its bottleneck"), outcome.row("mimic")
    assert narrow.parameters == whole.parameters - 300 * 100 + 10 * (300 + 100)
    assert narrow.test == alike(whole.test, len(digits.test))
    assert all(check.holds for check in outcome.checks)
    assert {n: t.shape for n, t in result.tensors().items()} == {n: t.shape for n, t in student.tensors().items()}
    kept, _ = mimic(student, teachers, digits, replace(plan, keep_bottleneck=True), reporter=SilentReporter())
    assert "fc2.reduce.weight" in kept.tensors()


def test_other_examples_without_labels_are_answered_too(digits, teachers):
    more = TensorDataset(torch.randn(50, 1, 8, 8), torch.zeros(50, dtype=torch.long))
    _, outcome = mimic(
        fresh(STUDENT, digits, 0), {"t0": teachers["t0"]}, digits,
        MimicPlan(replace(PLAN, epochs=1), control=False, standardise=True, imitation=Imitation("kl")),
        transfer=more, reporter=SilentReporter(),
    )  # fmt: skip
    assert "1,200 answered examples" in outcome.row("mimic").note


@pytest.mark.parametrize(("gain", "warns"), [(0.02, False), (0.0, True), (-0.01, True)])
def test_teachers_that_do_not_beat_the_student_are_hopeless(gain, warns):
    rows = [Row("t", {}, {"accuracy": 0.9 + gain}), Row("student on labels", {}, {"accuracy": 0.9})]
    assert bool(hopeless(rows, "t", CrossEntropy(10), 0.0)) == warns
    assert bool(hopeless(rows, "t", CrossEntropy(10), 0.05))


def test_a_cut_network_learns_from_what_it_was(digits):
    graph = train("paper/cnn?width=4", digits, replace(PLAN, epochs=4), reporter=SilentReporter()).graph
    wrong = replace(digits, train=TensorDataset(digits.train.tensors[0], torch.zeros_like(digits.train.tensors[1])))
    accuracy = {}
    for recover in ("labels", "mimic"):
        _, outcome = shrink(
            graph, Cut(keep=0.5), wrong, replace(PLAN, epochs=3), recover=recover, reporter=SilentReporter()
        )
        accuracy[recover] = outcome.row("fine-tuned").test["accuracy"]
    assert accuracy["mimic"] > 0.6 > 0.3 > accuracy["labels"]


def test_gradients_are_found_of_frozen_weights_too(digits):
    graph = fresh(STUDENT, digits, 0)
    expected = with_gradients(graph, digits).tensors()
    layer = next(name for name, tensor in graph.tensors().items() if tensor.requires_grad)
    graph.tensors()[layer].requires_grad_(False)
    found = with_gradients(graph, digits).tensors()
    assert not found[layer].requires_grad
    torch.testing.assert_close(found[layer].grad, expected[layer].grad)


def test_bad_requests_are_refused(digits, teachers):
    student = fresh(STUDENT, digits, 0)
    with pytest.raises(gs.SurgeryError, match="no teacher; give one or more"):
        mimic(student, {}, digits, MimicPlan(PLAN))
    with pytest.raises(gs.SurgeryError, match=r"few: gives outputs \[3\], digits has 10 classes"):
        mimic(student, {"few": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, digits, MimicPlan(PLAN))
    with pytest.raises(gs.SurgeryError, match=r"large: does not take the inputs \[1, 8, 8\] of digits"):
        mimic(student, {"large": nn.Sequential(nn.Flatten(), nn.Linear(100, 10))}, digits, MimicPlan(PLAN))
    with pytest.raises(gs.SurgeryError, match="rank of fc2 is 101, expected 1 to its full rank 100"):
        mimic(student, teachers, digits, MimicPlan(PLAN, bottleneck=101, control=False))
    regression = replace(digits, classes=None)
    for settings, option in ({"imitation": Imitation("kl")}, "--loss"), ({"standardise": True}, "--standardise"):
        with pytest.raises(gs.SurgeryError, match=f"{option} is of the logits of classes, and digits has no classes"):
            mimic(student, teachers, regression, MimicPlan(PLAN, **settings))
    with pytest.raises(gs.SurgeryError, match="recover is 'luck'; choose from labels, mimic"):
        recovery("luck", digits, [student])
