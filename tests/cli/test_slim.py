"""Slim, widths and export at a width on the command line."""

import json
import re

import pytest

from graphsurgery.checkpoint import read_metadata
from graphsurgery.cli import run

TRAIN = ["--data", "digits", "--epochs", "1", "--device", "cpu"]


@pytest.mark.usefixtures("here")
def test_one_network_for_every_width(capsys, here):
    assert run(["slim", "a.pt", *TRAIN, "-o", "us.pt", "--dry-run"]) == 0
    assert "would train 1 epochs of 4 widths" in capsys.readouterr().out
    assert run(["slim", "a.pt", *TRAIN, "-o", "us.pt", "--report", "us.html"]) == 0
    shown = capsys.readouterr().out
    assert all(f"width {width}" in shown for width in ("1", "0.75", "0.5", "0.25"))
    assert (here / "us.html").stat().st_size > 10_000
    known = len(read_metadata("us.pt")["statistics"])
    assert run(["export", "us.pt", "--width", "0.5", "-o", "half.onnx"]) == 0
    assert "width      0.5" in capsys.readouterr().out
    assert run(["widths", "us.pt", "--data", "digits", "--at", "0.9", "0.34", "--latency", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["outcome"]["rows"]
    assert [row["name"] for row in rows] == ["width 0.9", "width 0.34"]
    assert all(row["latency"] > 0 for row in rows)
    assert len(read_metadata("us.pt")["statistics"]) > known
    assert run(["export", "us.pt", "--target", "macs=0.6x", "--data", "digits", "-o", "small.onnx", "--quiet"]) == 0
    assert run(["widths", "us.pt", "--data", "digits", "--search", "macs=0.6x"]) == 0
    shown = capsys.readouterr().out
    assert "channels" in shown
    following = shown.rpartition("next")[2].split()
    assert run([*following[1:-1], "searched.onnx"]) == 0
    assert "=" in following[following.index("--width") + 1]


@pytest.mark.usefixtures("here")
def test_a_network_with_switchable_norms(capsys, here):
    widths = ["--switchable", "0.25", "0.5"]
    assert run(["slim", "a.pt", *TRAIN, *widths, "-o", "sw.pt", "--dry-run"]) == 0
    assert "would train 1 epochs of 3 widths" in capsys.readouterr().out
    assert run(["slim", "a.pt", *TRAIN, *widths, "-o", "sw.pt"]) == 0
    assert "export sw.pt --width 0.5" in capsys.readouterr().out
    assert run(["widths", "sw.pt", "--data", "digits", "--plot", "sw.svg", "--report", "sw.html"]) == 0
    assert "million MACs" in (here / "sw.svg").read_text()
    assert "Width by width" in (here / "sw.html").read_text()
    page = re.sub("<[^>]*>", "", (here / "sw.html").read_text())
    assert "graphsurgery widths sw.pt --data digits" in page
    assert run(["export", "sw.pt", "--target", "latency=1s", "-o", "whole.onnx"]) == 0
    assert "width      1:" in capsys.readouterr().out


def test_doctor_examines_slimming_on_demand(capsys):
    assert run(["doctor", "paper/mlp", "--no-onnx", "--slim", "--quiet", "--json"]) == 0
    names = [contract["name"] for contract in json.loads(capsys.readouterr().out)["contracts"]]
    assert "slim at width w = compressed to the first channels" in names
    assert run(["doctor", "paper/mlp", "--no-onnx", "--quiet", "--json"]) == 0
    assert "slim at" not in capsys.readouterr().out


BAD = {
    "no slimmable network": (["export", "a.pt", "--width", "0.5", "-o", "x.onnx"], "a.pt: is no slimmable network"),
    "widths of another": (["widths", "a.pt", "--data", "digits"], "a.pt: is no slimmable network"),
    "two": (["export", "a.pt", "--width", "0.5", "--target", "macs=0.5x", "-o", "x.onnx"], "exclude each other"),
    "minimum": (["slim", "a.pt", *TRAIN, "--min-width", "0", "-o", "u.pt", "--dry-run"], "smallest width is 0"),
    "switchable": (
        ["slim", "a.pt", *TRAIN, "--switchable", "0.1", "-o", "u.pt", "--dry-run"],
        "the width is 0.1, expected 0.25 to 1",
    ),
    "unit": (["compress", "a.pt", "--target", "latency=5", "-o", "x.pt"], "has no unit; write latency=5ms"),
    "picture": (
        ["widths", "a.pt", "--data", "digits", "--plot", "a.txt"],
        "a.txt: is no picture; end the name in .svg",
    ),
    "search": (["widths", "a.pt", "--data", "digits", "--search", "macs=0.5x", "--latency"], "--search stands alone"),
    "nothing free": (["slim", "nets.py:bare", *TRAIN, "-o", "u.pt", "--dry-run"], "no space can be slimmed"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_fail_with_one_line(case, fails):
    tokens, message = BAD[case]
    code, line = fails(*tokens)
    assert code == 2
    assert message in line
