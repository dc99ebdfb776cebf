import io
from dataclasses import replace

import pytest
from rich.console import Console

from graphsurgery.reports.tables import OutcomeTable, checks_table


def shown(table, width=100):
    screen = io.StringIO()
    Console(file=screen, width=width).print(table)
    return screen.getvalue()


def test_the_result_at_100_columns(outcome):
    lines = [line.split() for line in shown(OutcomeTable(outcome)).splitlines()]
    assert ["parent", "1", "97.22", "%", "96.94", "%", "0.27", "M", "40.55", "M", "1.84", "60"] in lines
    assert ["two", "networks", "run"] in lines
    assert [line[0] for line in lines if "best" in line] == ["fine-tuned"]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_what_matters_least_is_left_out_where_there_is_no_room(outcome, width):
    rows = tuple(replace(row, training_macs=1e9, seconds=3.0) for row in outcome.rows)
    text = shown(OutcomeTable(replace(outcome, rows=rows)), width)
    assert "…" not in text
    assert ("no room for: " in text) == (width < 140)
    text = text.partition("no room")[0]
    assert "fine-tuned · best" in text
    assert "accuracy" in text
    assert ("CPU" in text) == (width == 140)


def test_the_checks(outcome):
    lines = [line.split()[-4:] for line in shown(checks_table(outcome)).splitlines()]
    assert ["3.1e-16", "≤", "1e-10", "PASS"] in lines
    assert ["2.3e-4", "≤", "1e-4", "FAIL"] in lines


def test_markup_in_names_is_text(hostile):
    text = shown(OutcomeTable(hostile)) + shown(checks_table(hostile))
    assert "[red]" in text
    assert "\x1b" not in text
