"""The survey of networks of libraries: which steps are measured, what is kept of them, and the page."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from graphsurgery.recipes.contracts.contract import TOLERANCES

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import libraries

NET = "monai/UNet"
TEXT = "hf:BertModel?hidden_size=32"


def contract(status="holds", measured=0.0, why=""):
    return {"status": status, "measured": measured, "why": why}


def test_only_steps_that_are_missing_and_possible_are_measured():
    assert libraries.lacking(NET, {}) == ["trace", "halve", "contracts", "put back", "onnx", "peer"]
    assert libraries.lacking(TEXT, {"trace": "yes", "halve": "runs", "onnx": "yes", "peer": "0.3"}) == [
        "contracts",
        "put back",
        "config",
    ]
    assert libraries.lacking(TEXT, {"trace": "yes", "halve": "exact"}, ["onnx"]) == ["onnx"]
    assert libraries.lacking(TEXT, {"trace": "yes", "halve": "no: it is refused"}) == ["contracts", "peer"]
    assert libraries.lacking(TEXT, {"trace": "no: 2 parts are kept whole"}) == ["peer"]


def test_columns_are_contracts_of_the_doctor():
    names = [name for names in libraries.COLUMNS.values() for name in names]
    assert set(names) <= set(TOLERANCES)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("steps", [["trace", "halve", "contracts"], ["contracts"], ["halve"]])
def test_what_a_step_needs_is_done_and_not_found(monkeypatch, steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    monkeypatch.setattr(libraries, "_built", lambda _: (model, {"": torch.zeros(2, 4)}))
    found = libraries.examined(NET, steps)
    assert [step for step in libraries.NEEDS if step in found] == steps
    assert ("editable" in found) == ("trace" in steps)
    if "contracts" in steps:
        assert {known["status"] for known in found["contracts"].values()} <= {"holds", "not measured"}
        assert found["contracts"]["factorized at full rank = original"]["measured"] < 1e-10


def test_what_another_tool_leaves_is_a_share(monkeypatch):
    layers = [nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False)]
    monkeypatch.setattr(libraries, "_built", lambda _: (nn.Sequential(*layers), {"": torch.zeros(2, 4)}))
    assert libraries.examined(NET, ["peer"])["peer"] == "0.38"


def test_a_step_that_fails_ends_those_that_need_it(monkeypatch):
    monkeypatch.setattr(libraries, "_built", lambda _: (nn.Sequential(nn.Linear(4, 3)), {"": torch.zeros(2, 5)}))
    found = libraries.examined(TEXT)
    assert [step for step in libraries.NEEDS if step in found] == ["trace", "peer"]
    assert found["trace"].startswith("no: ")
    assert found["peer"].startswith("no: ")


def test_what_is_added_stands_beside_what_was_known():
    before = {"trace": "yes", "halve": "exact", "seconds": 3}
    found = libraries.completed(before, {"put back": "yes", "seconds": 1.5}, ["put back"])
    assert found == {"trace": "yes", "halve": "exact", "put back": "yes", "seconds": 4.5}
    slow = libraries.completed(before, {"failure": "took longer than 9 s", "wall_seconds": 9.0}, ["onnx"])
    assert slow["onnx"] == "no: took longer than 9 s"
    broken = libraries.completed(
        before, {"failure": "the process ended with signal 9: it", "wall_seconds": 1.0}, ["onnx"]
    )
    assert broken["onnx"].startswith("fault: the process ended")


def test_the_page_counts_and_says_why_by_reason():
    known = {"editable": 1.0, "spaces": 3, "trace": "yes", "halve": "exact", "seconds": 2.0}
    mean, wide = "concatenated = mean of two", "widened = original"
    why = "concatenate: {} mixes the streams"
    found = {
        NET: {**known, "put back": "yes", "contracts": {mean: contract("refused", None, why.format("layer.0.mul_3"))}},
        "monai/SegResNet": {**known, "contracts": {mean: contract("refused", None, why.format("up.2.add_1"))}},
        TEXT: {**known, "config": "hidden_size=16", "contracts": {mean: contract(measured=3e-16), wide: contract()}},
        "hf:GPT2Model": {**known, "contracts": {wide: contract("fails", 2e-3, "two | parts")}},
        "torch_geometric/GCN": {"trace": "no: 2 parts are kept whole", "editable": 0.0, "seconds": 1.0},
    }
    text = libraries.page(found)
    rows = {
        line.split(" | ")[0].strip("| `"): line.split(" | ") for line in text.splitlines() if line.startswith("| `")
    }
    assert rows[NET][6] == "no"
    assert rows["hf:BertModel …"][6:8] == ["3e-16", "0"]
    assert rows["hf:GPT2Model"][7] == "**fails**"
    assert rows["torch_geometric/GCN"][4] == "no"
    assert "Of 5 networks 4 are followed whole, 4 are cut in half, 0 agree with ONNX Runtime of 0" in text
    assert "**mean**, concatenated = mean of two: holds on 1 of 3, 2 refused." in text
    assert "- **mean**, 2: concatenate: layer.0.mul_3 mixes the streams (`monai/UNet`, `monai/SegResNet`)" in text
    assert "- **wide**, 1: fails by 2e-03: two | parts (`hf:GPT2Model`)" in text
