"""Files in half and double precision: read in float32, edited, and written back in the types that they had."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import built, exported, weight

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.factorize import factorize
from graphsurgery.passes.widen import widen

KINDS = {
    "half": (TensorProto.FLOAT16, np.float16, 5e-3),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16, None),
    "double": (TensorProto.DOUBLE, np.float64, None),
}
EDITS = {
    "compress": lambda graph: compress(graph, 0.5),
    "widen": lambda graph: widen(graph, 1.5),
    "factorize": lambda graph: factorize(graph, rank=0.5),
}


def stored_in(model, kind, dtype):
    """The same model with all of its floating numbers in another type."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(dtype)))
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    return model


def floating(model):
    """The types of all floating weights and of what goes in and out."""
    known = {TensorProto.FLOAT, *(kind for kind, _, _ in KINDS.values())}
    weights = {tensor.data_type for tensor in model.graph.initializer}
    held = {a.t.data_type for node in model.graph.node for a in node.attribute if a.HasField("t")}
    ends = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    return (weights | held | ends) & known


@pytest.mark.parametrize(
    ("word", "name", "edits"),
    [
        ("half", "resnet18", ("compress", "widen", "factorize")),
        ("half", "vit", ("compress",)),
        ("bfloat16", "resnet18", ("compress",)),
        ("double", "resnet18", ("widen",)),
    ],
)
def test_a_file_keeps_its_precision(tmp_path, word, name, edits):
    kind, dtype, allowed = KINDS[word]
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    model = stored_in(onnx.load_from_string(exported(name, "free 17")), kind, dtype)
    if word == "bfloat16":  # which convolutions may be in from here on
        model.opset_import[0].version = 22
    onnx.save(model, path)
    graph = import_onnx(path).graph
    assert {p.dtype for p in graph.module.parameters()} == {torch.float32}
    for edit in edits:
        small = EDITS[edit](graph)
        rewrite_onnx(path, small, out)
        written = onnx.load(out)
        assert floating(written) == {kind}
        if word != "half":  # ONNX Runtime has no convolutions in the others
            continue
        x = small.example_inputs(3)[0]
        options = onnxruntime.SessionOptions()  # the optimisations of ONNX Runtime 1.32 crash on attention in half
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(out, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy().astype(dtype)})
        with torch.no_grad():
            expected = small.module(x).numpy()
        assert np.abs(found.astype(np.float64) - expected).max() < allowed * np.abs(expected).max()


def test_weights_of_several_precisions_keep_each_its_own(tmp_path):
    """Half where a cast makes them floats, float beside; the large ones are mapped."""
    half = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float16)
    single = np.random.default_rng(1).standard_normal((48, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["w"], ["c"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "c"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["a"], "act"),
        helper.make_node("MatMul", ["a", "v"], ["y"], "second"),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 64])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(array, name) for name, array in (("w", half), ("v", single))]
    graph = helper.make_graph(nodes, "g", [value], [result], weights)
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    small = compress(import_onnx(path).graph, 0.5)
    assert [space.size for space in small.spaces] == [24]
    rewrite_onnx(path, small, out)
    kinds = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in onnx.load(out).graph.initializer}
    assert kinds == {"v": (TensorProto.FLOAT, [24, 5]), "c": (TensorProto.FLOAT, [64, 24])}


def test_what_onnx_runtime_does_not_open_is_refused(tmp_path):
    """Half and float meet without a cast."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weight = numpy_helper.from_array(np.ones(4, np.float16), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [result], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(gs.CheckpointError, match=r"ONNX Runtime does not open it: .*Type"):
        import_onnx(tmp_path / "m.onnx")


def test_bytes_are_counted_in_float32_and_that_is_said(tmp_path, monkeypatch, capsys):
    """A number of bytes would cut twice as much as was asked for."""
    monkeypatch.chdir(tmp_path)
    nodes = [("Conv", ["x", weight(8, 3, 3, 3)], "h", {}), ("Conv", ["h", weight(2, 8, 1, 1)], "out", {})]
    built("single.onnx", {"x": (np.float32, ["batch", 3, 8, 8])}, nodes)
    onnx.save(stored_in(onnx.load("single.onnx"), TensorProto.FLOAT16, np.float16), "half.onnx")
    assert run(["inspect", "half.onnx"]) == 0
    assert "stored     most numbers in float16; its bytes are counted in float32" in capsys.readouterr().out
    assert run(["inspect", "single.onnx"]) == 0
    assert "stored" not in capsys.readouterr().out
    for command in ("compress", "factorize"):
        assert run([command, "half.onnx", "--target", "size=700B", "-o", "small.onnx"]) == 2
        assert "bytes are counted in float32, and the file stores most numbers in float16" in capsys.readouterr().err
    assert run(["compress", "half.onnx", "--target", "size=700B", "-o", "small.pt"]) == 0
    assert run(["compress", "single.onnx", "--target", "size=700B", "-o", "small.onnx"]) == 0
    assert run(["compress", "half.onnx", "--target", "size=0.7x", "-o", "small.onnx", "--overwrite"]) == 0
