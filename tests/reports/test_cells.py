import dataclasses

import pytest

from graphsurgery.errors import printable
from graphsurgery.recipes.outcome import Outcome, Row
from graphsurgery.reports.cells import (
    best_rows,
    columns,
    count,
    count_cells,
    deviation_text,
    duration_text,
    latency_cells,
    metric_text,
)


def test_columns_without_numbers_are_left_out(outcome):
    rows = tuple(dataclasses.replace(row, latency=None, note="") for row in outcome.rows)
    headings = [column.heading for column in columns(dataclasses.replace(outcome, rows=rows))]
    assert headings == ["network", "test accuracy", "validation accuracy", "parameters", "MACs", "epochs"]


@pytest.mark.parametrize(
    ("higher_is_better", "scores", "best"),
    [
        (True, [0.1, 0.3, 0.2], {1}),
        (False, [0.1, 0.3, 0.2], {0}),
        (True, [0.3, float("nan"), 0.3], {0, 2}),
        (True, [None, 0.1], {1}),
        (True, [None, float("nan")], set()),
    ],
)
def test_validation_says_which_rows_are_best(higher_is_better, scores, best):
    """Test data say the opposite."""
    found = [{} if s is None else {"score": s} for s in scores]
    rows = tuple(Row(str(i), {"score": -row.get("score", 9.0)}, row) for i, row in enumerate(found))
    assert best_rows(Outcome("", rows, "score", higher_is_better)) == best


@pytest.mark.parametrize(("losses", "best"), [([0.2, 0.1, 0.3], {1}), ([0.2, 0.2, 0.3], {0, 1})])
def test_of_equal_scores_the_smaller_loss_is_best(losses, best):
    rows = tuple(Row(str(i), {"score": i}, {"score": 1.0, "loss": loss}) for i, loss in enumerate(losses))
    assert best_rows(Outcome("", rows, "score", higher_is_better=True)) == best


@pytest.mark.parametrize(
    ("counts", "cells"),
    [
        ([272_474, 1_086_548, None], ("0.27 M", "1.09 M", "–")),
        ([301, 2_410, 0], ("301", "2,410", "0")),
        ([8_520, 61_706], ("8.52 k", "61.71 k")),
        ([23_530_000, 12_000], ("23.530 M", "0.012 M")),
        ([4_090_000_000], ("4.09 G",)),
        ([None], ("–",)),
    ],
)
def test_counts_share_a_unit(counts, cells):
    assert count_cells(counts) == cells


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (999.7, "1 k"), (27_249, "27.2 k"), (999_600, "1 M"), (4.089e9, "4.09 G")],
)
def test_a_count_has_three_digits(number, text):
    assert count(number) == text


def test_metrics():
    assert metric_text("accuracy", 0.98333) == "98.33 %"
    assert metric_text("mse", 0.207) == "0.2070"
    assert metric_text("mse", float("inf")) == "inf"


def test_latencies():
    assert latency_cells([1.84, None]) == ("1.84", "–")
    assert latency_cells([1.84, 0.0312]) == ("1.840", "0.031")


def test_deviations():
    assert [deviation_text(x) for x in (0.0, 3.14e-16, 1e-4, float("nan"))] == ["0", "3.1e-16", "1e-4", "nan"]


def test_durations():
    times = (0.5, 12.4, 161.4, 3599.9, 7260)
    assert [duration_text(t) for t in times] == ["0.5 s", "12 s", "2 min 41 s", "1 h 0 min", "2 h 1 min"]


def test_printable():
    assert printable("a\nb\x1b[0m\udc80 é") == "a b\ufffd[0m\ufffd é"
