"""Grow: a wider or deeper network that starts as the teacher, next to its controls."""

from dataclasses import replace

import pytest
import torch
from rounding import alike

import graphsurgery as gs
from graphsurgery.passes.deepen import deepen_like
from graphsurgery.recipes.grow import CONTROLS, Growth, default_plan, grow, grown, parse_factor, parse_sizes
from graphsurgery.recipes.merging.merge import merge
from graphsurgery.recipes.merging.plan import MergePlan
from graphsurgery.recipes.train import train
from graphsurgery.training.data import load_data
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter

PLAN = TrainingPlan(epochs=2, lr=0.05, device="cpu")


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def teacher(digits):
    return train("paper/cnn?width=3", digits, PLAN, reporter=SilentReporter()).graph


def test_every_network_is_trained_and_measured(digits, teacher):
    plan = default_plan(teacher, Growth(by=1.5, after=("auto",)), epochs=1, device="cpu")
    before = {name: tensor.clone() for name, tensor in teacher.tensors().items()}
    result, outcome = grow(teacher, digits, plan, reporter=SilentReporter())
    names = [row.name for row in outcome.rows]
    assert names == [
        "teacher", "grown, untrained", "grown", "random padding, untrained", "random padding", "from scratch",
        "teacher continued",
    ]  # fmt: skip
    assert outcome.row("grown, untrained").test == alike(outcome.row("teacher").test, len(digits.test))
    assert outcome.row("random padding, untrained").test != outcome.row("teacher").test
    sizes = {outcome.row(name).parameters for name in names if name not in ("teacher", "teacher continued")}
    assert len(sizes) == 1
    assert min(sizes) > outcome.row("teacher").parameters
    assert [check.name for check in outcome.checks] == ["grown = original"]
    assert all(check.holds for check in outcome.checks)
    assert {record.stage for record in outcome.curves} == {
        "grown",
        "random-padding",
        "from-scratch",
        "teacher-continued",
    }
    assert all(word in outcome.verdict for word in ("the teacher", "random padding", "from scratch", "trained as long"))
    assert [record["pass"] for record in result.lineage] == ["trace", "train", "widen", "deepen", "grow"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.tensors().items())


def test_rates_are_a_tenth_of_the_teachers(teacher):
    plan = default_plan(teacher, Growth(by=2.0))
    assert (plan.training.lr, plan.scratch.lr) == (pytest.approx(0.005), pytest.approx(0.05))
    assert plan.controls == CONTROLS
    changed = default_plan(teacher, Growth(by=2.0), lr=0.3, epochs=7)
    assert (changed.training.lr, changed.training.epochs, changed.scratch.epochs) == (0.3, 7, 7)


def test_statistics_of_new_norms_come_from_the_training_data(digits, teacher):
    deep = grown(teacher, Growth(after=("conv1",)), digits)
    norms = [name for name in deep.tensors() if "_deeper1" in name and name.endswith("running_var")]
    assert len(norms) == 1
    assert not torch.equal(deep.tensors()[norms[0]], torch.ones(3))


def test_parents_of_unlike_depth_are_merged(digits):
    spec = "paper/resnet20?in_channels=1&width=2"
    deep = train(spec, digits, PLAN, reporter=SilentReporter()).graph
    shallow = gs.trace(_shallow(), torch.zeros(2, 1, 8, 8))
    assert len(deepen_like(shallow, deep).module.graph.nodes) == len(deep.module.graph.nodes)
    stage = replace(PLAN, epochs=1)
    merged = merge([shallow, deep], digits, MergePlan("gates", stage, stage, controls=()), reporter=SilentReporter())
    checks = {check.name: check.holds for check in merged.outcome.checks}
    assert checks["concatenated = mean of the parents"]
    assert merged.outcome.row("parent 1").parameters == merged.outcome.row("parent 2").parameters


def _shallow():
    """A ResNet-14 with the layers of the paper's ResNet-20."""
    from graphsurgery.models import build

    network = build("paper/resnet20?in_channels=1&width=2")
    for stage in network.stages:
        del stage[2]
    return network


@pytest.mark.parametrize(("text", "factor"), [("1.5x", 1.5), ("2", 2.0), ("1.25", 1.25)])
def test_factors_are_read(text, factor):
    assert parse_factor(text) == factor


def test_sizes_are_read():
    assert parse_sizes(["a=3,b.c=1.5x", "d:2=2x"]) == {"a": 3, "b.c": 1.5, "d:2": 2.0}


@pytest.mark.parametrize("text", ["wide", "x", "", "true"])
def test_no_factor_is_refused(text):
    with pytest.raises(gs.SurgeryError, match="is no factor; expected a number"):
        parse_factor(text)


@pytest.mark.parametrize("text", ["conv1", "conv1=", "=4", "conv1=big"])
def test_no_size_is_refused(text):
    with pytest.raises(gs.SurgeryError, match="expected NAME=96 channels or NAME"):
        parse_sizes([text])


def test_bad_requests_are_refused(digits, teacher):
    with pytest.raises(gs.SurgeryError, match="nothing says how; give --by, --to or --like"):
        grown(teacher, Growth())
    for options in ({"count": 3}, {"block": "layer"}):
        with pytest.raises(gs.SurgeryError, match="say where with --after"):
            Growth(by=2.0, **options)
    plan = default_plan(teacher, Growth(by=2.0))
    with pytest.raises(gs.SurgeryError, match="unknown control 'luck'; choose from random-pad"):
        grow(teacher, digits, replace(plan, controls=("luck",)))
