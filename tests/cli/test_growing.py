"""Widen, deepen and grow on the command line."""

import json

import pytest
import torch
from contracts import FLOAT32

import graphsurgery as gs
from graphsurgery.checkpoint import read_metadata
from graphsurgery.cli import run
from graphsurgery.surgery.deviation import deviation


@pytest.mark.usefixtures("here")
def test_widen_writes_a_network_with_the_same_outputs(capsys):
    assert run(["widen", "a.pt", "--by", "1.5x", "--to", "conv1=7,conv3=2x", "-o", "w.pt"]) == 0
    shown = capsys.readouterr().out
    assert "wider      conv1 3 to 7, conv2 6 to 9, conv3 12 to 24" in shown
    assert "check      grown = original" in shown
    assert shown.splitlines()[-1].split() == ["next", "graphsurgery", "inspect", "w.pt"]
    small, wide = gs.load("a.pt"), gs.load("w.pt")
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert deviation(wide(x), small(x)) < FLOAT32
    assert read_metadata("w.pt")["sizes"]["conv1"] == [3, 7]


@pytest.mark.usefixtures("here")
def test_widen_like_another_network_and_by_an_init_that_is_not_exact(capsys):
    assert run(["widen", "a.pt", "--like", "paper/cnn?width=5", "--init", "random-pad", "-o", "w.pt", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sizes"] == {"conv1": [3, 5], "conv2": [6, 10], "conv3": [12, 20]}
    assert document["deviation"] > 1e-3
    assert {name: t.shape for name, t in gs.load("w.pt").module.state_dict().items()} == {
        name: t.shape for name, t in gs.trace(_cnn(5), torch.zeros(2, 1, 8, 8)).module.state_dict().items()
    }


def _cnn(width):
    from graphsurgery.models import build

    return build(f"paper/cnn?width={width}")


@pytest.mark.usefixtures("here")
def test_deepen_shows_where_and_inserts_layers(capsys, here):
    assert run(["deepen", "a.pt", "--after", "auto", "-o", "d.pt", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1:4]] == ["conv1", "conv2", "conv3"]
    assert "identity layer" in shown
    assert not (here / "d.pt").exists()
    assert run(["deepen", "a.pt", "--after", "conv1", "--after", "conv2", "--count", "2", "-o", "d.pt"]) == 0
    assert "deeper     2 after each of conv1, conv2" in capsys.readouterr().out
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert deviation(gs.load("d.pt")(x), gs.load("a.pt")(x)) < FLOAT32
    assert run(["deepen", "a.pt", "--after", "conv1", "--data", "digits", "-o", "e.pt", "--quiet"]) == 0
    assert gs.load("e.pt").lineage[-1]["calibrated"] == 1


@pytest.mark.usefixtures("here")
def test_grow_trains_and_compares(capsys, here):
    command = ["grow", "a.pt", "--data", "digits", "--by", "2x", "--epochs", "1", "--device", "cpu", "-o", "g.pt"]
    assert run([*command, "--dry-run"]) == 0
    assert "would train 4 networks for 1 epochs" in capsys.readouterr().out
    assert run([*command, "--report", "g.html", "--run", "runs"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("teacher continued", "from scratch", "random padding", "verdict"))
    assert (here / "g.html").stat().st_size > 10_000
    assert [record["pass"] for record in gs.load("g.pt").lineage] == ["trace", "train", "widen", "grow"]
    assert run([*command[:-1], "h.pt", "--no-control", "--quiet"]) == 0


BAD = {
    "no size": (["widen", "a.pt", "-o", "w.pt"], "widen: nothing says how wide; give --by 1.5x, --to NAME=96"),
    "smaller": (["widen", "a.pt", "--by", "0.5", "-o", "w.pt"], "by is 0.5, expected at least 1; compress removes"),
    "no number": (["widen", "a.pt", "--by", "wide", "-o", "w.pt"], "'wide' is no factor"),
    "unknown space": (["widen", "a.pt", "--to", "conv7=20", "-o", "w.pt"], "conv7 is not a space of this model"),
    "other topology": (["widen", "a.pt", "--like", "paper/mlp", "-o", "w.pt"], "do not match"),
    "no place": (["deepen", "a.pt", "-o", "d.pt"], "deepen: nothing says where; give --after NAME, or --after auto"),
    "two places": (["deepen", "a.pt", "--after", "auto", "--after", "conv1", "-o", "d.pt"], "give no other beside it"),
    "unknown place": (["deepen", "a.pt", "--after", "conv7", "-o", "d.pt"], "conv7 is no node, module or stage"),
    "no identity": (["deepen", "a.pt", "--after", "conv1", "--block", "copy", "-o", "d.pt"], "can be repeated"),
    "no factor": (["widen", "a.pt", "--to", "conv1=20", "--round-to", "8", "-o", "w.pt"], "sizes that follow from a"),
    "no noise": (["widen", "a.pt", "--by", "2", "--noise", "0.1", "-o", "w.pt"], "--noise is for --init equal+noise"),
    "count of nothing": (
        ["grow", "a.pt", "--by", "2", "--count", "3", "--data", "digits", "-o", "g.pt"],
        "say where with --after",
    ),
    "nothing to grow": (["grow", "a.pt", "--data", "digits", "-o", "g.pt", "--dry-run"], "grow: nothing says how"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_fail_with_one_line(case, fails):
    tokens, message = BAD[case]
    code, line = fails(*tokens)
    assert code == 2
    assert message in line
