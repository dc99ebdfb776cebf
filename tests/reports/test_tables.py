import io

from rich.console import Console

from graphsurgery.reports.tables import checks_table, outcome_table


def shown(table):
    screen = io.StringIO()
    Console(file=screen, width=100).print(table)
    return screen.getvalue()


def test_the_result_at_100_columns(outcome):
    lines = [line.split() for line in shown(outcome_table(outcome)).splitlines()]
    assert ["parent", "1", "97.22", "%", "96.94", "%", "0.27", "M", "40.55", "M", "1.84", "60"] in lines
    assert ["two", "networks", "run"] in lines
    assert [line[0] for line in lines if "best" in line] == ["fine-tuned"]


def test_the_checks(outcome):
    lines = [line.split()[-4:] for line in shown(checks_table(outcome)).splitlines()]
    assert ["3.1e-16", "≤", "1e-10", "PASS"] in lines
    assert ["2.3e-4", "≤", "1e-4", "FAIL"] in lines


def test_markup_in_names_is_text(hostile):
    text = shown(outcome_table(hostile)) + shown(checks_table(hostile))
    assert "[red]" in text
    assert "\x1b" not in text
