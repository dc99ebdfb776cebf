"""The figure of a slimmable network's widths."""

import contextlib
import dataclasses

import matplotlib.figure
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
    for name in ("width", "million MACs", "thousand parameters", "latency, ms"):
        assert name in svg
    rows = tuple(dataclasses.replace(row, latency=None) for row in widths.rows)
    assert "latency" not in width_figure(dataclasses.replace(widths, rows=rows))


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


def test_each_panel_is_in_the_order_of_its_axis_and_shows_all_points(outcome, monkeypatch):
    """A network of half the width may take longer than a wider one."""
    rows = tuple(
        dataclasses.replace(outcome.rows[0], latency=latency, test={"accuracy": score})
        for latency, score in ((0.06, 0.99), (0.02, 0.95), (0.03, 0.9))
    )
    figures = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    with contextlib.suppress(ValueError):  # nothing was drawn
        width_figure(dataclasses.replace(outcome, rows=rows, widths=(1.0, 0.5, 0.25)))
    panel = figures[0].axes[3]
    times, scores = panel.lines[0].get_data()
    assert (list(times), list(scores)) == ([0.02, 0.03, 0.06], [0.95, 0.9, 0.99])
    (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
    assert left <= 0.02 < 0.06 < right
    assert low < 0.9 < 0.99 < high
