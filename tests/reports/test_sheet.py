"""Tables at every width: nothing is broken or wider than the screen, and what is left out is said."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from graphsurgery.reports.sheet import Column, Sheet, middle

NAMES = ("encoder.layers.0.self_attention.out_proj", "conv1", "encoder.layers.11.mlp.3")


def shown(table, width):
    screen = io.StringIO()
    Console(file=screen, width=width).print(table)
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def sheet(box=None):
    table = Sheet(
        Column("layer", "name"),
        Column("size", "number"),
        Column("shape", "mark", drop=1),
        Column("MACs", "number", drop=2),
        Column("why it stays as it is"),
        box=box,
    )
    for name in NAMES:
        table.add_row(name, "1,234", "[batch, 64, 56, 56]", "118 M", "its readers add what they read of it")
    table.add_row("read by", "3", "", "", NAMES)
    return table


def words(lines):
    return {word for line in lines for word in line.split() if set(word) != {"─"}}


@pytest.mark.parametrize("box", [None, SIMPLE_HEAD])
@pytest.mark.parametrize("width", range(60, 181, 10))
def test_no_word_is_broken_and_no_line_too_long(width, box):
    lines = shown(sheet(box), width)
    assert all(len(line) <= width for line in lines)
    whole = words(shown(sheet(box), 1000))
    said = words(["no room for: shape, MACs; --wide shows all", "1 2 more"])
    assert {word for word in words(lines) if "…" not in word} <= whole | said


def test_what_matters_least_goes_first_and_is_said():
    assert "no room for: MACs; --wide shows all" in shown(sheet(), 80)
    assert "no room for: shape, MACs; --wide shows all" in shown(sheet(), 62)
    assert not any("--wide" in line for line in shown(sheet(), 180))


def test_names_fold_in_the_middle_and_lists_say_how_many_more():
    lines = shown(sheet(), 62)
    assert lines[1].startswith("encoder.layer…tion.out_proj")
    assert any("… 2 more" in line for line in lines)
    assert any(", ".join(NAMES) in line for line in shown(sheet(), 300))


@example(text="字a", width=1)
@given(text=st.text("ab.é字", max_size=60), width=st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_what_is_folded_keeps_both_ends(text, width):
    found = middle(text, width)
    assert cell_len(found) <= width
    if found != text:
        start, _, end = found.partition("…")
        assert text.startswith(start)
        assert text.endswith(end)
        assert abs(cell_len(start) - cell_len(end)) <= 2  # some letters take two columns
        assert cell_len(found) >= width - 2


def test_styles_stay_where_a_word_is_folded():
    table = Sheet(Column("network"), Column("", "number"))
    long = Text("a" * 40, style="bold")
    long.append(" best", style="green")
    table.add_row(long, "1" * 20)
    lines = shown(table, 40)
    assert "…" in lines[1]
    assert "best" in "".join(lines)


def test_names_are_no_markup():
    table = Sheet(Column("name", "name"))
    table.add_row("[red]x[/red]\x1b[31m")
    assert shown(table, 40)[1] == "[red]x[/red]\N{REPLACEMENT CHARACTER}[31m"
