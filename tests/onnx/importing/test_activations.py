"""Activations and pools with options of their own, and what ONNX Runtime has fused: translated, not kept whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx_files import built, weight

from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen

POOL = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}
OURS = "com.microsoft."


def bias(size=6, seed=7):
    return weight(size, seed=seed)


ON_TOKENS = {
    "ThresholdedRelu": ("ThresholdedRelu", ["hidden"], {"alpha": 0.3}),
    "Shrink": ("Shrink", ["hidden"], {"lambd": 0.4, "bias": 0.1}),
    "Hardmax": ("Hardmax", ["hidden"], {}),
    "ReduceProd": ("ReduceProd", ["hidden"], {"axes": [1], "keepdims": 1}),
    "ReduceLogSumExp": ("ReduceLogSumExp", ["hidden"], {"axes": [1], "keepdims": 1}),
    "QuickGelu": (f"{OURS}QuickGelu", ["hidden"], {"alpha": 1.5}),
    "Gelu": (f"{OURS}Gelu", ["hidden"], {}),
    "BiasGelu": (f"{OURS}BiasGelu", ["hidden", bias()], {}),
    "FastGelu": (f"{OURS}FastGelu", ["hidden", bias()], {}),
    "SkipLayerNormalization": (
        f"{OURS}SkipLayerNormalization", ["hidden", "hidden", bias(), bias(seed=8), bias(seed=9)], {}
    ),
    "SkipSimplifiedLayerNormalization": (
        f"{OURS}SkipSimplifiedLayerNormalization", ["hidden", "hidden", bias()], {"epsilon": 1e-3}
    ),
    "SimplifiedLayerNormalization": ("SimplifiedLayerNormalization", ["hidden", bias()], {"axis": -1, "epsilon": 1e-3}),
    "FusedMatMul": (f"{OURS}FusedMatMul", ["hidden", weight(6, 6, seed=3)], {"transB": 1, "alpha": 0.5}),
    "MultiHeadAttention": (f"{OURS}MultiHeadAttention", ["hidden", "hidden", "hidden", bias(18)], {"num_heads": 2}),
}  # fmt: skip


def edited(tmp_path, path, *, cut=True):
    """Read, cut and widened, each compared in ONNX Runtime by the way."""
    graph = import_onnx(path).graph
    assert not any(isinstance(layer, OnnxOperator) for layer in graph.module.modules())
    assert graph.spaces
    if cut:
        rewrite_onnx(path, compress(graph, 0.5), tmp_path / "small.onnx")
        rewrite_onnx(path, widen(graph, 2), tmp_path / "wide.onnx")
    return graph


@pytest.mark.parametrize("name", ON_TOKENS)
def test_on_tokens(tmp_path, name):
    """`x [batch, 4, 5] → product → what is tested → product`."""
    kind, read, attributes = ON_TOKENS[name]
    nodes = [
        ("MatMul", ["x", weight(5, 5)], "stem", {}),
        ("Relu", ["stem"], "start", {}),
        ("MatMul", ["start", weight(5, 6)], "hidden", {}),
        (kind, read, "found", attributes),
        ("MatMul", ["found", weight(6, 3, seed=1)], "out", {}),
    ]
    path = built(tmp_path / "m.onnx", {"x": (np.float32, ["batch", 4, 5])}, nodes)
    edited(tmp_path, path)


ON_IMAGES = {
    "uneven": ("AveragePool", POOL),
    "uneven, rounded up": ("AveragePool", {**POOL, "ceil_mode": 1, "pads": [0, 1, 1, 1]}),
    "uneven, counted": ("AveragePool", {**POOL, "count_include_pad": 1}),
    "same": ("AveragePool", {"kernel_shape": [4, 4], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "global": ("GlobalLpPool", {"p": 3}),
}


@pytest.mark.parametrize("name", ON_IMAGES)
def test_on_images(tmp_path, name):
    """`x [batch, 3, 9, 9] → convolution → pool → convolution`."""
    kind, attributes = ON_IMAGES[name]
    nodes = [
        ("Conv", ["x", weight(6, 3, 3, 3)], "hidden", {}),
        (kind, ["hidden"], "found", attributes),
        ("Conv", ["found", weight(4, 6, 1, 1, seed=1)], "out", {}),
    ]
    path = built(tmp_path / "m.onnx", {"x": (np.float32, ["batch", 3, 9, 9])}, nodes, opset=19)
    graph = edited(tmp_path, path)
    assert [space.size for space in graph.spaces] == [6]


def test_a_sum_that_a_norm_gives_too_is_read_on(tmp_path):
    nodes = [
        ("MatMul", ["x", weight(5, 6)], "hidden", {}),
        (f"{OURS}SkipLayerNormalization", ["hidden", "hidden", bias()], ["normed", "", "", "total"], {}),
        ("Add", ["normed", "total"], "sum", {}),
        ("MatMul", ["sum", weight(6, 3, seed=1)], "out", {}),
    ]
    edited(tmp_path, built(tmp_path / "m.onnx", {"x": (np.float32, ["batch", 4, 5])}, nodes))


def test_indices_may_count_from_the_end_of_an_inner_axis(tmp_path):
    nodes = [
        ("MatMul", ["x", weight(5, 6)], "hidden", {}),
        ("Gather", ["hidden", np.array([-1, 0, -2])], "found", {"axis": 1}),
        ("MatMul", ["found", weight(6, 3, seed=1)], "out", {}),
    ]
    graph = edited(tmp_path, built(tmp_path / "m.onnx", {"x": (np.float32, ["batch", 4, 5])}, nodes))
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rolled = graph.module(x.roll(1, 1))[:, 1]  # other kernels add in another order where a row lies elsewhere
    torch.testing.assert_close(graph.module(x)[:, 0], rolled)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_a_shape_behind_a_cast_is_written_back(tmp_path, kind):
    """`Concat → Cast → Reshape`, as TensorFlow's exporters write it: heads of 2 from 8 channels."""
    code = {np.int32: 6, np.int64: 7}[kind]
    nodes = [
        ("MatMul", ["x", weight(5, 8)], "hidden", {}),
        ("Shape", ["x"], "shape", {}),
        ("Cast", ["shape"], "sizes", {"to": code}),
        ("Slice", ["sizes", np.array([0]), np.array([1]), np.array([0])], "batch", {}),
        ("Concat", ["batch", np.array([4, 2], kind), np.array([4], kind)], "target", {"axis": 0}),
        ("Cast", ["target"], "shape_2", {"to": 7}),
        ("Reshape", ["hidden", "shape_2"], "heads", {}),
        ("Relu", ["heads"], "active", {}),
        ("Concat", ["batch", np.array([4], kind), np.array([8], kind)], "back", {"axis": 0}),
        ("Cast", ["back"], "shape_3", {"to": 7}),
        ("Reshape", ["active", "shape_3"], "flat", {}),
        ("MatMul", ["flat", weight(8, 3, seed=1)], "out", {}),
    ]
    graph = edited(tmp_path, built(tmp_path / "m.onnx", {"x": (np.float32, ["batch", 4, 5])}, nodes))
    assert graph.spaces
