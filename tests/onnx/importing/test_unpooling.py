"""What a pool has left goes back to its places: as torch does where the places are those of a pool, else kept whole."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_files import weight, written

from graphsurgery.errors import SurgeryError
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen

POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}


def network(path, *, pool=POOL, back=POOL, shape=None, size=8, outputs=("y",), more=()):
    """`[batch, 3, size, size] → 6 channels → pooled → 6 → back to its places → 4`."""
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["a"], "first", kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"], "act"),
        helper.make_node("MaxPool", ["r"], ["p", "places"], "pool", **pool),
        helper.make_node("Sigmoid", ["p"], ["m"], "middle"),
        helper.make_node("MaxUnpool", ["m", "places", *(["shape"] if shape else [])], ["u"], "unpool", **back),
        helper.make_node("Conv", ["u", "last.weight"], ["y"], "last", kernel_shape=[1, 1]),
        *more,
    ]
    constants = {"first.weight": weight(6, 3, 3, 3), "last.weight": weight(4, 6, 1, 1)}
    constants |= {"shape": np.array(shape)} if shape else {}
    path = written(path, nodes, {"x": ["batch", 3, size, size]}, outputs, constants)
    model = onnx.load(path)
    for value in model.graph.output:
        if value.name == "places":
            value.type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, path)
    return path


def kept(graph):
    return [part.reason for part in graph.module.modules() if isinstance(part, OnnxOperator)]


def spaces(graph):
    return {space.size for space in graph.spaces}


@pytest.mark.parametrize("shape", [None, [1, 6, 8, 8]])
def test_it_is_what_torch_does_and_channels_are_cut(tmp_path, shape):
    path = network(tmp_path / "m.onnx", shape=shape)
    if shape:
        model = onnx.load(path)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(model, path)
    graph = import_onnx(path).graph
    assert not kept(graph)
    assert spaces(graph) == {6}
    small = compress(graph, 0.5)
    assert rewrite_onnx(path, small, tmp_path / "s.onnx").holds
    assert [node.op_type for node in onnx.load(tmp_path / "s.onnx").graph.node] == [
        "Conv", "Relu", "MaxPool", "Sigmoid", "MaxUnpool", "Conv",
    ]  # fmt: skip
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    wide = widen(graph, to={graph.spaces[0].name: 9})
    assert rewrite_onnx(path, wide, tmp_path / "w.onnx").holds
    before, after = (onnxruntime.InferenceSession(p).run(None, {"x": x})[0] for p in (path, tmp_path / "w.onnx"))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_windows_that_overlap_and_are_padded(tmp_path):
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    assert not kept(import_onnx(network(tmp_path / "m.onnx", pool=window, back=window, size=9)).graph)


OTHERWISE = {
    "another window": {"back": {"kernel_shape": [2, 2], "strides": [3, 3]}},
    "places by columns": {"pool": {**POOL, "storage_order": 1}},
    "places that the file gives": {"outputs": ("y", "places")},
    "places that are counted": {"more": [helper.make_node("Cast", ["places"], ["c"], to=1)], "outputs": ("y", "c")},
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_places_are_those_of_the_file(tmp_path, name):
    graph = import_onnx(network(tmp_path / "m.onnx", **OTHERWISE[name])).graph
    assert [reason.split(" ")[0] for reason in kept(graph)] == ["pool", "unpool"]


def test_places_of_another_shape_are_what_onnx_runtime_makes_of_them(tmp_path):
    """Which takes them for those of the shape that it fills."""
    path = network(tmp_path / "m.onnx", size=9)
    with pytest.raises(SurgeryError, match=r"m\.onnx: .*MaxUnpool node.*Index value out of bounds"):
        import_onnx(path)


def test_places_that_nobody_reads(tmp_path):
    nodes = [helper.make_node("MaxPool", ["x"], ["y", "places"], **POOL)]
    assert not kept(import_onnx(written(tmp_path / "m.onnx", nodes, {"x": ["batch", 3, 4, 4]}, ["y"])).graph)
