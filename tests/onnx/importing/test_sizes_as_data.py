"""Sizes that a file computes and reads as data: tensors in the network, with the values that the file has."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx_files import weight, written

from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen

node = helper.make_node
WHOLE = {"first": [0], "second": [1], "last": [2], "each": [1, 0, 1, 1, 0, 1]}
BEFORE = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("Shape", ["r"], ["shape"])]
AFTER = [node("MatMul", ["z", "v"], ["y"])]
SCORES = [node("MatMul", ["r", "v"], ["scores"])]


def entries(name, *, to=TensorProto.FLOAT):
    return [node("Gather", ["shape", name], ["chosen"]), node("Cast", ["chosen"], ["n"], to=to)]


READ = {
    "one, for each example": [
        node("Gather", ["shape", "second"], ["chosen"]),
        node("Gather", ["shape", "first"], ["examples"]),
        node("Expand", ["chosen", "examples"], ["lengths"]),
        node("ReverseSequence", ["r", "lengths"], ["z"], "turn", batch_axis=0, time_axis=1),
        *AFTER,
    ],
    "one": [*entries("second"), node("Div", ["r", "n"], ["z"]), *AFTER],
    "one, of channels": [*entries("last"), node("Div", ["r", "n"], ["z"]), *AFTER],
    "several": [*SCORES, *entries("each"), node("Div", ["scores", "n"], ["y"])],
    "several, as a matrix": [
        *SCORES, *entries("each"), node("Reshape", ["n", "rows"], ["m"]), node("Sub", ["scores", "m"], ["y"])
    ],
    "whole numbers": [
        *SCORES, *entries("second", to=TensorProto.INT64), node("ArgMax", ["scores"], ["top"], axis=2),
        node("Sub", ["n", "top"], ["left"]), node("Cast", ["left"], ["real"], to=TensorProto.FLOAT),
        node("Mul", ["scores", "real"], ["y"]),
    ],
}  # fmt: skip


def network(path, case):
    """`[batch, tokens, 5] → 8 → 6`, and what is made of its shape; the number of tokens is open."""
    nodes = [*BEFORE, *READ[case]]
    constants = {"w": weight(5, 8), "v": weight(8, 6, seed=1), "rows": np.array([1, 6])}
    constants |= {name: np.array(numbers) for name, numbers in WHOLE.items()}
    read = {name for each in nodes for name in each.input}
    kept = {name: array for name, array in constants.items() if name in read}
    return written(path, nodes, {"x": ["b", "t", 5]}, ["y"], kept)


def run(path, x):
    return onnxruntime.InferenceSession(path).run(["y"], {"x": x})[0]


@pytest.mark.parametrize("case", READ)
def test_it_is_what_onnx_runtime_gives_of_any_size(tmp_path, case):
    path = network(tmp_path / "m.onnx", case)
    module = import_onnx(path, shape=[4, 5]).graph.module
    for sizes in ((1, 4), (3, 4), (2, 7)):
        x = np.random.default_rng(0).normal(size=(*sizes, 5)).astype(np.float32)
        np.testing.assert_allclose(module(torch.tensor(x)).detach().numpy(), run(path, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", READ)
def test_it_keeps_its_values_in_an_edited_file(tmp_path, case):
    path = network(tmp_path / "m.onnx", case)
    graph = import_onnx(path, shape=[4, 5]).graph
    if graph.spaces:
        (space,) = graph.spaces
        assert space.size == 8
        assert rewrite_onnx(path, compress(graph, {space.name: [0, 3, 5]}), tmp_path / "s.onnx").holds
        assert rewrite_onnx(path, widen(graph, 1.5), tmp_path / "w.onnx").holds
        x = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
        np.testing.assert_allclose(run(tmp_path / "w.onnx", x), run(path, x), rtol=1e-4, atol=1e-5)
    else:
        assert case == "one, for each example"
