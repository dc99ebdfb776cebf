"""A trained network keeps the curves of its training."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import graphsurgery as gs
from graphsurgery.recipes.outcome import Row
from graphsurgery.recipes.train import curves_of, train
from graphsurgery.training.data import load_data
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter


@pytest.fixture(scope="module")
def trained():
    plan = TrainingPlan(epochs=3, lr=0.1, batch_size=64, device="cpu")
    return train("paper/cnn?width=3", load_data("digits?train=200"), plan, reporter=SilentReporter())


def test_its_lineage_has_the_curves_also_in_a_file(trained, tmp_path):
    gs.save(trained.graph, tmp_path / "a.pt")
    found = curves_of(gs.load(tmp_path / "a.pt"), "parent 1")
    assert [(record.stage, record.epoch) for record in found] == [("parent 1", n) for n in (1, 2, 3)]
    for mine, theirs in zip(found, trained.outcome.curves, strict=True):
        assert mine.train == pytest.approx(theirs.train, rel=1e-4)
        assert mine.validation == pytest.approx(theirs.validation, rel=1e-4)


@pytest.mark.parametrize(
    "curve", [None, 3, {}, {"train": 7}, {"train": {"total": []}}, {"train": {"a": 3, "b": ["x"]}}]
)
def test_what_has_no_curves_gives_none(trained, curve):
    record = {**trained.graph.lineage[-1], "curve": curve}
    assert curves_of(replace(trained.graph, lineage=(record,)), "x") == ()
    assert curves_of(replace(trained.graph, lineage=()), "x") == ()


def test_a_row_that_is_no_number_is_behind_all_others():
    rows = [Row(str(loss), {}, {"mse": loss, "loss": loss}) for loss in (math.nan, 2.0, 1.0, math.nan)]
    best = max(rows, key=lambda row: row.rank("mse", higher_is_better=False))
    assert best.name == "1.0"
