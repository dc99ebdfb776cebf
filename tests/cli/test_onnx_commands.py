"""Commands on ONNX files: what they print and write, and what they refuse."""

import json

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
