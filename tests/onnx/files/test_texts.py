"""Files that read and give texts: the network between is edited, the rest stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphsurgery as gs
from graphsurgery.errors import UnsupportedError
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx

ML = "ai.onnx.ml"
WORDS = ["a", "b", "c", "d"]
LABELS = ["cat", "dog", "owl"]


def weight(name, *shape, seed=0):
    generator = np.random.default_rng(seed + len(name) + sum(shape))
    return numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)


def words_to_labels(path, *, maps=True, more=()):
    """Words become indices, a network scores them, and the best class becomes a word; the scores become a map."""
    nodes = [
        helper.make_node(
            "LabelEncoder", ["words"], ["indices"], "encode", keys_strings=WORDS, values_int64s=range(4), domain=ML
        ),
        helper.make_node("Gather", ["table", "indices"], ["e"], "embed"),
        helper.make_node("ReduceMean", ["e"], ["mean"], "pool", axes=[1], keepdims=0),
        helper.make_node("Add", ["mean", "x"], ["sum"], "sum"),
        helper.make_node("Gemm", ["sum", "w1", "b1"], ["h"], "first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("Gemm", ["r", "w2"], ["scores"], "second", transB=1),
        helper.make_node("ArgMax", ["scores"], ["best"], "best", axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder", ["best"], ["label"], "name", keys_int64s=range(3), values_strings=LABELS, domain=ML
        ),
        *more,
    ]
    outputs = [helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"])]
    if maps:
        nodes.append(helper.make_node("ZipMap", ["scores"], ["map"], "zip", classlabels_strings=LABELS, domain=ML))
        kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        outputs.append(helper.make_value_info("map", helper.make_sequence_type_proto(kind)))
    outputs.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3]))
    graph = helper.make_graph(
        nodes,
        "texts",
        [
            helper.make_tensor_value_info("words", TensorProto.STRING, ["batch", 5]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6]),
        ],
        outputs,
        [weight("table", 4, 6), weight("w1", 16, 6), weight("b1", 16), weight("w2", 3, 16)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    model.metadata_props.add(key="kept", value="yes")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def feed(count=6):
    generator = np.random.default_rng(0)
    words = np.array(WORDS, dtype=object)[generator.integers(0, 4, (count, 5))]
    return {"words": words, "x": generator.normal(size=(count, 6)).astype(np.float32)}


def run(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed()), strict=True))


@pytest.mark.parametrize("maps", [True, False])
def test_the_network_between_texts_is_cut(tmp_path, maps):
    path = words_to_labels(tmp_path / "m.onnx", maps=maps)
    imported = import_onnx(path)
    assert [spec.name for spec in imported.graph.inputs] == ["x", "indices"]
    space = next(space for space in imported.graph.spaces if space.size == 16)
    kept = [0, 3, 4, 9]
    rewrite_onnx(path, gs.compress(imported.graph, {space.name: kept}), tmp_path / "small.onnx")
    masked = onnx.load(path)
    array = numpy_helper.to_array(masked.graph.initializer[3]).copy()
    array[:, [at for at in range(16) if at not in kept]] = 0
    masked.graph.initializer[3].CopyFrom(numpy_helper.from_array(array, "w2"))
    onnx.save(masked, tmp_path / "masked.onnx")
    found, wanted = run(tmp_path / "small.onnx"), run(tmp_path / "masked.onnx")
    assert list(found) == list(wanted) == ["label", *["map"] * maps, "scores"]
    np.testing.assert_array_equal(found["label"], wanted["label"])
    np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=1e-5, atol=1e-5)
    assert [set(row) for row in found.get("map", [])] == [set(LABELS)] * (6 * maps)


def test_all_else_stays_as_it_is(tmp_path):
    path = words_to_labels(tmp_path / "m.onnx")
    rewrite_onnx(path, gs.widen(import_onnx(path).graph, 1.5), tmp_path / "wide.onnx")
    before, after = onnx.load(path), onnx.load(tmp_path / "wide.onnx")
    for field in ("input", "output"):
        assert list(getattr(after.graph, field)) == list(getattr(before.graph, field))
    assert [node.name for node in after.graph.node] == [node.name for node in before.graph.node]
    assert [node for node in after.graph.node if node.domain] == [node for node in before.graph.node if node.domain]
    assert before.metadata_props[0] in after.metadata_props
    found, wanted = run(tmp_path / "wide.onnx"), run(path)
    np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["label"], wanted["label"])


def test_a_model_in_memory_keeps_its_texts(tmp_path):
    model = onnx.load(words_to_labels(tmp_path / "m.onnx"))
    back = gs.rewrite_onnx(model, gs.import_onnx(model).graph)
    assert list(back.graph.node) == list(model.graph.node)
    assert list(back.graph.output) == list(model.graph.output)


def test_what_reads_texts_again_goes_behind(tmp_path):
    """Numbers that are made of texts that are made of numbers are none of the network."""
    more = [
        helper.make_node(
            "LabelEncoder", ["label"], ["code"], "back", keys_strings=LABELS, values_int64s=range(3), domain=ML
        ),
        helper.make_node("Cast", ["code"], ["number"], "cast", to=TensorProto.FLOAT),
    ]
    path = words_to_labels(tmp_path / "m.onnx", maps=False, more=more)
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("number", TensorProto.FLOAT, ["batch"]))
    onnx.save(model, path)
    imported = import_onnx(path)
    assert imported.file.outputs == ("scores", "best")
    rewrite_onnx(path, gs.compress(imported.graph, 0.5), tmp_path / "small.onnx")
    found = run(tmp_path / "small.onnx")
    assert [LABELS[int(number)] for number in found["number"]] == list(found["label"])


def test_what_is_no_network_is_named(tmp_path):
    node = helper.make_node("LabelEncoder", ["words"], ["y"], keys_strings=WORDS, values_int64s=range(4), domain=ML)
    x = helper.make_tensor_value_info("words", TensorProto.STRING, ["batch"])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, ["batch"])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets, ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        UnsupportedError, match=r"m.onnx: all its operators read or give texts, maps or sequences; there"
    ):
        import_onnx(tmp_path / "m.onnx")


def test_what_is_handed_over_has_to_have_a_type(tmp_path):
    node = helper.make_node("Tokenize", ["words"], ["t"], domain="somebody")
    nodes = [node, helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT)]
    x = helper.make_tensor_value_info("words", TensorProto.STRING, ["batch"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("somebody", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=opsets, ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=r"m.onnx: t is made of texts, and the file does not say its type"):
        import_onnx(tmp_path / "m.onnx")


def test_operators_of_classical_models_are_kept_whole(tmp_path):
    """What scales and what classifies is run as it is; the layers between are edited."""
    nodes = [
        helper.make_node("Scaler", ["x"], ["s"], offset=[0.5] * 6, scale=[2.0] * 6, domain=ML),
        helper.make_node("Gemm", ["s", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2"], ["f"], transB=1),
        helper.make_node(
            "LinearClassifier", ["f"], ["label", "p"], coefficients=[1.0, -1.0, 0.5] * 3, intercepts=[0.1] * 3,
            classlabels_strings=LABELS, post_transform="SOFTMAX", domain=ML,
        ),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]),
        helper.make_tensor_value_info("p", TensorProto.FLOAT, ["batch", 3]),
    ]
    tensors = [weight("w1", 16, 6), weight("b1", 16), weight("w2", 3, 16)]
    graph = helper.make_graph(nodes, "g", [x], outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    graph = import_onnx(tmp_path / "m.onnx").graph
    assert [space.size for space in graph.spaces] == [16]
    rewrite_onnx(tmp_path / "m.onnx", gs.compress(graph, 0.5), tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    label, p = session.run(None, {"x": feed()["x"]})
    assert [LABELS[at] for at in p.argmax(1)] == list(label)
