"""Attention whose queries, keys and values are one product, and masks, as ONNX Runtime fuses them in transformers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx_files import built, weight

from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator
from graphsurgery.onnx.runtime.sessions import open_session, run_session
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.deviation import deviation

OURS = "com.microsoft."
TOKENS, FEATURES, HEADS = 4, 6, 2
MASKS = {
    "tokens": (np.int32, ["batch", TOKENS], lambda: (torch.arange(TOKENS) < 3).int().repeat(2, 1)),
    "pairs": (np.int32, ["batch", TOKENS, TOKENS], lambda: torch.ones(TOKENS, TOKENS).tril().int().repeat(2, 1, 1)),
    "lengths": (np.int32, ["batch"], lambda: torch.tensor([2, 4], dtype=torch.int32)),
    "scores": (np.float32, ["batch", HEADS, TOKENS, TOKENS], lambda: torch.randn(2, HEADS, TOKENS, TOKENS)),
}
PLACES = {"tokens": 3, "pairs": 3, "lengths": 3, "scores": 5}


def packed(path, masks=(), *, sizes=(FEATURES,) * 3, **attributes):
    """`x → product → attention → product`."""
    read = ["hidden", weight(FEATURES, sum(sizes), seed=3), weight(sum(sizes), seed=4), "", "", ""]
    for name in masks:
        read[PLACES[name]] = name
    while not isinstance(read[-1], np.ndarray) and not read[-1]:
        read.pop()
    nodes = [
        ("MatMul", ["x", weight(5, FEATURES)], "hidden", {}),
        (f"{OURS}Attention", read, "found", {"num_heads": HEADS} | attributes),
        ("MatMul", ["found", weight(sizes[2], 3, seed=1)], "out", {}),
    ]
    inputs = {name: MASKS[name][:2] for name in masks}
    return built(path, {"x": (np.float32, ["batch", TOKENS, 5])} | inputs, nodes)


def fed(masks):
    torch.manual_seed(0)
    return {"x": torch.randn(2, TOKENS, 5)} | {name: MASKS[name][2]() for name in masks}


def same(path, feed, graph=None):
    """A network of a file gives what ONNX Runtime gives on it."""
    found = import_onnx(path).graph if graph is None else graph
    assert not any(isinstance(layer, OnnxOperator) for layer in found.module.modules())
    with torch.no_grad():
        given = found.module(*feed.values())
    assert deviation(given, run_session(open_session(path, threads=1), feed, str(path))[0]) < 1e-5
    return found


CASES = {
    "plain": ((), {}),
    "causal": ((), {"unidirectional": 1}),
    "tokens": (("tokens",), {}),
    "tokens, filled": (("tokens",), {"mask_filter_value": -3.0}),
    "lengths": (("lengths",), {}),
    "pairs": (("pairs",), {"unidirectional": 1}),
    "scores": (("scores",), {"unidirectional": 1}),
    "tokens and scores": (("tokens", "scores"), {}),
    "scaled": ((), {"scale": 0.3}),
    "unlike widths": ((), {"qkv_hidden_sizes": [FEATURES, FEATURES, 8], "sizes": (FEATURES, FEATURES, 8)}),
}


@pytest.mark.parametrize("name", CASES)
def test_packed_attention_is_followed_and_cut(tmp_path, name):
    masks, attributes = CASES[name]
    path, small, wide = (tmp_path / f"{each}.onnx" for each in ("m", "small", "wide"))
    feed = fed(masks)
    graph = same(packed(path, masks, **attributes), feed)
    assert rewrite_onnx(path, compress(graph, 0.5), small).holds
    same(small, feed)
    if "scores" in masks:  # what is added to more heads is more
        return
    rewrite_onnx(path, widen(graph, 2), wide)
    with torch.no_grad():
        assert deviation(same(wide, feed).module(*feed.values()), graph.module(*feed.values())) < 1e-5


def test_a_cut_of_the_values_alone_says_the_widths(tmp_path):
    path, small = packed(tmp_path / "m.onnx"), tmp_path / "small.onnx"
    graph = import_onnx(path).graph
    before = {node.op_type: node for node in onnx.load(path).graph.node}["Attention"]
    assert not any(a.name == "qkv_hidden_sizes" for a in before.attribute)
    values = [space.name for space in graph.spaces if space.size == FEATURES // HEADS]
    for name in values:
        cut = compress(graph, {name: 2})
        rewrite_onnx(path, cut, small)
        same(small, fed(()))
    assert len(values) == 2
    written = {node.op_type: node for node in onnx.load(small).graph.node}["Attention"]
    sizes = {a.name: list(a.ints) for a in written.attribute if a.ints}["qkv_hidden_sizes"]
    assert sizes in ([6, 6, 4], [4, 4, 6])


@pytest.mark.parametrize("mask", ["tokens", "pairs", "lengths"])
def test_attention_of_three_values_with_masks(tmp_path, mask):
    read = ["q", "k", "v", weight(3 * FEATURES, seed=4), mask]
    nodes = [
        *[("MatMul", ["x", weight(5, FEATURES, seed=at)], name, {}) for at, name in enumerate("qkv")],
        (f"{OURS}MultiHeadAttention", read, "found", {"num_heads": HEADS}),
        ("MatMul", ["found", weight(FEATURES, 3, seed=1)], "out", {}),
    ]
    inputs = {"x": (np.float32, ["batch", TOKENS, 5]), mask: MASKS[mask][:2]}
    path = built(tmp_path / "m.onnx", inputs, nodes)
    graph = same(path, fed((mask,)))
    assert rewrite_onnx(path, compress(graph, 0.5), tmp_path / "small.onnx").holds
    same(tmp_path / "small.onnx", fed((mask,)))


@pytest.mark.parametrize("segments", [False, True])
def test_embeddings_that_are_normed_and_their_mask(tmp_path, segments):
    """As a fused BERT begins: the counts of a mask go into the attention behind it."""
    read = ["ids", "segments" if segments else "", weight(9, FEATURES), weight(TOKENS + 2, FEATURES, seed=1)]
    read += [weight(2, FEATURES, seed=2) if segments else "", weight(FEATURES, seed=3), weight(FEATURES, seed=4)]
    packing = [weight(FEATURES, 3 * FEATURES, seed=6), weight(3 * FEATURES, seed=7)]
    nodes = [
        (f"{OURS}EmbedLayerNormalization", [*read, "mask"], ["normed", "counts"], {"epsilon": 1e-3}),
        (f"{OURS}Attention", ["normed", *packing, "counts"], "found", {"num_heads": HEADS}),
        (
            f"{OURS}SkipLayerNormalization",
            ["found", "normed", weight(FEATURES, seed=8), weight(FEATURES, seed=9)],
            "n",
            {},
        ),
        ("MatMul", ["n", weight(FEATURES, 3, seed=1)], "out", {}),
    ]
    names = ["ids", "mask", *(["segments"] if segments else [])]
    path = built(tmp_path / "m.onnx", {name: (np.int32, ["batch", TOKENS]) for name in names}, nodes)
    feed = {"ids": torch.tensor([[0, 8, 3, 1], [2, 2, 5, 0]]), "mask": torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]])}
    feed |= {"segments": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])} if segments else {}
    feed = {name: tensor.int() for name, tensor in feed.items()}
    graph = same(path, feed)
    assert graph.spaces
    assert rewrite_onnx(path, compress(graph, 0.5), tmp_path / "small.onnx").holds
    same(tmp_path / "small.onnx", feed)


def test_what_does_more_than_attend_is_kept_whole(tmp_path):
    graph = import_onnx(packed(tmp_path / "m.onnx", past_present_share_buffer=1)).graph
    assert sum(isinstance(layer, OnnxOperator) for layer in graph.module.modules()) == 1
