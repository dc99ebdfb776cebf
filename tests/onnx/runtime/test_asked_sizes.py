"""Which inputs of a graph say how large others become: also through arithmetic, and from within graphs in nodes."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from graphsurgery.onnx.runtime.asked_sizes import asked_sizes, known

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name, kind=FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def graph(nodes, inputs, output="y", kind=FLOAT):
    return helper.make_graph(nodes, "g", [value(name, INT) for name in inputs], [value(output, kind)])


@pytest.mark.parametrize(
    ("kind", "at"),
    [("Tile", 1), ("Expand", 1), ("Pad", 1), ("Col2Im", 1), ("OneHot", 1), ("TopK", 1), ("CenterCropPad", 1)],
)
def test_the_input_of_an_operator_that_is_a_size(kind, at):
    names = [f"x{i}" for i in range(at + 1)]  # without those that come after it
    assert asked_sizes(graph([helper.make_node(kind, names, ["y"])], names)) == {names[at]}


def test_numbers_that_a_size_is_computed_from():
    nodes = [
        helper.make_node("Mul", ["a", "b"], ["product"]),
        helper.make_node("Concat", ["product", "c"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["y"]),
    ]
    assert asked_sizes(graph(nodes, ["a", "b", "c", "d"])) == {"a", "b", "c"}


def test_the_shape_of_an_input_is_not_what_is_in_it():
    nodes = [helper.make_node("Shape", ["a"], ["shape"]), helper.make_node("Expand", ["b", "shape"], ["y"])]
    assert asked_sizes(graph(nodes, ["a", "b"])) == set()


def body(nodes, outputs):
    inputs = [value("i", INT), value("go", BOOL), value("old", INT)]
    return helper.make_graph(nodes, "body", inputs, [value(name) for name in outputs])


def test_what_a_loop_counts_and_carries():
    """Its steps, what stops it, and a state by which something in it grows, one step later."""
    nodes = [
        helper.make_node("Range", ["zero", "old", "one"], ["line"]),
        helper.make_node("Add", ["old", "step"], ["new"]),
        helper.make_node("Less", ["new", "limit"], ["on"]),
    ]
    inner = body(nodes, ["on", "new"])
    inputs = ["steps", "start", "step", "limit", "other"]
    node = helper.make_node("Loop", ["steps", "", "start"], ["last"], body=inner)
    after = helper.make_node("Add", ["last", "other"], ["y"])
    assert asked_sizes(graph([node, after], inputs)) == {"steps", "start", "step", "limit"}


def test_what_a_loop_gives():
    inner = body([helper.make_node("Add", ["old", "step"], ["new"])], ["go", "new"])
    node = helper.make_node("Loop", ["", "", "start"], ["last"], body=inner)
    assert asked_sizes(graph([node, helper.make_node("Tile", ["x", "last"], ["y"])], ["start", "step", "x"])) == {
        "start",
        "step",
    }


def test_what_branches_and_scans_read_and_give():
    first, second = (
        helper.make_graph([helper.make_node("Neg", [name], [f"{name}_new"])], name, [], [value(f"{name}_new")])
        for name in ("a", "b")
    )
    chosen = helper.make_node("If", ["flag"], ["size"], then_branch=first, else_branch=second)
    tiled = helper.make_node("Tile", ["x", "size"], ["y"])
    assert asked_sizes(graph([chosen, tiled], ["flag", "a", "b", "x"])) == {"flag", "a", "b"}

    step = helper.make_graph(
        [helper.make_node("Tile", ["each", "state"], ["wide"]), helper.make_node("Neg", ["state"], ["state_new"])],
        "step",
        [value("state"), value("each")],
        [value("state_new"), value("wide")],
    )
    scan = helper.make_node("Scan", ["start", "line"], ["end", "y"], body=step, num_scan_inputs=1)
    assert asked_sizes(graph([scan], ["start", "line"])) == {"start"}


def test_operators_of_other_makers():
    assert known(helper.make_node("Tile", ["x", "n"], ["y"]))
    assert known(helper.make_node("Range", ["a", "b"], ["y"], domain="com.microsoft"))
    assert not known(helper.make_node("Range", ["a", "b"], ["y"], domain="somebody"))
    node = helper.make_node("Tile", ["x", "n"], ["y"], domain="somebody")
    assert asked_sizes(graph([node], ["x", "n"])) == set()
