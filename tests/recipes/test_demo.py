"""The demo: what it writes and says; a training of two epochs stands for its sixty."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

import graphsurgery as gs
from graphsurgery.cli.commands.demo import demo as command
from graphsurgery.errors import SpecError
from graphsurgery.recipes import demo


def test_all_files_and_rows_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PLAN", replace(demo.PLAN, epochs=2))
    outcome = demo.demo(tmp_path / "new" / "folder", data="digits?train=60&validation=20", seed=1)
    written = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert {*demo.FILES} - written == {"report.html"}, "the command writes it"
    names = [row.name for row in outcome.rows]
    assert names[:3] == ["parent 1", "parent 2", "ensemble"]
    assert names[-1 - len(demo.CONTROLS) :] == ["merged", *(f"control: {name}" for name in demo.CONTROLS)]
    parents = [gs.load(tmp_path / "new" / "folder" / f"{name}.pt") for name in "ab"]
    assert [parent.lineage[-1]["plan"]["seed"] for parent in parents] == [2, 3]
    assert outcome.files["network"].endswith("merged.pt")
    assert all(check.holds for check in outcome.checks)


def test_the_command_learns_what_the_recipe_says():
    assert inspect.signature(command).parameters["data"].default == demo.DATA


def test_other_data_need_a_network_of_their_own(tmp_path):
    with pytest.raises(SpecError, match="does not take the inputs"):
        demo.demo(tmp_path, data="sine")
