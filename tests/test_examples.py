"""Every file of examples/ runs as it stands, and does what its first line says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import onnx
import pytest

import graphsurgery as gs

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in a folder of its own; what it printed."""

    def run(name):
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def accuracies(printed):
    """Percent of the test images, by network."""
    return {name.strip(): float(found) for name, found in re.findall(r"^(.*?):? +([\d.]+)% of the", printed, re.M)}


def test_merge_two(run):
    found = accuracies(run("merge_two"))
    assert {"parent 1", "parent 2", "merged", "control: distilled"} <= set(found)
    assert found["merged"] > 60
    assert gs.cost(gs.load("merged.pt")).parameters == 1009


def test_compress_onnx(run):
    before, after = (int(count.replace(",", "")) for count in re.findall(r"([\d,]+) (?:mul|are)", run("compress_onnx")))
    assert 0.2 < after / before < 0.3
    assert Path("small.onnx").stat().st_size < 0.5 * Path("model.onnx").stat().st_size


def test_widen_and_deepen(run):
    assert run("widen_and_deepen").count("outputs moved by") == 2
    assert any("_deeper2" in name for name, _ in gs.load("deep.pt").module.named_modules())


def test_distil(run):
    found = accuracies(run("distil"))
    assert {"teacher", "student on labels", "mimic"} <= set(found)
    assert found["mimic"] > 60
    assert gs.cost(gs.load("student.pt")).parameters == 1009


def test_every_width(run):
    found = accuracies(run("every_width"))
    assert found["width 100%"] > 60
    whole, half = (len(onnx.load(f"width-{width}.onnx").SerializeToString()) for width in (1.0, 0.5))
    assert half < whole


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    assert f"test_{path.stem}" in globals()
