"""Numbers and inputs are looked up where the import has recorded them: what no comparison could tell is written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_files import written

import graphsurgery as gs
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.deepen import deepen


def drawn(**shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def two_readers(path, *, shape="concat"):
    """Two products `[batch, 12]` that are reshaped to `[batch, 4, 3]` by one shape, and read apart."""
    sizes = {
        "concat": [helper.make_node("Concat", ["batch", "inner"], ["target"], "target", axis=0)],
        "product": [
            helper.make_node("Concat", ["batch", "ones"], ["rows"], "rows", axis=0),
            helper.make_node("Mul", ["rows", "all"], ["target"], "target"),
        ],
    }[shape]
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"], axis=0),
        *sizes,
        *(
            node
            for side in "ab"
            for node in (
                helper.make_node("Gemm", ["x", f"{side}.weight"], [f"{side}h"], f"{side}/in", transB=1),
                helper.make_node("Reshape", [f"{side}h", "target"], [f"{side}r"], f"{side}/reshape"),
                helper.make_node("MatMul", [f"{side}r", f"{side}.out"], [f"{side}y"], f"{side}/out"),
                helper.make_node("ReduceSum", [f"{side}y", "middle"], [f"{side}s"], f"{side}/sum", keepdims=0),
            )
        ),
        helper.make_node("Add", ["as", "bs"], ["y"], "sum"),
    ]
    ints = {"first": [0], "inner": [4, 3], "ones": [1, 1], "all": [1, 4, 3], "middle": [1]}
    constants = {name: np.array(value, np.int64) for name, value in ints.items()}
    constants |= drawn(
        **{f"{side}.{name}": size for side in "ab" for name, size in (("weight", (12, 5)), ("out", (3, 2)))}
    )
    read = {name for node in nodes for name in node.input}
    kept = {name: value for name, value in constants.items() if name in read}
    return written(path, nodes, {"x": ["b", 5]}, ["y"], kept, opset=13, ir=8)


def runs_at(path, *batches):
    return all(gs.check_onnx(import_onnx(path).graph, path, batches=[batch]).holds for batch in batches)


@pytest.mark.parametrize("shape", ["concat", "product"])
def test_readers_of_one_shape_may_become_unlike(tmp_path, shape):
    path = two_readers(tmp_path / "m.onnx", shape=shape)
    graph = import_onnx(path).graph
    first, second = (space.name for space in graph.spaces if space.size == 3)
    small = compress(graph, {first: [0, 2]})
    assert rewrite_onnx(path, small, tmp_path / "small.onnx").holds
    assert runs_at(tmp_path / "small.onnx", 1, 4)
    both = compress(graph, {first: [0, 2], second: [0, 1]})
    assert rewrite_onnx(path, both, tmp_path / "both.onnx").holds
    if shape == "concat":
        kinds = [node.op_type for node in onnx.load(tmp_path / "both.onnx").graph.node]
        assert kinds == [node.op_type for node in onnx.load(path).graph.node], "one number for both is put where it was"


def test_a_network_that_was_saved_is_written_back(tmp_path):
    path = two_readers(tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    small = compress(graph, {next(space.name for space in graph.spaces if space.size == 3): [0, 2]})
    gs.save(small.copy(), tmp_path / "small.pt")
    assert rewrite_onnx(path, gs.load(tmp_path / "small.pt"), tmp_path / "small.onnx").holds


def test_a_factor_of_the_batch_in_a_shape_follows(tmp_path):
    """Heads that stand in the batch axis: `[batch · 4, 3]`."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"], axis=0),
        helper.make_node("Mul", ["batch", "heads"], ["rows"], "rows"),
        helper.make_node("Concat", ["rows", "inner"], ["target"], axis=0),
        helper.make_node("Gemm", ["x", "in.weight"], ["h"], "in", transB=1),
        helper.make_node("Reshape", ["h", "target"], ["r"], "apart"),
        helper.make_node("Relu", ["r"], ["s"], "act"),
        helper.make_node("Concat", ["batch", "width"], ["back"], axis=0),
        helper.make_node("Reshape", ["s", "back"], ["t"], "together"),
        helper.make_node("Gemm", ["t", "out.weight"], ["y"], "out", transB=1),
    ]
    ints = {"first": [0], "heads": [4], "inner": [3], "width": [12]}
    constants = {name: np.array(value, np.int64) for name, value in ints.items()}
    constants |= drawn(**{"in.weight": (12, 5), "out.weight": (2, 12)})
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 5]}, ["y"], constants, opset=13, ir=8)
    graph = import_onnx(path).graph
    assert sorted(space.size for space in graph.spaces) == [3, 4]
    for space in graph.spaces:
        small = compress(graph, {space.name: [0, 2]})
        assert rewrite_onnx(path, small, tmp_path / "small.onnx").holds


READ_OFTEN = {
    "PRelu": lambda: ([helper.make_node("PRelu", ["r", "slope"], ["s"], "often")], {"slope": np.full((8, 4, 4), 0.2)}),
    "Swish": lambda: (
        [helper.make_node("Swish", ["r"], ["s"], "often", alpha=1.5)],
        {},
    ),
    "AveragePool": lambda: (
        [helper.make_node("AveragePool", ["r"], ["s"], "often", kernel_shape=[2, 2], pads=[0, 0, 1, 1])],
        {},
    ),
    "Mul": lambda: ([helper.make_node("Mul", ["r", "r"], ["s"], "often")], {}),
}


@pytest.mark.parametrize("name", READ_OFTEN)
def test_an_operator_that_is_several_nodes_reads_what_a_pass_puts_in_front(tmp_path, name):
    middle, more = READ_OFTEN[name]()
    nodes = [
        helper.make_node("Conv", ["x", "in.weight"], ["a"], "in"),
        helper.make_node("Relu", ["a"], ["r"], "act"),
        *middle,
        helper.make_node("Conv", ["s", "out.weight"], ["y"], "out"),
    ]
    constants = drawn(**{"in.weight": (8, 3, 1, 1), "out.weight": (4, 8, 1, 1)})
    constants |= {key: value.astype(np.float32) for key, value in more.items()}
    opset = 24 if name == "Swish" else 17
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 3, 4, 4]}, ["y"], constants, opset=opset, ir=10)
    graph = import_onnx(path).graph
    deep = deepen(graph, "in")
    assert rewrite_onnx(path, deep, tmp_path / "deep.onnx").holds
    assert gs.check_onnx(graph, tmp_path / "deep.onnx").holds
    assert any(node.name == "often" for node in onnx.load(tmp_path / "deep.onnx").graph.node)
