"""The graph in which a file is edited: what no edit concerns stays as it is, and in its order."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphsurgery.onnx.editing.file_graph import FileGraph


def file_of(nodes, weights=(), *, outputs=("y",)):
    """A model of nodes on `x [batch, 4]`."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", *outputs)]
    tensors = [numpy_helper.from_array(np.ones(4, np.float32), name) for name in weights]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain():
    return file_of(
        [
            helper.make_node("Add", ["x", "w"], ["a"], "add", doc_string="kept"),
            helper.make_node("Neg", ["x"], ["lost"], "unread"),
            helper.make_node("Mul", ["a", "v"], ["m"], "mul"),
            helper.make_node("Relu", ["m"], ["y"], "act"),
        ],
        ("w", "v", "nobody"),
    )


def edited(model, graph):
    found = onnx.ModelProto()
    found.CopyFrom(model)
    assert graph.put_into(found) == {}
    onnx.checker.check_model(found, full_check=True)
    return found.graph


def test_without_an_edit_nothing_changes():
    model = chain()
    assert edited(model, FileGraph(model)) == model.graph


def test_new_nodes_stand_in_front_of_their_reader_and_the_rest_keeps_its_order():
    model = chain()
    graph = FileGraph(model)
    graph.read(2, 0, graph.operator("Abs", ["a"], "new", {}))
    found = edited(model, graph)
    assert [node.name for node in found.node] == ["add", "unread", "new", "mul", "act"]
    assert [tensor.name for tensor in found.initializer] == ["w", "v", "nobody"]
    assert found.node[0].doc_string == "kept"


def test_what_has_lost_its_readers_goes_and_what_had_none_stays():
    model = chain()
    graph = FileGraph(model)
    graph.read(3, 0, graph.operator("Abs", ["a"], "new", {}))
    found = edited(model, graph)
    assert [node.name for node in found.node] == ["add", "unread", "new", "act"]
    assert [tensor.name for tensor in found.initializer] == ["w", "nobody"]


def test_a_number_leaves_all_nodes():
    model = chain()
    graph = FileGraph(model)
    graph.read(2, 0, graph.constant(np.ones((1, 4), np.float32), "a"))
    found = edited(model, graph)
    assert [node.name for node in found.node] == ["add", "unread", "mul", "act"]
    assert list(found.node[2].input) == ["a_1", "v"]


def test_an_operator_is_replaced_in_its_place_and_an_output_keeps_its_name():
    model = chain()
    graph = FileGraph(model)
    graph.operator("Abs", ["a"], "new", {})
    graph.become("m", "mul")
    graph.give({"y": graph.operator("Tanh", ["y"], "last", {})})
    found = edited(model, graph)
    assert [(node.name, node.op_type) for node in found.node] == [
        ("add", "Add"), ("unread", "Neg"), ("mul", "Abs"), ("act", "Relu"), ("last", "Tanh"),
    ]  # fmt: skip
    assert list(found.node[-1].output) == ["y"]
    assert list(found.node[-1].input) == ["y_before"]


def test_outputs_may_change_places():
    nodes = [helper.make_node("Abs", ["x"], ["y"], "first"), helper.make_node("Neg", ["x"], ["z"], "second")]
    model = file_of(nodes, outputs=("y", "z"))
    graph = FileGraph(model)
    graph.give({"y": "z", "z": "y"})
    found = edited(model, graph)
    makers = {node.output[0]: node for node in found.node}
    assert [makers[makers[name].input[0]].op_type for name in ("y", "z")] == ["Neg", "Abs"]


def test_a_later_value_is_computed_before_it_is_read():
    nodes = [
        helper.make_node("Abs", ["x"], ["a"], "first"),
        helper.make_node("Neg", ["x"], ["b"], "second"),
        helper.make_node("Add", ["a", "b"], ["y"], "sum"),
    ]
    model = file_of(nodes)
    graph = FileGraph(model)
    graph.read(0, 0, graph.operator("Relu", ["b"], "new", {}))
    assert [node.name for node in edited(model, graph).node] == ["second", "new", "first", "sum"]


def test_a_branch_reads_the_new_value_of_the_graph_around_it():
    body = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["b"], "inside")], "body", [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", 4])],
    )  # fmt: skip
    nodes = [
        helper.make_node("Abs", ["x"], ["a"], "first"),
        helper.make_node("Constant", [], ["c"], "flag", value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=body, else_branch=body),
    ]
    model = file_of(nodes)
    graph = FileGraph(model)
    graph.read(2, 1, graph.operator("Relu", ["a"], "new", {}))
    found = edited(model, graph)
    assert [node.name for node in found.node] == ["first", "flag", "new", "if"]
    assert [list(attribute.g.node[0].input) for attribute in found.node[-1].attribute] == [["new_output"]] * 2
