"""Branches and loops are kept whole, with what the graphs inside them read from outside; the rest is edited."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import weight, written

from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.factorize import factorize
from graphsurgery.passes.widen import widen

FLOAT = TensorProto.FLOAT


def value(name, kind=FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def branch(kind, output):
    """A graph that reads `given` and `half` from outside, the first under a second name."""
    nodes = [
        helper.make_node("Identity", ["given"], [f"{output}_same"]),
        helper.make_node(kind, [f"{output}_same", "half"], [output]),
    ]
    return helper.make_graph(nodes, kind, [], [value(output)])


def choice():
    """`x → two layers → given`, and one of two branches by the sign of its mean."""
    return [
        helper.make_node("ReduceMean", ["given"], ["mean"], "mean", keepdims=0),
        helper.make_node("Greater", ["mean", "zero"], ["condition"], "greater"),
        helper.make_node(
            "If", ["condition"], ["y"], "choose", then_branch=branch("Mul", "then"), else_branch=branch("Sub", "else")
        ),
    ]


def loop():
    """The same, with `half` added three times."""
    body = helper.make_graph(
        [helper.make_node("Add", ["old", "half"], ["new"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("old")],
        [value("on", TensorProto.BOOL, []), value("new")],
    )
    return [helper.make_node("Loop", ["three", "", "given"], ["y"], "loop", body=body)]


def network(path, nodes):
    first = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["a"], "act"),
        helper.make_node("MatMul", ["a", "v"], ["inner"], "second"),
        helper.make_node("Identity", ["inner"], ["given"], "same"),
    ]
    constants = {
        "w": weight(5, 8),
        "v": weight(8, 3, seed=1),
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "three": np.int64(3),
    }
    return written(path, [*first, *nodes], {"x": ["batch", 5]}, ["y"], constants)


@pytest.mark.parametrize("kind", [choice, loop])
def test_what_stands_in_front_is_edited(tmp_path, kind):
    path, out = network(tmp_path / "m.onnx", kind()), tmp_path / "out.onnx"
    graph = import_onnx(path).graph
    assert [space.size for space in graph.spaces] == [8]
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    (before,) = run(path, x)
    for edit, same in ((compress(graph, 0.5), False), (widen(graph, 2), True), (factorize(graph, rank=0.4), False)):
        rewrite_onnx(path, edit, out)
        (after,) = run(out, x)
        assert np.allclose(after, before, atol=1e-5) == same
        names = [node.name for node in onnx.load(out).graph.node]
        assert kind()[-1].name in names


def run(path, x):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})


def test_a_value_that_only_a_branch_reads_stays(tmp_path):
    """`extra` is a sum of what is cut; no node of the main graph reads it."""
    nodes = [helper.make_node("ReduceSum", ["a", "axes"], ["half"], "extra", keepdims=1), *choice()]
    path = network(tmp_path / "m.onnx", nodes)
    model = onnx.load(path)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "half"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(np.array([1]), "axes")])
    onnx.save(model, path)
    graph = import_onnx(path).graph
    rewrite_onnx(path, compress(graph, 0.5), tmp_path / "out.onnx")
    assert "extra" in [node.name for node in onnx.load(tmp_path / "out.onnx").graph.node]
