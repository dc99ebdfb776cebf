"""Latency targets and recovery without labels on the command line, with a runtime whose times are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from known_times import profile, weights

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.onnx.runtime.latency import Latency, Pair
from graphsurgery.recipes.compression import cost_table, to_latency

COMMON = ["--calib", "digits", "--epochs", "1", "--device", "cpu"]


@pytest.fixture
def asked():
    return []


@pytest.fixture(autouse=True)
def runtime(monkeypatch, asked):
    """Every weight takes a microsecond."""

    def measured(milliseconds, timing):
        return Latency(milliseconds, 0.0, timing.runs, timing.batch, timing.threads, milliseconds, milliseconds)

    def measure_pair(before, after, timing, _):
        asked.append((str(before), timing))
        a, b = (sum(weights(onnx.load(path)).values()) / 1000 for path in (before, after))
        return Pair(measured(a, timing), measured(b, timing), b / a, b / a, b / a)

    def measure_latency(paths, **_):
        return {name: Latency(0.0, 0.0, 50, 1, 1) for name in paths}

    monkeypatch.setattr(cost_table, "profile", profile)
    monkeypatch.setattr(cost_table, "measure_latency", measure_latency)
    monkeypatch.setattr(to_latency, "measure_pair", measure_pair)


@pytest.mark.usefixtures("file")
def test_a_file_gets_half_its_latency_and_mimics_itself(capsys, asked):
    options = ["--threads", "2", "--batch", "4", "--runs", "7"]
    command = ["compress", "a.onnx", "--target", "latency=0.5x", *COMMON, *options, "-o", "small.onnx"]
    assert run(command) == 0
    shown = capsys.readouterr().out
    for words in (
        "timing     ONNX Runtime, 2 threads, batch 4, 5 runs to warm up, 7 timed in turn",
        "round to   1",
        "promise    latency=0.5x kept",
        "agreement",
        "check      ONNX Runtime = PyTorch",
    ):
        assert words in shown
    assert {(path, timing.batch) for path, timing in asked} == {("a.onnx", 4)}
    before, after = (sum(weights(onnx.load(path)).values()) for path in ("a.onnx", "small.onnx"))
    assert 0.3 * before < after <= 0.5 * before


def test_a_checkpoint_is_timed_as_its_exports(here, capsys):
    assert run(["compress", "a.pt", "--target", "latency=0.5x", "-o", "small.pt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["promise"]["kept"]
    assert found["promise"]["ratio"] <= 0.5
    assert set(found["latency"]["table"]["spaces"]) == {space.name for space in gs.load("a.pt").spaces}
    assert gs.load(here / "small.pt").lineage[-1]["target"]["quantity"] == "latency"


def test_a_dry_run_measures_and_writes_nothing(file, capsys):
    before = sorted(file.parent.iterdir())
    assert run(["compress", "a.onnx", "--target", "latency=0.6x", "-o", "small.onnx", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "latency=0.6x kept" in shown
    assert "would write small.onnx" in shown
    assert sorted(file.parent.iterdir()) == before


@pytest.mark.usefixtures("file")
def test_round_to_auto_goes_with_any_target(capsys):
    assert run(["compress", "a.onnx", "--keep", "0.5", "--round-to", "auto", "-o", "small.onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"]["step"] == found["cut"]["round_to"] == 1


def test_a_folder_of_images_recovers_a_checkpoint(here, capsys):
    folder = here / "images"
    folder.mkdir()
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(40, 1, 8, 8)))
    command = ["compress", "a.pt", "--keep", "0.7", "--calib", "images", "--recover", "mimic", "--epochs", "1"]
    assert run([*command, "--device", "cpu", "-o", "small.pt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["outcome"]
    assert [row["name"] for row in found["rows"]] == ["original", "cut", "recalibrated", "fine-tuned"]
    assert found["metric"] == "agreement"


@pytest.mark.usefixtures("here")
def test_data_measure_and_calib_recovers(capsys):
    assert run(["compress", "a.pt", "--keep", "0.7", "--data", "digits", *COMMON, "-o", "small.pt"]) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "no labels; agrees on" in " ".join(shown.split())


@pytest.mark.parametrize("delivered", ["small.onnx", "beside.onnx", None])
@pytest.mark.usefixtures("file")
def test_the_promise_is_of_the_file_that_is_delivered(delivered, capsys, monkeypatch):
    """A network that goes back into a file, an ONNX file beside a checkpoint, and a checkpoint that nobody exports."""
    real, timed = to_latency.measure_pair, []

    def measure_pair(before, after, *options):
        timed.append(after.read_bytes())
        return real(before, after, *options)

    monkeypatch.setattr(to_latency, "measure_pair", measure_pair)
    files = ["a.onnx", "-o", "small.onnx"] if delivered == "small.onnx" else ["a.pt", "-o", "small.pt"]
    files += ["--onnx", delivered] if delivered == "beside.onnx" else []
    assert run(["compress", *files, "--target", "latency=0.5x", "--report", "r.html"]) == 0
    shown = capsys.readouterr().out
    assert "promise    latency=0.5x kept" in shown
    assert "latency=0.5x kept" in Path("r.html").read_text()
    assert ("timed as an ONNX file, which --onnx FILE keeps" in shown) == (delivered is None)
    if delivered is not None:
        assert timed[-1] == Path(delivered).read_bytes()
        assert "check      ONNX Runtime = PyTorch" in shown


@pytest.mark.parametrize(
    "tokens",
    [["a.onnx", "-o", "small.onnx"], ["a.pt", "-o", "small.pt", "--onnx", "beside.onnx", "--report", "r.html"]],
    ids=["back", "beside"],
)
def test_a_promise_that_training_breaks_is_not_written(tokens, file, capsys, monkeypatch):
    """What is timed last is the result itself."""

    real = to_latency.measure_pair
    calls = []

    def slower(before, after, timing, shapes):
        calls.append(after)
        found = real(before, after, timing, shapes)
        if len(calls) <= searched:
            return found
        return Pair(found.before, found.before, 1.0, 0.99, 1.01)

    searched = 10**6
    monkeypatch.setattr(to_latency, "measure_pair", slower)
    command = ["compress", *tokens, "--target", "latency=0.5x"]
    there = sorted(file.parent.iterdir())
    assert run([*command, "--dry-run", "--quiet"]) == 0
    searched = len(calls)
    calls.clear()
    capsys.readouterr()
    assert run(command) == 1
    assert "latency=0.5x not kept" in capsys.readouterr().err
    assert sorted(file.parent.iterdir()) == there


@pytest.mark.usefixtures("file")
def test_one_process_measures(fails, monkeypatch):
    """Each of several would disturb the others, and find other widths."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, line = fails("compress", "a.onnx", "--target", "latency=0.5x", "-o", "small.onnx")
    assert (code, line) == (2, "compress: each of several processes would measure another latency; start one")


BAD = {
    "labels": (["--keep", "0.5", "--calib", "digits", "--recover", "labels"], "--calib gives examples without labels"),
    "nothing": (["--keep", "0.5", "--recover", "mimic"], "--recover mimic needs examples; give --data or --calib"),
    "no folder": (["--keep", "0.5", "--calib", "./nowhere"], "nowhere: is not a folder; give --calib one"),
    "other inputs": (["--keep", "0.5", "--calib", "sine"], "input"),
    "not timed": (["--target", "macs=0.5x", "--threads", "2"], "--threads, --batch and --runs say how a latency"),
    "unknown space": (["--target", "latency=0.5x", "--keep-space", "conv9=3"], "conv9 is not a space"),
    "too much": (["--target", "latency=0.0001x"], "of 1 cuts none keeps the promise"),
    "nothing to do": (["--target", "latency=2x"], "latency=2x removes nothing, the network takes"),
    "bad step": (["--keep", "0.5", "--round-to", "often"], "often"),
    "dead": (["--dead", "--calib", "digits"], "--dead changes no output"),
    "two files": (["--keep", "0.5", "--onnx", "b.onnx"], "small.onnx is an ONNX file already; leave out --onnx"),
    "learns nothing": (["--keep", "0.5", "--data", "digits", "--recover", "mimic"], "--recover, --tracker and"),
    "no rate": (["--keep", "0.5", "--data", "digits", "--lr", "0.1"], "--lr, --recover, --tracker and"),
    "tracks nothing": (["--keep", "0.5", "--mixed-precision", "bf16"], "--mixed-precision are of fine-tuning; give"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("file")
def test_bad_requests_fail_with_one_line(case, fails):
    tokens, message = BAD[case]
    code, line = fails("compress", "a.onnx", *tokens, "-o", "small.onnx")
    assert code == (1 if case == "too much" else 2)
    assert message in line
