"""Attention of new tokens to those before: what a decoder keeps goes in and comes out, and the rest is edited."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_files import before_attention, weight, written

from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen

INT = -1
SIZE = 16
OUTPUTS = ("y", "keys", "values")


def decoder(path, *, heads=4, groups=2, tokens=1, past=3, rotary=False, room=0, batch="b", **options):
    """`[batch, tokens, 12] → 16 → heads of 16 → 10 → 6`, with a past and a mask of what there is of each example."""
    cache = ["cosines", "sines"] if rotary else []
    attention = helper.make_node(
        "GroupQueryAttention", ["q", "k", "v", "past_k", "past_v", "last", "total", *cache], ["a", "keys", "values"],
        "attend", domain="com.microsoft", num_heads=heads, kv_num_heads=groups, do_rotary=int(rotary), **options,
    )  # fmt: skip
    nodes = [
        *before_attention(),
        attention,
        helper.make_node("MatMul", ["a", "wo"], ["o"]),
        helper.make_node("Relu", ["o"], ["p"]),
        helper.make_node("MatMul", ["p", "wy"], ["y"]),
    ]
    inner, wide = SIZE * groups, SIZE * heads
    sizes = {"w": (12, 16), "wq": (16, wide), "wk": (16, inner), "wv": (16, inner), "wo": (wide, 10), "wy": (10, 6)}
    constants = {name: weight(*size, seed=seed) for seed, (name, size) in enumerate(sizes.items())}
    constants |= {"one": np.array([1]), "at": np.array(1)}
    angles = (np.arange(20)[:, None] * 10.0 ** -np.linspace(0, 2, SIZE // 2)).astype(np.float32)
    constants |= {"cosines": np.cos(angles), "sines": np.sin(angles)} if rotary else {}
    inputs = {
        "x": [batch, tokens, 12], "mask": (INT, [batch, "total"]),
        "past_k": [batch, groups, "past", SIZE], "past_v": [batch, groups, "past", SIZE],
    }  # fmt: skip
    path = written(path, nodes, inputs, OUTPUTS, constants)
    shapes = {"x": [1, tokens, 12], "mask": [1, past + tokens - room]}
    return path, shapes | {name: [1, groups, past, SIZE] for name in ("past_k", "past_v")}


def drawn(lengths, *, tokens=1, past=3, groups=2, seed=0):
    """Examples that have so many tokens, the new ones included."""
    generator = np.random.default_rng(seed)
    kept = [generator.normal(size=(len(lengths), groups, past, SIZE)).astype(np.float32) for _ in range(2)]
    x = generator.normal(size=(len(lengths), tokens, 12)).astype(np.float32)
    mask = (np.arange(past + tokens) < np.asarray(lengths)[:, None]).astype(np.int64)
    return {"x": x, "mask": mask, "past_k": kept[0], "past_v": kept[1]}


def run(path, given):
    return dict(zip(OUTPUTS, onnxruntime.InferenceSession(path).run(list(OUTPUTS), given), strict=True))


def assert_alike(found, expected, lengths):
    """Behind the last token of an example its keys and values are anything."""
    for name in OUTPUTS:
        for example, length in enumerate(lengths):
            parts = [each[name][example] for each in (found, expected)]
            parts = parts if name == "y" else [part[:, :length] for part in parts]
            np.testing.assert_allclose(*parts, rtol=1e-4, atol=1e-5)


def kept_whole(graph):
    return [part.reason for part in graph.module.modules() if isinstance(part, OnnxOperator)]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_it_is_what_onnx_runtime_gives(data):
    groups, each, past = (data.draw(st.integers(1, most)) for most in (3, 2, 5))
    rotary = data.draw(st.booleans())
    lengths = data.draw(st.lists(st.integers(1, past + 1), min_size=1, max_size=3))
    lengths[0] = past + 1
    with tempfile.TemporaryDirectory() as folder:
        path, shapes = decoder(Path(folder, "m.onnx"), heads=groups * each, groups=groups, past=past, rotary=rotary)
        graph = import_onnx(path, shape=shapes).graph
        assert kept_whole(graph) == []
        inputs = drawn(lengths, past=past, groups=groups)
        found = {name: x.detach().numpy() for name, x in graph.module(*map(torch.tensor, inputs.values())).items()}
        assert_alike(found, run(path, inputs), lengths)


@pytest.mark.parametrize("rotary", [False, True])
def test_several_tokens_at_once(tmp_path, rotary):
    """ONNX Runtime takes them of one example."""
    path, shapes = decoder(tmp_path / "m.onnx", tokens=2, rotary=rotary, batch=1)
    graph = import_onnx(path, shape=shapes).graph
    inputs = drawn([5], tokens=2)
    found = {name: x.detach().numpy() for name, x in graph.module(*map(torch.tensor, inputs.values())).items()}
    assert_alike(found, run(path, inputs), [5])


@pytest.mark.parametrize("rotary", [False, True])
def test_what_does_not_reach_the_past_is_edited(tmp_path, rotary):
    path, shapes = decoder(tmp_path / "m.onnx", rotary=rotary)
    graph = import_onnx(path, shape=shapes).graph
    assert {space.size for space in graph.spaces} >= {16, 10}
    assert rewrite_onnx(path, compress(graph, 0.5), tmp_path / "s.onnx").holds
    assert rewrite_onnx(path, widen(graph, 1.5), tmp_path / "w.onnx").holds
    inputs = drawn([4, 2])
    assert_alike(run(tmp_path / "w.onnx", inputs), run(path, inputs), [4, 2])
    assert [x.shape for x in run(tmp_path / "s.onnx", inputs).values()] == [(2, 1, 6), (2, 2, 4, 16), (2, 2, 4, 16)]


def test_other_lengths_than_the_first_stay_what_they_are(tmp_path):
    path, shapes = decoder(tmp_path / "m.onnx")
    graph = import_onnx(path, shape=shapes).graph
    inputs = drawn([8, 5], past=7)
    found = {name: x.detach().numpy() for name, x in graph.module(*map(torch.tensor, inputs.values())).items()}
    assert_alike(found, run(path, inputs), [8, 5])


def test_a_past_that_has_become_empty_is_refused(tmp_path):
    path, shapes = decoder(tmp_path / "m.onnx")
    graph = import_onnx(path, shape=shapes).graph
    with pytest.raises(ValueError, match="finds True where the trace found False; trace the model at this input size"):
        graph.module(*map(torch.tensor, drawn([1], past=0).values()))


WHOLE = {
    "room": ({"room": 1}, "an attention whose past has room for what comes"),
    "pairs": ({"rotary": True, "rotary_interleaved": 1}, "an attention with pairs that are turned"),
    "a cap": ({"softcap": 2.0}, "an attention with pairs that are turned, or with a cap"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_torch_has_not_is_kept_whole_and_the_rest_is_edited(tmp_path, case):
    options, reason = WHOLE[case]
    path, shapes = decoder(tmp_path / "m.onnx", **options)
    graph = import_onnx(path, shape=shapes).graph
    assert [found.startswith(f"attend is {reason}") for found in kept_whole(graph)] == [True]
    assert rewrite_onnx(path, compress(graph, 0.5), tmp_path / "s.onnx").holds


def attending(path, groups, **options):
    """The same with the attention of the standard: `[batch, 1, 12] → 8 → heads of 4 → 6`, and a mask for the scores."""
    heads = {"q": 4, "k": groups, "v": groups}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
    for name in heads:
        nodes += [
            helper.make_node("MatMul", ["r", f"w{name}"], [f"{name}_flat"]),
            helper.make_node("Reshape", [f"{name}_flat", f"{name}_shape"], [f"{name}_rows"]),
            helper.make_node("Transpose", [f"{name}_rows"], [name], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        helper.make_node("Attention", ["q", "k", "v", "mask", "past_k", "past_v"], ["a", "keys", "values"], "attend",
                         **options),
        helper.make_node("Transpose", ["a"], ["a_rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["a_rows", "a_shape"], ["a_flat"]),
        helper.make_node("MatMul", ["a_flat", "wo"], ["y"]),
    ]  # fmt: skip
    constants = {"w": weight(12, 8), "wo": weight(16, 6, seed=1), "a_shape": np.array([0, 0, 16])}
    for seed, (name, number) in enumerate(heads.items(), 2):
        constants |= {f"w{name}": weight(8, 4 * number, seed=seed), f"{name}_shape": np.array([0, 0, number, 4])}
    past = ["b", groups, "past", 4]
    inputs = {"x": ["b", 1, 12], "mask": ["b", 1, 1, "total"], "past_k": past, "past_v": past}
    path = written(path, nodes, inputs, OUTPUTS, constants, 23)
    return path, {"x": [1, 1, 12], "mask": [1, 1, 1, 4], "past_k": [1, groups, 3, 4], "past_v": [1, groups, 3, 4]}


@pytest.mark.parametrize("groups", [2, 4])
def test_attention_of_the_standard_has_a_past(tmp_path, groups):
    path, shapes = attending(tmp_path / "m.onnx", groups, scale=0.4)
    graph = import_onnx(path, shape=shapes).graph
    assert kept_whole(graph) == []
    generator = np.random.default_rng(0)
    sizes = ((3, 1, 12), (3, 1, 1, 7), (3, groups, 6, 4), (3, groups, 6, 4))
    inputs = dict(zip(shapes, (generator.normal(size=size).astype(np.float32) for size in sizes), strict=True))
    expected = run(path, inputs)
    found = {name: x.detach().numpy() for name, x in graph.module(*map(torch.tensor, inputs.values())).items()}
    assert_alike(found, expected, [7, 7, 7])
    assert rewrite_onnx(path, compress(graph, 0.5), tmp_path / "s.onnx").holds
    assert rewrite_onnx(path, widen(graph, 1.5), tmp_path / "w.onnx").holds
    assert_alike(run(tmp_path / "w.onnx", inputs), expected, [7, 7, 7])


def test_a_past_that_is_causal_besides_is_kept_whole(tmp_path):
    path, shapes = attending(tmp_path / "m.onnx", 4, is_causal=1)
    graph = import_onnx(path, shape=shapes, check=False).graph
    assert [
        found.startswith("attend is an attention with a mask or a past that is causal") for found in kept_whole(graph)
    ]
