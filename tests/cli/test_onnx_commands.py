"""Commands on ONNX files: what they print and write, and what they refuse."""

import json
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from graphsurgery.cli import run


@pytest.fixture
def exported(here):
    """The current folder, with a network and what compress left of it as ONNX files."""
    import graphsurgery as gs
    from graphsurgery.passes.compress import compress

    graph = gs.load("a.pt")
    gs.export_onnx(graph, "a.onnx")
    gs.export_onnx(compress(graph, 0.5), "small.onnx")
    return here


def document(capsys):
    """The JSON document, which is all that may stand on standard output."""
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("exported")
def test_diff_lists_what_changed(capsys):
    assert run(["diff", "a.onnx", "small.onnx", "--json"]) == 0
    found = document(capsys)
    assert found["before"]["parameters"] > found["after"]["parameters"]
    assert found["counts"]["removed"] == found["counts"]["inserted"] == 0
    assert {node["kind"] for node in found["nodes"]} == {"changed"}
    assert found["latency"]["before"]["runs"] == 50
    assert run(["diff", "a.onnx", "small.onnx", "--no-latency"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("~  node_") and "→" in line for line in lines)
    assert not any("latency" in line for line in lines)
    assert lines[-1].split() == ["next", "graphsurgery", "view", "small.onnx"]


@pytest.mark.usefixtures("exported")
def test_diff_of_a_file_with_itself(capsys):
    assert run(["diff", "a.onnx", "a.onnx", "--no-latency", "--json"]) == 0
    assert document(capsys)["nodes"] == []
    assert run(["diff", "a.onnx", "a.onnx", "--no-latency", "--all", "--json"]) == 0
    found = document(capsys)
    assert [node["kind"] for node in found["nodes"]] == ["same"] * found["before"]["nodes"]


def test_diff_says_why_it_does_not_time(here, capsys):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "side"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "side"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), here / "m.onnx")
    assert run(["diff", "m.onnx", "m.onnx"]) == 0
    assert "latency not measured: m.onnx: input x has shape" in capsys.readouterr().out


def test_diff_of_bad_files(fails, here):
    (here / "bad.onnx").write_bytes(b"no model")
    assert fails("diff", "bad.onnx", "bad.onnx") == (
        2,
        "bad.onnx: is truncated or no ONNX file at all; take another copy of it",
    )
    assert fails("diff", "nowhere.onnx", "bad.onnx") == (2, "nowhere.onnx: no such file; expected an ONNX file")
    code, line = fails("diff", "a.pt", "a.pt")
    assert code == 2
    assert "a.pt: is truncated or no ONNX file at all" in line or "holds no whole ONNX model" in line


@pytest.mark.usefixtures("here")
def test_export_compares_real_inputs(capsys):
    assert run(["export", "a.pt", "-o", "m.onnx", "--data", "digits", "--json"]) == 0
    found = document(capsys)
    assert list(found["check"]["deviations"]) == ["batch 1", "batch 3", "batch 8", "given inputs"]
    assert found["next"] == "graphsurgery view m.onnx"


def test_export_in_8_bits(here, capsys):
    command = ["export", "a.pt", "-o", "q.onnx", "--int8", "--calib", "digits", "--calib-examples", "100"]
    assert run([*command, "--json"]) == 0
    found = document(capsys)
    operators = {node.op_type for node in onnx.load(here / "q.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert (found["calibrated"], found["tested"]) == (100, 360)
    assert abs(found["int8"]["metrics"]["accuracy"] - found["float32"]["metrics"]["accuracy"]) < 0.05
    assert found["agreement"] > 0.9
    assert 0 < found["deviation"] < 0.2
    assert found["int8"]["bytes"] == (here / "q.onnx").stat().st_size
    assert run([*command, "--reduce-range", "--overwrite"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:1] == ["int8"] and "%" in line for line in lines)
    assert lines[-1].split() == ["next", "graphsurgery", "view", "q.onnx"]


DATA = """
import torch
from torch.utils.data import TensorDataset

def part(count, *shape):
    return TensorDataset(torch.zeros(count, *shape), torch.zeros(count, dtype=torch.int64))

def empty():
    return part(0, 1, 8, 8), part(5, 1, 8, 8), part(5, 1, 8, 8)

def untested():
    return part(5, 1, 8, 8), part(5, 1, 8, 8), part(0, 1, 8, 8)

def large():
    return part(5, 1, 9, 9), part(5, 1, 9, 9), part(5, 1, 9, 9)
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "--int8 needs examples to calibrate on; give --calib DATA"),
        (["--calib", "digits"], "belong to --int8; give it too"),
        (["--int8", "--calib", "data.py:empty"], "returned no training examples; give at least one"),
        (["--int8", "--calib", "data.py:untested"], "has no test examples"),
        (
            ["--int8", "--calib", "data.py:large"],
            r"its examples are [1, 9, 9], the network is exported for inputs [1, 8",
        ),
        (["--int8", "--calib", "sine"], "its examples are [1], the network is exported for inputs [1, 8, 8]"),
        (["--int8", "--calib", "digits", "--calib-examples", "0"], "calib-examples"),
        (["--int8", "--calib", "digit"], "did you mean digits"),
        (["--data", "data.py:large"], "its examples are [1, 9, 9], the network is exported for inputs [1, 8, 8]"),
    ],
)
def test_bad_calibration(fails, here, options, message):
    (here / "data.py").write_text(DATA)
    code, line = fails("export", "a.pt", "-o", "x.onnx", *options)
    assert code == 2
    assert message in line


@pytest.mark.usefixtures("exported")
def test_view_writes_a_picture(here, capsys):
    assert run(["view", "a.pt", "--html", "a picture.html"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["wrote", "a", "picture.html"]
    assert lines[-1].split() == ["next", "graphsurgery", "inspect", "a.pt"]
    assert "conv1" in (here / "a picture.html").read_text()
    assert run(["view", "a.onnx", "--json"]) == 0
    found = document(capsys)
    assert found["files"] == {"picture": "a.html"}
    assert found["boxes"] == len(onnx.load("a.onnx").graph.node) + 2


NETRON = """
import pathlib

def start(file):
    pathlib.Path("started").write_text(file)

def wait():
    pass
"""


@pytest.mark.parametrize("file", ["a.pt", "a.onnx"])
def test_view_uses_netron_where_it_is_installed(exported, monkeypatch, file):
    (exported / "packages").mkdir()
    (exported / "packages" / "netron.py").write_text(NETRON)
    monkeypatch.syspath_prepend(exported / "packages")
    monkeypatch.delitem(sys.modules, "netron", raising=False)
    assert run(["view", file, "--quiet"]) == 0
    assert (exported / "started").read_text() == file
    assert not (exported / "a.html").exists()
    assert run(["view", file, "--html", "own.html", "--quiet"]) == 0
    assert (exported / "own.html").exists()
    sys.modules.pop("netron", None)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["nowhere.onnx"], "nowhere.onnx: no such file; expected an ONNX file"),
        (["nowhere.pt"], "nowhere.pt: no such file"),
        (["bad.onnx"], "bad.onnx: is truncated or no ONNX file at all"),
        (["a.pt", "--html", "no/x.html"], "its folder does not exist"),
        (["torchvision/resnet81"], "did you mean"),
    ],
)
def test_view_of_bad_input(fails, here, tokens, message):
    (here / "bad.onnx").write_bytes(b"no model")
    code, line = fails("view", *tokens)
    assert code == 2
    assert message in line
