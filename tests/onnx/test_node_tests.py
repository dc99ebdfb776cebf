"""A share of the standard's own node tests, and what they do not have: right or refused, never wrong."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from onnx_files import written

from graphsurgery.errors import CheckFailedError, TraceError, UnsupportedError
from graphsurgery.onnx.exporting import check_onnx
from graphsurgery.onnx.importing import import_onnx, operators

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPERATORS = (
    "Attention", "Dropout", "GatherElements", "Gemm", "LpNormalization", "PRelu", "RMSNormalization", "Resize",
    "SpaceToDepth", "Split", "TopK",
)  # fmt: skip


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(_BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("onnx_nodes", _BENCHMARKS / "onnx_nodes.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(_BENCHMARKS))


@pytest.fixture(scope="module")
def found(benchmark, tmp_path_factory):
    """What became of one test in five of these operators."""
    folder = tmp_path_factory.mktemp("nodes")
    chosen = benchmark.cases(OPERATORS)[::5]
    return [each for case in chosen for each in benchmark.examine(case, folder)]


@pytest.mark.filterwarnings("ignore")
def test_none_is_wrong(found):
    assert not [each for each in found if each.verdict in ("wrong", "crashed")]
    assert {each.operator for each in found if each.verdict == "right"} >= {"Gemm", "GatherElements", "TopK"}
    assert all(each.reason for each in found if each.verdict == "refused")


@pytest.mark.filterwarnings("ignore")
def test_the_table_counts_all(benchmark, found):
    rows = [line.split("|") for line in benchmark.table(found)[2:]]
    assert sum(int(cell) for row in rows for cell in row[2:6]) == len(found)


SLOPES = {
    "of the last axis": ((4,), 3),
    "of the last axis of four": ((4,), 4),
    "of channels, rank 3": ((3, 1), 3),
    "of channels, rank 4": ((3, 1, 1), 4),
    "of channels and a batch of one": ((1, 3, 1), 3),
    "of rank 2": ((3,), 2),
    "one": ((1,), 3),
    "a number": ((), 3),
    "of channels and pixels": ((3, 4), 3),
}


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_broadcast_from_the_last_axis(tmp_path, name):
    shape, rank = SLOPES[name]
    inputs = {"x": ["b", 3, 4, 4][:rank]}
    slope = np.random.default_rng(0).uniform(0.1, 0.9, shape).astype(np.float32)
    nodes = [helper.make_node("PRelu", ["x", "slope"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, inputs, ["y"], {"slope": slope})
    assert check_onnx(import_onnx(path, check=False).graph, path).holds


@pytest.mark.parametrize(("shape", "width"), [((3,), 3), ((1, 3), 3), ((1, 1), 3), ((1,), 3), ((), 3), ((1, 1), 1)])
def test_what_gemm_adds(tmp_path, shape, width):
    """`C` is a bias for each column, or one number."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(4, width)).astype(np.float32),
        "c": rng.normal(size=shape).astype(np.float32),
    }
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, {"x": [2, 4]}, ["y"], weights)
    imported = import_onnx(path, check=False)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    expected = x @ torch.tensor(weights["w"]) + torch.tensor(weights["c"])
    torch.testing.assert_close(imported.graph.module(x), expected)


def test_a_bias_for_each_row_is_none_for_each_column(tmp_path):
    """`C [3, 1]` belongs to a batch of three, and the batch is free in a network."""
    weights = {"w": np.ones((4, 3), np.float32), "c": np.arange(3, dtype=np.float32)[:, None]}
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, {"x": [3, 4]}, ["y"], weights)
    with pytest.raises(TraceError, match=r"y \(Gemm\): .*broadcast"):
        import_onnx(path)


def test_a_bias_with_more_axes_than_the_product(tmp_path):
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in {"w": (4, 3), "c": (1, 1, 3)}.items()}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "c"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"], weights)
    found = import_onnx(path, check=False).graph.module(torch.ones(2, 4))
    assert found.shape == (1, 2, 3)


def test_an_option_that_no_rule_reads_keeps_the_operator_whole(tmp_path, monkeypatch):
    rule = operators.OPERATORS["LeakyRelu"]
    monkeypatch.setitem(operators.OPERATORS, "LeakyRelu", lambda _, x: torch.nn.functional.leaky_relu(x))
    nodes = [helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.3)]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"])
    graph = import_onnx(path).graph
    assert any(type(part).__name__ == "OnnxOperator" for part in graph.module.modules())
    monkeypatch.setitem(operators.OPERATORS, "LeakyRelu", rule)
    assert not any(type(part).__name__ == "OnnxOperator" for part in import_onnx(path).graph.module.modules())


@pytest.mark.parametrize("past", [True, False])
def test_an_attention_with_more_than_torch_has_is_kept_whole(tmp_path, past):
    """With a mask, or keys and values of before, and causal besides."""
    given = ["q", "k", "v", "mask", *(["k", "v"] if past else [])]
    outputs = ["y", *(["keys", "values"] if past else [])]
    mask = {"mask": np.zeros((4, 8 if past else 4), np.float32)}
    node = helper.make_node("Attention", given, outputs, is_causal=1)
    path = written(tmp_path / "m.onnx", [node], {name: ["b", 2, 4, 8] for name in "qkv"}, outputs, mask, 23)
    (kept,) = [part for part in import_onnx(path).graph.module.modules() if type(part).__name__ == "OnnxOperator"]
    assert "causal besides" in kept.reason


@pytest.mark.parametrize("kind", ["int", "float", "flag"])
def test_a_number_that_becomes_what_a_tensor_is(tmp_path, kind):
    """As functions of the standard do that are written out."""
    like = {"int": "places", "float": "x", "flag": "flags"}[kind]
    nodes = [
        helper.make_node("ArgMax", ["x"], ["places"], axis=1, keepdims=1),
        helper.make_node("Greater", ["x", "number"], ["flags"]),
        helper.make_node("CastLike", ["number", like], ["same"]),
        helper.make_node("Cast", ["same"], ["back"], to=1),
        helper.make_node("Add", ["x", "back"], ["y"]),
    ]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"], {"number": np.array(2.5, np.float32)})
    x = torch.zeros(3, 4)
    found = import_onnx(path).graph.module(x)
    torch.testing.assert_close(found, x + {"int": 2.0, "float": 2.5, "flag": 1.0}[kind])


def test_a_rule_that_is_wrong_is_found_at_import(tmp_path, monkeypatch):
    monkeypatch.setitem(operators.OPERATORS, "Sqrt", lambda _, x: x.abs().sqrt() + 0.01)
    nodes = [
        helper.make_node("Abs", ["x"], ["a"], name="first"),
        helper.make_node("Sqrt", ["a"], ["b"], name="second"),
        helper.make_node("Neg", ["b"], ["y"], name="third"),
    ]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"])
    expected = (
        r"m\.onnx: what was read does not compute what the file does: .* first node that differs is second \(Sqrt"
    )
    with pytest.raises(CheckFailedError, match=expected):
        import_onnx(path)


def test_a_dropout_that_acts_is_refused(tmp_path):
    """What it gives is by chance; one that is told to evaluate does nothing."""
    for mode, acts in ((True, True), (False, False)):
        x = helper.make_tensor_value_info("x", 1, ["batch", 4])
        y = helper.make_tensor_value_info("y", 1, ["batch", 4])
        node = helper.make_node("Dropout", ["x", "", "mode"], ["y"], "drop")
        graph = helper.make_graph([node], "g", [x], [y], [helper.make_tensor("mode", 9, [], [mode])])
        path = tmp_path / "m.onnx"
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path.write_bytes(model.SerializeToString())
        if acts:
            with pytest.raises(UnsupportedError, match=r"drop is a dropout that acts as in training; export it to ev"):
                import_onnx(path)
        else:
            import_onnx(path)


def test_a_scan_of_an_old_opset_is_refused(tmp_path, benchmark):
    case = next(case for case in benchmark.cases(("Scan",)) if case.name == "test_scan_sum")
    (tmp_path / "m.onnx").write_bytes(case.model.SerializeToString())
    with pytest.raises(UnsupportedError, match=r"has a Scan of opset 8, which is not converted; export it again"):
        import_onnx(tmp_path / "m.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("becomes", "reason"), [("dies", "ended with 3"), ("sleeps", "took more than 0.1 seconds")])
def test_a_test_that_ends_the_process_or_takes_too_long_has_crashed(benchmark, monkeypatch, becomes, reason):
    case = benchmark.cases(("Relu",))[0]
    ends = {"dies": lambda *_: os._exit(3), "sleeps": lambda *_: time.sleep(60)}[becomes]
    monkeypatch.setattr(benchmark, "examine", ends)
    monkeypatch.setattr(benchmark, "_MOST_SECONDS", 0.1 if becomes == "sleeps" else 60)
    assert benchmark.examine_apart(case) == [benchmark.Found("test_relu", "Relu", "crashed", reason)]
