"""What is drawn for inputs that are indices and sizes: nothing that an import computes is larger than it has to be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import weight, written

from graphsurgery.checkpoint import load, save
from graphsurgery.errors import TraceError
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.exporting.probing import feeds
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime import asked_sizes
from graphsurgery.onnx.runtime.index_ranges import ranges_of
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator
from graphsurgery.passes.compress import compress

INT = -1
"""The mark of integers in `written`."""
VALUES = {"pair": np.array([0, 1], np.float32), "block": np.array([1, 1], np.int64), "flag": np.array(True)}


def values(kinds):
    shapes = {TensorProto.INT64: [], TensorProto.BOOL: []}
    return [helper.make_tensor_value_info(name, kind, shapes.get(kind)) for name, kind in kinds.items()]


def counting():
    """A graph that gives `[3, 4]` in each of the steps of its loop."""
    inputs = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "old": TensorProto.FLOAT}
    outputs = {"on": TensorProto.BOOL, "new": TensorProto.FLOAT, "each": TensorProto.FLOAT}
    nodes = [("Identity", "go", "on"), ("Neg", "old", "new"), ("Abs", "old", "each")]
    made = [helper.make_node(kind, [given], [output]) for kind, given, output in nodes]
    return helper.make_graph(made, "body", values(inputs), values(outputs))


KEPT = {
    "a shape": ([helper.make_node("CenterCropPad", ["x", "n"], ["y"])], [5, 4, 3], [3]),
    "a depth": ([helper.make_node("OneHot", ["ids", "n", "pair"], ["y"])], [3, 4], [1]),
    "a window": ([helper.make_node("HannWindow", ["n"], ["y"])], [3, 4], []),
    "steps": ([helper.make_node("Loop", ["n", "flag", "x"], ["last", "y"], body=counting())], [3, 4], []),
    "pixels": ([helper.make_node("Col2Im", ["x", "n", "block"], ["y"])], [3, 2, 1], [2]),
    "a place for each": (
        [helper.make_node("CenterCropPad", ["x", "wide"], ["y"]), helper.make_node("Mul", ["n", "n"], ["wide"])][::-1],
        [5, 4, 3],
        [3],
    ),
}


@pytest.fixture
def largest(monkeypatch):
    """How many numbers the largest result of operators that are kept whole had."""
    found, run = [0], OnnxOperator._run

    def noted(self, values):
        results = run(self, values)
        found[0] = max(found[0], *(array.size for array in results))
        return results

    monkeypatch.setattr(OnnxOperator, "_run", noted)
    return found


@pytest.mark.parametrize("name", KEPT)
def test_a_size_stays_small(tmp_path, largest, name):
    nodes, shape, sizes = KEPT[name]
    x = [helper.make_node("ArgMax", ["x"], ["ids"], axis=1, keepdims=0), helper.make_node("Abs", ["x"], ["z"])]
    path = written(tmp_path / "m.onnx", [*x, *nodes], {"x": shape, "n": (INT, sizes)}, ["y", "z"], VALUES)
    graph = import_onnx(path).graph
    assert 0 < largest[0] <= 4 * np.prod(shape)
    assert (graph.inputs[1].low, graph.inputs[1].high) in ((1, 2), (1, 1), (0, 1), (0, 0))


def asking(kind, path):
    """A file in which an operator is asked for a size by an input."""
    many = {"Tile": 3, "Expand": 3, "Reshape": 3, "Resize": 3, "Pad": 6, "Range": (), "ConstantOfShape": 2}
    shape = many.get(kind, 1)
    given = {"Resize": ["x", "", "", "n"], "ConstantOfShape": ["n"], "Range": ["zero", "n", "one"]}
    node = helper.make_node(kind, given.get(kind, ["x", "n"]), ["y", "i"] if kind == "TopK" else ["y"])
    size = (INT, [] if shape == () else [shape])
    nodes = [helper.make_node("Abs", ["x"], ["z"]), node]
    return written(path, nodes, {"x": [5, 4, 3], "n": size}, ["y", "z"], {"zero": np.array(0), "one": np.array(1)})


@pytest.mark.parametrize("kind", ["Tile", "Expand", "Reshape", "Resize", "Pad", "Range", "ConstantOfShape", "TopK"])
def test_what_torch_has_is_refused_before_anything_is_drawn(tmp_path, largest, kind):
    with pytest.raises(TraceError, match=rf"y \({kind}\): n, a size or an option, is computed from data; export it"):
        import_onnx(asking(kind, tmp_path / "m.onnx"))
    assert largest == [0]


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.FLOAT])
def test_indices_beside_a_size_are_drawn_widely(tmp_path, kind):
    nodes = [helper.make_node("OneHot", ["ids", "n", "pair"], ["hot"]), helper.make_node("Abs", ["x"], ["z"])]
    path = written(tmp_path / "m.onnx", nodes, {"ids": (INT, [3, 4]), "n": [1], "x": [2, 3]}, ["hot", "z"], VALUES)
    model = onnx.load(path)
    model.graph.input[1].type.tensor_type.elem_type = kind
    onnx.save(model, path)
    graph = import_onnx(path).graph
    ranges = ranges_of(graph, 1)
    assert ranges.sized == {1}
    assert (ranges.indices, ranges.sizes) == ((0, 999), (1, 2))
    for feed in feeds(graph, (1,)):
        assert set(feed.tensors[1].tolist()) <= {1, 2}
    scaled = [feed.tensors[2].abs().max() for feed in feeds(graph, (1,)) if feed.label == "noise from 0 to 255"]
    assert max(scaled) > 100


@pytest.mark.parametrize("grows", [True, False])
def test_an_operator_of_which_nothing_is_known_is_seen_to_grow(tmp_path, monkeypatch, largest, grows):
    monkeypatch.delitem(asked_sizes._ASKED, "com.microsoft.Range")
    node = helper.make_node("Range", ["zero", "n"], ["y"], domain="com.microsoft")
    if not grows:
        node = helper.make_node("ExpandDims", ["n", "zero"], ["y"], domain="com.microsoft")
    nodes = [node, helper.make_node("Abs", ["x"], ["z"])]
    zero = {"zero": np.array(0, np.int64 if grows else np.int32)}
    path = written(tmp_path / "m.onnx", nodes, {"x": [5, 4], "n": (INT, [])}, ["y", "z"], zero)
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, path)
    graph = import_onnx(path, check=False).graph
    assert (graph.inputs[1].low, graph.inputs[1].high) == ((1, 2) if grows else (0, 999))
    assert largest[0] <= 2


def test_what_an_embedding_reads_is_an_index(tmp_path):
    """Ids of a table beside a size keep the range that the table has."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Abs", ["rows"], ["y"]),
        helper.make_node("CenterCropPad", ["x", "n"], ["z"]),
    ]
    constants = {"table": np.ones((25, 2), np.float32)}
    path = written(
        tmp_path / "m.onnx", nodes, {"ids": (INT, [2, 6]), "x": [5, 4, 3], "n": (INT, [3])}, ["y", "z"], constants
    )
    graph = import_onnx(path).graph
    assert [(spec.low, spec.high) for spec in graph.inputs] == [(0, 9), (0, 0), (1, 2)]


def test_floating_numbers_that_become_indices_are_drawn_as_such(tmp_path):
    """A mask of the numbers themselves beside the look-up, as of networks that were exported from TensorFlow."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "whole"], ["rows"]),
        helper.make_node("Equal", ["ids", "none"], ["empty"]),
        helper.make_node("Unsqueeze", ["empty", "last"], ["mask"]),
        helper.make_node("Where", ["mask", "zero", "rows"], ["kept"]),
        helper.make_node("MatMul", ["kept", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    constants = {"table": weight(25, 5), "w": weight(5, 8, seed=1), "v": weight(8, 3, seed=2)}
    constants |= {"none": np.float32(0), "zero": np.float32(0), "last": np.array([2])}
    path = written(tmp_path / "m.onnx", nodes, {"ids": ["b", 6]}, ["y"], constants)
    graph = import_onnx(path).graph
    assert [(spec.low, spec.high, spec.is_noise) for spec in graph.inputs] == [(0, 9, False)]
    assert ranges_of(graph, 1).cast == {0}
    for feed in feeds(graph, (1,)):
        assert set(feed.tensors[0].flatten().tolist()) <= set(range(10))
    check = rewrite_onnx(path, compress(graph, 0.5), tmp_path / "s.onnx")
    assert check.holds
    assert check.untested == {}
    save(graph, tmp_path / "m.pt")
    assert load(tmp_path / "m.pt").inputs == graph.inputs
