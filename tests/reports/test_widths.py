"""The figure of a slimmable network's widths."""

import dataclasses

import pytest

from graphsurgery.errors import SurgeryError
from graphsurgery.reports.html import rendered
from graphsurgery.reports.widths import draw_widths, width_figure


@pytest.fixture
def widths(outcome):
    rows = tuple(dataclasses.replace(outcome.rows[0], macs=int(1e6 * width)) for width in (1.0, 0.5))
    return dataclasses.replace(outcome, rows=rows, widths=(1.0, 0.5))


def test_a_panel_for_each_cost(widths):
    svg = width_figure(widths)
    for name in ("width", "million MACs", "thousand parameters", "milliseconds for one example"):
        assert name in svg
    rows = tuple(dataclasses.replace(row, latency=None) for row in widths.rows)
    assert "milliseconds" not in width_figure(dataclasses.replace(widths, rows=rows))


def test_the_report_has_it_where_there_are_widths(widths, outcome):
    assert "Width by width" in rendered(widths)
    assert "Width by width" not in rendered(outcome)


def test_it_is_written_by_the_ending(widths, tmp_path):
    for ending in ("svg", "png"):
        draw_widths(widths, tmp_path / f"a.{ending}")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "a.svg").read_bytes()
    draw_widths(widths, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == first
    with pytest.raises(SurgeryError, match=r"a.txt: is no picture; end the name in .svg, .png, .pdf"):
        draw_widths(widths, tmp_path / "a.txt")
