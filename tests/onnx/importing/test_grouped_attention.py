"""GroupQueryAttention without a past: torch's attention, in which nothing looks at what fills an example up."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from onnx_files import before_attention, weight, written

from graphsurgery.errors import TraceError
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen

INT = -1
TOKENS = 5


def network(path, *, groups=2, outputs=("y",), options=(), total="total", size=8):
    """`[batch, tokens, 12] → 16 → 4 heads of 8 or more → 6`, beside a mask of what is no filling."""
    angles = np.arange(TOKENS, dtype=np.float32)[:, None] * np.linspace(0.1, 1, size // 2, dtype=np.float32)
    caches = {"cosines": np.cos(angles), "sines": np.sin(angles)} if "do_rotary" in dict(options) else {}
    nodes = [
        *before_attention(),
        helper.make_node(
            "GroupQueryAttention", ["q", "k", "v", "", "", "last", total, *caches], ["a", "keys", "values"], "attend",
            domain="com.microsoft", num_heads=4, kv_num_heads=groups, **dict(options),
        ),
        helper.make_node("MatMul", ["a", "wo"], ["y"]),
    ]  # fmt: skip
    sizes = {
        "w": (12, 16),
        "wq": (16, 4 * size),
        "wk": (16, size * groups),
        "wv": (16, size * groups),
        "wo": (4 * size, 6),
    }
    constants = {name: weight(*size, seed=seed) for seed, (name, size) in enumerate(sizes.items())}
    constants |= {"one": np.array([1]), "at": np.array(1), **caches}
    return written(path, nodes, {"x": ["b", TOKENS, 12], "mask": (INT, ["b", TOKENS])}, outputs, constants)


def drawn():
    """Two examples, of which the second is filled up from its third token on."""
    x = np.random.default_rng(0).normal(size=(2, TOKENS, 12)).astype(np.float32)
    return {"x": x, "mask": np.array([[1] * 5, [1, 1, 1, 0, 0]])}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_it_is_what_onnx_runtime_gives(tmp_path, groups):
    outputs = ("y", "keys", "values")
    path = network(tmp_path / "m.onnx", groups=groups, outputs=outputs, options={"scale": 0.3}.items())
    graph = import_onnx(path).graph
    given = drawn()
    found = graph.module(*map(torch.tensor, given.values()))
    expected = onnxruntime.InferenceSession(path).run(list(outputs), given)
    for name, array in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(found[name].detach().numpy(), array, rtol=1e-4, atol=1e-5)


def test_heads_and_their_size_are_cut_and_widened(tmp_path):
    path = network(tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    assert rewrite_onnx(path, compress(graph, 0.5), tmp_path / "s.onnx").holds
    (node,) = [n for n in onnx.load(tmp_path / "s.onnx").graph.node if n.op_type == "GroupQueryAttention"]
    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert (options["num_heads"], options["kv_num_heads"]) == (2, 1)
    assert rewrite_onnx(path, widen(graph, 1.5), tmp_path / "w.onnx").holds
    expected, found = (onnxruntime.InferenceSession(p).run(["y"], drawn())[0] for p in (path, tmp_path / "w.onnx"))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


OTHERWISE = {"softcap": 2.0, "local_window_size": 2, "smooth_softmax": 1}


@pytest.mark.parametrize("option", OTHERWISE)
def test_with_what_torch_has_not_it_is_kept_whole_and_the_rest_is_edited(tmp_path, option):
    path = network(tmp_path / "m.onnx", options={option: OTHERWISE[option]}.items())
    graph = import_onnx(path).graph
    (kept,) = [part for part in graph.module.modules() if isinstance(part, OnnxOperator)]
    assert kept.reason.startswith(
        "attend is an attention with pairs that are turned, or with a cap, a window or a smooth softmax"
    )
    assert rewrite_onnx(path, compress(graph, 0.5), tmp_path / "s.onnx").holds
    sizes = {tensor.name: list(tensor.dims) for tensor in onnx.load(tmp_path / "s.onnx").graph.initializer}
    assert (sizes["w"], sizes["wq"], sizes["wo"]) == ([12, 8], [8, 32], [32, 6])


def test_without_the_number_of_tokens_it_is_refused(tmp_path):
    path = network(tmp_path / "m.onnx", total="less")
    with pytest.raises(TraceError, match=r"attend \(com\.microsoft\.GroupQueryAttention\): less, a size or an opt"):
        import_onnx(path)


def test_halves_that_are_turned_are_cut_and_widened_with_their_angles(tmp_path):
    """Heads of 32, of which 16 may stay: ONNX Runtime wants multiples of 8."""
    turned = {"do_rotary": 1}
    path = network(tmp_path / "m.onnx", options=turned.items(), size=32)
    graph = import_onnx(path).graph
    given = drawn()
    expected = onnxruntime.InferenceSession(path).run(["y"], given)[0]
    assert not [part for part in graph.module.modules() if isinstance(part, OnnxOperator)]
    found = graph.module(*map(torch.tensor, given.values())).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert rewrite_onnx(path, compress(graph, 0.5), tmp_path / "s.onnx").holds
    assert rewrite_onnx(path, widen(graph, 1.5), tmp_path / "w.onnx").holds
    wide = onnxruntime.InferenceSession(tmp_path / "w.onnx").run(["y"], given)[0]
    np.testing.assert_allclose(wide, expected, rtol=1e-3, atol=1e-5)
