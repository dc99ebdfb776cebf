"""Commands on ONNX files: what they print and write, and what they refuse."""

import json
import shutil
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from graphsurgery.cli import run


@pytest.fixture
def exported(here, files):
    """The current folder, with a network and what compress left of it as ONNX files."""
    shutil.copytree(files, here, dirs_exist_ok=True)
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
    assert run(["diff", "m.onnx", "m.onnx", "--input", "5", "--json"]) == 0
    assert document(capsys)["latency"]["before"]["runs"] == 50


def test_sizes_of_free_axes_are_given_to_diff_and_view(here, capsys, fails):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", 4])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.5] * 16)
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), here / "m.onnx")
    assert run(["view", "m.onnx", "--html", "v.html"]) == 0
    assert "MACs not counted of 1 nodes, whose sizes are free: give --input" in " ".join(
        capsys.readouterr().out.split()
    )
    assert run(["view", "m.onnx", "--html", "v.html", "--overwrite", "--input", "7x4"]) == 0
    assert f"{7 * 16} MACs per image" in " ".join(capsys.readouterr().out.split())
    assert run(["diff", "m.onnx", "m.onnx", "--no-latency", "--json", "--input", "x=1x7x4"]) == 0
    assert document(capsys)["before"]["macs"] == 7 * 16
    code, line = fails("diff", "m.onnx", "m.onnx", "--no-latency", "--input", "7x5")
    assert (code, line) == (2, "m.onnx: input x is ?x4 in the file, not 7x5")


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
    assert (found["calibrated"], found["tested"], found["compared"]) == (100, 360, 360)
    # The default's sums are exact on every processor, so that the bounds hold on all of them: rounding weights to 7 and
    # activations to 8 bits makes 0.09, and half a percent of the examples change their class.
    assert found["scheme"] == "u8s7"
    assert abs(found["int8"]["metrics"]["accuracy"] - found["float32"]["metrics"]["accuracy"]) < 0.05
    assert found["agreement"] > 0.9
    assert 0 < found["deviation"] < 0.2
    assert found["int8"]["bytes"] == (here / "q.onnx").stat().st_size == found["schemes"]["u8s7"]["bytes"]
    taken = found["schemes"]["u8s7"]
    # What was measured here is what was computed, but for values that lie between two steps.
    assert abs(taken["exact"]["deviation"] - found["deviation"]) < 0.02
    assert abs(taken["exact"]["metrics"]["accuracy"] - found["int8"]["metrics"]["accuracy"]) < 0.02
    assert list(found["schemes"]) == ["u8s7", "u8u8", "u8s8"]
    for scheme in ("u8s7", "u8u8"):
        assert found["schemes"][scheme]["overflowing"] == 0
        assert found["schemes"][scheme]["exact"] == found["schemes"][scheme]["saturating"]
    assert found["schemes"]["u8s8"]["overflowing"] > 0
    assert found["schemes"]["u8s8"]["saturating"]["deviation"] > found["schemes"]["u8s8"]["exact"]["deviation"]


@pytest.mark.parametrize(
    ("options", "scheme", "words"),
    [
        ([], "u8s7", "u8s7: sums are exact on every x86 and Arm processor"),
        (["--scheme", "u8s8"], "u8s8", "pairs of weights saturate for some inputs on x86 processors without VNNI"),
    ],
)
@pytest.mark.usefixtures("here")
def test_export_in_8_bits_shows_all_schemes(capsys, options, scheme, words):
    command = ["export", "a.pt", "-o", "q.onnx", "--int8", "--calib", "digits", "--calib-examples", "100"]
    assert run([*command, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:1] == ["int8"] and "%" in line for line in lines)
    rows = {line.split()[0].rstrip(","): line.split() for line in lines if line.startswith("u8")}
    assert list(rows) == ["u8s7", "u8u8", "u8s8"]
    assert [name for name, row in rows.items() if row[1] == "taken"] == [scheme]
    assert any(line.startswith("scheme  ") and words in line for line in lines)
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
        (["--int8", "--calib", "digits", "--data", "digits"], "--int8 compares on the examples of --calib; leave out"),
        (["--scheme", "u8u8"], "--calib, --calib-examples and --scheme belong to --int8; give it too"),
        (["--int8", "--calib", "digits", "--scheme", "s8s8"], "s8s8"),
        (["--int8", "--calib", "data.py:empty"], "train has no examples; give at least one"),
        (["--int8", "--calib", "data.py:untested"], "test has no examples; give at least one, or leave it out"),
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
