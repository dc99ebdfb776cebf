"""Models in memory go in and come out: all fields that no edit concerns are as they were."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as surgeon
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import graphsurgery as gs
from graphsurgery.errors import CheckFailedError, SpecError, SurgeryError
from graphsurgery.onnx.files.given import given_model


def array(name: str, shape: tuple[int, ...], seed: int) -> onnx.TensorProto:
    generator = np.random.default_rng(seed)
    return numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)


def model(*, ir: int = 10, hidden: int = 8, with_notes: bool = True) -> onnx.ModelProto:
    """Two layers, with something in every field that a file can have; the second weight is small."""
    nodes = [
        helper.make_node("Gemm", ["x", "w2.weight", "w2.bias"], ["h"], "first", transB=1, doc_string="of a node"),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("Gemm", ["r", "w1.weight"], ["y"], "second", transB=1),
    ]
    weights = [array("w2.weight", (hidden, 60), 0), array("w1.weight", (3, hidden), 1), array("w2.bias", (hidden,), 2)]
    weights.append(array("unread", (2,), 3))
    graph = helper.make_graph(
        nodes,
        "named",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 60], "of an input")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3], "of an output")],
        weights,
        doc_string="of the graph",
        value_info=[
            helper.make_tensor_value_info("r", TensorProto.FLOAT, ["batch", hidden], "of a value"),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", hidden]),
        ],
    )
    if ir < 4:
        graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in weights)
    found = helper.make_model(
        graph, ir_version=ir, producer_name="somebody", producer_version="7", domain="their.own", model_version=5,
        doc_string="of the model", opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
    )  # fmt: skip
    if with_notes:
        _note(found)
    onnx.checker.check_model(found, full_check=True)
    return found


def _note(found: onnx.ModelProto) -> None:
    graph = found.graph
    for owner in (found, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        owner.metadata_props.add(key="kept", value=getattr(owner, "name", "model"))
    for tensor in graph.initializer:
        tensor.doc_string = f"of {tensor.name}"
    note = graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unread")


def fields(message: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that is set in a message, down to the plain values."""
    for field, value in message.ListFields():
        values = list(value) if field.is_repeated else [value]
        for number, each in enumerate(values):
            place = f"{at}.{field.name}[{number}]" if field.is_repeated else f"{at}.{field.name}"
            if field.message_type is not None:
                yield from fields(each, place)
            else:
                yield place, each


def differing(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    """The fields in which two models differ, the lineage left out."""
    old, new = dict(fields(before)), dict(fields(after))
    found = {place for place in old.keys() | new.keys() if old.get(place) != new.get(place)}
    return {place for place in found if not place.startswith(f".metadata_props[{len(before.metadata_props)}]")}


def run(found: onnx.ModelProto, x: torch.Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def as_surgeon(found: onnx.ModelProto) -> surgeon.Graph:
    return surgeon.import_onnx(found)


def test_without_an_edit_every_field_stays():
    given = model()
    back = gs.rewrite_onnx(given, gs.import_onnx(given).graph)
    assert isinstance(back, onnx.ModelProto)
    assert differing(given, back) == set()
    assert differing(given, model()) == set(), "what was given is not touched"


def test_a_cut_changes_weights_and_sizes_alone():
    given = model()
    graph = gs.import_onnx(given).graph
    small = gs.compress(graph, {"w2": [0, 2, 5]})
    back = gs.rewrite_onnx(given, small)
    weights = [f".graph.initializer[{at}].{field}" for at in range(3) for field in ("dims", "raw_data")]
    sizes = [f".graph.value_info[{at}].type.tensor_type.shape.dim[1].dim_value" for at in range(2)]
    found = {place[: place.rindex("[")] if place.endswith("]") else place for place in differing(given, back)}
    assert found == {*weights, *sizes}
    x = torch.randn(4, 60)
    masked = model()
    gone = [1, 3, 4, 6, 7]
    weight = numpy_helper.to_array(masked.graph.initializer[1]).copy()
    weight[:, gone] = 0
    masked.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "w1.weight"))
    np.testing.assert_allclose(run(back, x), run(masked, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ir", [3, 8, 10])
def test_versions_stay(ir):
    given = model(ir=ir, with_notes=ir >= 10)
    back = gs.rewrite_onnx(given, gs.import_onnx(given).graph)
    assert back.ir_version == ir
    assert differing(given, back) == set()


def test_shapes_that_no_node_knows_are_inferred():
    """A product and the sum with its bias are one layer of the network; the shape between them stays noted."""
    given = model(with_notes=False)
    first = given.graph.node[0]
    given.graph.initializer[0].CopyFrom(array("w2.weight", (60, 8), 0))
    del given.graph.node[0]
    given.graph.node.insert(0, helper.make_node("Add", ["m", "w2.bias"], first.output, first.name))
    given.graph.node.insert(0, helper.make_node("MatMul", ["x", "w2.weight"], ["m"], "product"))
    given.graph.value_info.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, ["batch", 8]))
    graph = gs.import_onnx(given).graph
    assert differing(given, gs.rewrite_onnx(given, graph)) == set()
    back = gs.rewrite_onnx(given, gs.compress(graph, {"w2": [0, 2, 5]}))
    (noted,) = [value for value in back.graph.value_info if value.name == "m"]
    assert [size.dim_param or size.dim_value for size in noted.type.tensor_type.shape.dim] == ["batch", 3]


def test_small_weights_keep_what_is_noted_of_them():
    """Weights below a kilobyte stay in the model while it is edited."""
    given = model()
    graph = gs.import_onnx(given).graph
    with torch.no_grad():
        graph.tensors()["w2.bias"].add_(1)
    back = gs.rewrite_onnx(given, graph)
    assert differing(given, back) == {".graph.initializer[2].raw_data"}


def test_local_functions_are_written_out():
    given = model(with_notes=False)
    inner = helper.make_node("Relu", ["a"], ["b"], "inside")
    function = helper.make_function("own", "Act", ["a"], ["b"], [inner], [helper.make_opsetid("", 18)])
    given.functions.append(function)
    given.opset_import.append(helper.make_opsetid("own", 1))
    given.graph.node[1].op_type, given.graph.node[1].domain = "Act", "own"
    back = gs.rewrite_onnx(given, gs.import_onnx(given).graph)
    assert [node.op_type for node in back.graph.node] == ["Gemm", "Relu", "Gemm"]
    x = torch.randn(2, 60)
    np.testing.assert_array_equal(run(back, x), run(given, x))


def parts(graph: surgeon.Graph) -> dict[str, Any]:
    """Everything that a graph of onnx-graphsurgeon holds, but for the numbers of weights."""
    tensors = {
        name: (type(t).__name__, t.dtype, None if t.shape is None else tuple(t.shape))
        for name, t in graph.tensors().items()
    }
    return {
        **{name: getattr(graph, name) for name in ("name", "doc_string", "opset", "producer_name", "producer_version")},
        "ir_version": graph.ir_version,
        "domains": [(entry.domain, entry.version) for entry in graph.import_domains],
        "inputs": [t.name for t in graph.inputs],
        "outputs": [t.name for t in graph.outputs],
        "nodes": [
            (n.name, n.op, n.domain, dict(n.attrs), [t.name for t in n.inputs], [t.name for t in n.outputs])
            for n in graph.nodes
        ],
        "tensors": tensors,
    }


def test_a_graph_of_graphsurgeon_goes_in_and_comes_out():
    given = as_surgeon(model())
    before = parts(given)
    imported = gs.import_onnx(given)
    back = gs.rewrite_onnx(given, imported.graph)
    assert isinstance(back, surgeon.Graph)
    assert parts(back) == before == parts(given)
    small = gs.rewrite_onnx(given, gs.compress(imported.graph, {"w2": [0, 2, 5]}))
    assert small.tensors()["w2.weight"].shape == [3, 60]
    assert small.tensors()["h"].shape == ["batch", 3]
    kept = {name: value for name, value in parts(small).items() if name != "tensors"}
    assert kept == {name: value for name, value in before.items() if name != "tensors"}


def test_a_graph_of_graphsurgeon_is_edited_on():
    """What comes out is edited by onnx-graphsurgeon, and goes in again."""
    given = as_surgeon(model(with_notes=False))
    small = gs.rewrite_onnx(given, gs.compress(gs.import_onnx(given).graph, {"w2": [0, 2, 5]}))
    y = small.outputs[0]
    small.outputs = small.layer(op="Softmax", inputs=[y], outputs=["p"], attrs={"axis": -1})
    small.outputs[0].dtype, small.outputs[0].shape = np.float32, ["batch", 3]
    again = gs.import_onnx(small.cleanup().toposort()).graph
    assert [(space.name, space.size) for space in again.spaces] == [("w2", 3)]
    x = torch.randn(3, 60)
    found = run(surgeon.export_onnx(small), x)
    np.testing.assert_allclose(again(x).detach().numpy(), found, rtol=1e-5, atol=1e-6)


def test_the_passing_file_goes_with_the_network():
    imported = gs.import_onnx(model())
    path = imported.file.path
    assert path.exists()
    del imported
    gc.collect()  # graphs are full of cycles
    assert not path.exists()


def test_an_edit_leaves_no_passing_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    given = model()
    gs.rewrite_onnx(given, gs.import_onnx(given, check=False).graph)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_named(tmp_path):
    given, path = model(), tmp_path / "m.onnx"
    graph = gs.import_onnx(given).graph
    path.write_bytes(given.SerializeToString())
    with pytest.raises(SurgeryError, match=r"is given as int, expected a path, an onnx.ModelProto or an onnx_graphs"):
        gs.import_onnx(7)
    with pytest.raises(SurgeryError, match=r"m.onnx: give the path of the edited file"):
        gs.rewrite_onnx(path, graph)
    with pytest.raises(SurgeryError, match=r"the given model: its edit is given back in memory; leave out the path"):
        gs.rewrite_onnx(given, graph, tmp_path / "out.onnx")
    with pytest.raises(SurgeryError, match="the given model: holds no whole ONNX model"):
        gs.import_onnx(onnx.ModelProto())
    outside = model()
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(SurgeryError, match=r"the given model: weight w2.weight lies in another file; give the path"):
        gs.import_onnx(outside)
    with pytest.raises(SurgeryError, match=r"the given graph: onnx-graphsurgeon does not export it"):
        gs.import_onnx(surgeon.Graph(inputs=[surgeon.Variable("x")], outputs=[surgeon.Variable("y")]))


def test_errors_speak_of_what_was_given():
    free = model(with_notes=False)
    free.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    with pytest.raises(SpecError, match=r"^the given model: input x is \? in the file; give --input, such as"):
        gs.import_onnx(free)
    given = model()
    graph = gs.import_onnx(given).graph
    with torch.no_grad():
        graph.tensors()["w1.weight"].fill_(torch.nan)
    with pytest.raises(CheckFailedError, match=r"^the given model: not written: the network itself gives "):
        gs.rewrite_onnx(given, graph)


def test_a_model_that_no_file_holds_is_named(monkeypatch):
    monkeypatch.setattr("graphsurgery.onnx.files.given.ONE_FILE", 100)
    with pytest.raises(SurgeryError, match=r"the given model: has [0-9,]+ bytes, expected at most 2 GiB; save it and"):
        given_model(model())
