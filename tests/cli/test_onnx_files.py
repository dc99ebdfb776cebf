"""Commands on `.onnx` files."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.onnx.importing import import_onnx


def document(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("file")
def test_inspect_and_doctor_take_a_file(capsys):
    assert run(["inspect", "a.onnx", "--json"]) == 0
    assert [space["size"] for space in document(capsys)["spaces"]] == [space.size for space in gs.load("a.pt").spaces]
    assert run(["doctor", "a.onnx", "--no-onnx", "--json"]) == 0
    assert {contract["status"] for contract in document(capsys)["contracts"]} == {"holds"}


def test_a_file_is_compressed_into_a_file(file, capsys):
    before = file.read_bytes()
    assert run(["compress", "a.onnx", "--keep", "0.5", "-o", "small.onnx"]) == 0
    shown = capsys.readouterr().out
    assert "check      ONNX Runtime = PyTorch" in shown
    assert shown.splitlines()[-1].split() == ["next", "graphsurgery", "diff", "a.onnx", "small.onnx"]
    assert file.read_bytes() == before
    assert len(onnx.load("small.onnx").graph.node) == len(onnx.load("a.onnx").graph.node)
    assert import_onnx("small.onnx").graph.spaces[0].size == (import_onnx("a.onnx").graph.spaces[0].size + 1) // 2


@pytest.mark.usefixtures("file")
def test_a_file_is_compressed_into_a_checkpoint_and_widened_into_a_file(capsys):
    assert run(["compress", "a.onnx", "--keep", "0.5", "-o", "small.pt", "--quiet"]) == 0
    assert gs.load("small.pt").lineage[0]["pass"] == "import"
    assert run(["widen", "a.onnx", "--by", "1.5x", "-o", "wide.onnx", "--json"]) == 0
    assert document(capsys)["onnx"]["deviations"]["batch 1"] < 1e-4
    assert gs.check_onnx(import_onnx("a.onnx").graph, "wide.onnx").holds


@pytest.mark.usefixtures("file")
def test_accuracy_comes_back_without_labels(capsys):
    command = ["compress", "a.onnx", "--keep", "0.5", "--data", "digits", "--recover", "mimic", "--epochs", "1"]
    assert run([*command, "-o", "small.onnx", "--json"]) == 0
    found = document(capsys)
    assert found["outcome"]["rows"]
    assert found["onnx"]["deviations"]["batch 8"] < 1e-4


@pytest.mark.usefixtures("file")
def test_a_file_is_factorized_into_a_file_and_back(capsys):
    assert run(["factorize", "a.onnx", "--rank", "0.5", "-o", "two.onnx", "--json"]) == 0
    found = document(capsys)
    assert found["onnx"]["deviations"]["batch 1"] < 1e-4
    layers = sorted(found["factorized"]["ranks"])
    names = {initializer.name for initializer in onnx.load("two.onnx").graph.initializer}
    assert {f"{layer}.{part}.weight" for layer in layers for part in ("reduce", "expand")} <= names
    assert run(["factorize", "two.onnx", "--back", "-o", "one.onnx", "--json"]) == 0
    assert sorted(document(capsys)["factorized"]["layers"]) == layers
    assert len(onnx.load("one.onnx").graph.node) == len(onnx.load("a.onnx").graph.node)


@pytest.mark.usefixtures("file")
def test_a_file_is_deepened_into_a_file():
    assert run(["deepen", "a.onnx", "--after", "auto", "-o", "deep.onnx", "--quiet"]) == 0
    assert gs.check_onnx(import_onnx("a.onnx").graph, "deep.onnx").holds


def test_a_checkpoint_is_not_factorized_into_a_file(file, capsys):
    assert run(["factorize", "a.pt", "--rank", "0.5", "-o", "two.onnx"]) == 2
    assert "only what was an .onnx file is written back into one" in capsys.readouterr().err
    assert not (file.parent / "two.onnx").exists()


def two_inputs(folder):
    """A file that reads an image and a state without a batch in front, and examples of both."""
    generator = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array(generator.normal(size=shape).astype(np.float32) / 4, name)

    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Gemm", ["state", "u"], ["s"], transB=1),
        helper.make_node("ReduceMean", ["s"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Add", ["h", "m"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"], transB=1),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6]),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 4]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "s")]
    tensors = [weight("w", 16, 6), weight("b", 16), weight("u", 16, 4), weight("v", 3, 16)]
    graph = helper.make_graph(nodes, "g", inputs, outputs[:1], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "two.onnx")
    (folder / "examples").mkdir()
    for number in range(12):
        arrays = {"x": generator.normal(size=(1, 6)), "state": generator.normal(size=(2, 4))}
        np.savez(folder / "examples" / f"{number}.npz", **arrays)


def test_a_file_with_several_inputs_is_recovered(here, capsys, fails):
    two_inputs(here)
    tokens = ["compress", "two.onnx", "--keep", "0.5", "-o", "small.onnx", "--device", "cpu", "--epochs", "2", "--json"]
    assert run([*tokens, "--calib", "examples"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["outcome"]["rows"]] == ["original", "cut", "fine-tuned"]
    assert "given inputs" in found["onnx"]["deviations"]
    (here / "images").mkdir()
    code, line = fails(*tokens, "--overwrite", "--calib", "images")
    assert (code, line) == (
        2, "images: has no .npz files; the network takes 2 inputs, give an array for each: x, state"
    )  # fmt: skip


@pytest.mark.usefixtures("file")
def test_names_in_the_table_can_be_typed(capsys, monkeypatch):
    """A narrow terminal breaks no name of a space."""
    monkeypatch.setenv("COLUMNS", "40")
    assert run(["inspect", "a.onnx"]) == 0
    shown = capsys.readouterr().out.splitlines()
    spaces = import_onnx("a.onnx").graph.spaces
    assert [space.name for space in spaces] == [
        line.split()[0] for line in shown if line.split()[:1] and line.split()[0] in {space.name for space in spaces}
    ]
    tokens = ["compress", "a.onnx", "-o", "small.onnx", "--quiet"]
    assert run([*tokens, *(token for space in spaces for token in ("--keep-space", f"{space.name}=0.5"))]) == 0
