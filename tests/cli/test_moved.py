"""Edits without data say what they did to the outputs, and the command that recovers it runs."""

import json
import shlex

import pytest

from graphsurgery.cli import run

LOSSY = {
    "compress": ["compress", "a.pt", "--keep", "0.3", "-o", "s.pt"],
    "compress --target": ["compress", "a.pt", "--target", "params=0.3x", "-o", "s.pt"],
    "factorize": ["factorize", "a.pt", "--rank", "0.3", "-o", "s.pt"],
    "factorize random": ["factorize", "a.pt", "--rank", "0.3", "--how", "random", "-o", "s.pt"],
    "widen": ["widen", "a.pt", "--by", "2x", "--init", "random-pad", "-o", "s.pt"],
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", LOSSY)
def test_what_a_lossy_edit_did(capsys, name):
    assert run([*LOSSY[name], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["moved"]
    assert found["deviation"] > 0.01
    assert 0 <= found["same"] <= found["inputs"]
    assert found["recovered"] is False
    assert run([*LOSSY[name], "--overwrite"]) == 0
    lines = capsys.readouterr().out.splitlines()
    change = next(line for line in lines if line.startswith("change"))
    assert f"on {found['same']} of {found['inputs']} random inputs the class stays; not recovered" in change
    recover = next(line for line in lines if line.startswith("recover"))
    tokens = shlex.split(recover)[1:]
    assert tokens[0] == "graphsurgery"
    assert run([*tokens[1:], "--dry-run"]) == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "command",
    [
        ["compress", "a.pt", "--keep", "0.3", "--data", "digits", "--epochs", "0"],
        ["compress", "a.pt", "--keep", "0.3", "--calib", "digits", "--epochs", "0"],
    ],
    ids=["data", "calib"],
)
def test_with_data_the_table_says_it(capsys, command):
    assert run([*command, "--device", "cpu", "-o", "s.pt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "moved" not in found
    assert found["outcome"]["rows"]


@pytest.mark.usefixtures("here")
def test_an_edit_that_moves_nothing_has_nothing_to_recover(capsys):
    assert run(["masks", "a.pt", "--apply", "b.pt", "-o", "m.pt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["moved"]["recovered"] is True


@pytest.mark.usefixtures("here")
def test_an_onnx_file_is_recovered_without_labels(capsys):
    assert run(["export", "a.pt", "-o", "a.onnx", "--quiet"]) == 0
    assert run(["compress", "a.onnx", "--keep", "0.5", "-o", "s.onnx", "--json"]) == 0
    assert "--calib FOLDER --recover mimic --overwrite" in json.loads(capsys.readouterr().out)["moved"]["recover"]
