"""Boxes do not overlap, edges go down, and lines go around boxes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsurgery.errors import SurgeryError
from graphsurgery.reports.diagrams.layout import BoxSize, lay_out


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 12))
    names = [f"n{i}" for i in range(count)]
    sizes = {name: BoxSize(draw(st.integers(20, 200)), draw(st.integers(20, 80))) for name in names}
    pairs = list(itertools.combinations(names, 2))
    return sizes, draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []


@settings(deadline=None, max_examples=80, derandomize=True)
@given(graphs())
def test_boxes_and_edges(graph):
    sizes, edges = graph
    layout = lay_out(sizes, edges)
    spans = {
        name: (x - sizes[name].width / 2, y, x + sizes[name].width / 2, y + sizes[name].height)
        for name, (x, y) in layout.places.items()
    }
    for left, top, right, bottom in spans.values():
        assert -1e-6 <= left <= right <= layout.width + 1e-6
        assert -1e-6 <= top <= bottom <= layout.height + 1e-6
    for a, b in itertools.combinations(spans.values(), 2):
        assert a[2] <= b[0] + 1e-6 or b[2] <= a[0] + 1e-6 or a[3] <= b[1] or b[3] <= a[1]
    assert set(layout.routes) == set(edges)
    for (source, target), points in layout.routes.items():
        heights = [y for _, y in points]
        assert heights == sorted(heights)
        assert points[0] == (layout.places[source][0], spans[source][3])
        assert points[-1] == layout.places[target]
        for (x, y), (across, down) in itertools.pairwise(points):
            if x == across and down > y:
                others = [span for name, span in spans.items() if name not in (source, target)]
                assert not any(l < x < r and t < (y + down) / 2 < b for l, t, r, b in others)  # noqa: E741


def test_a_chain_is_straight():
    layout = lay_out({name: BoxSize(50, 20) for name in "abc"}, [("a", "b"), ("b", "c")])
    assert len({x for x, _ in layout.places.values()}) == 1


def test_what_is_no_graph():
    with pytest.raises(SurgeryError, match="the edges form a circle"):
        lay_out({"a": BoxSize(1, 1), "b": BoxSize(1, 1)}, [("a", "b"), ("b", "a")])
    with pytest.raises(SurgeryError, match="an edge names c, which is no box"):
        lay_out({"a": BoxSize(1, 1)}, [("a", "c")])
