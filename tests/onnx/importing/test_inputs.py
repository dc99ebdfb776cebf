"""Inputs of files: which axis is the batch, several free axes, states, numbers, and sizes by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx_files import built, weight

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen
from graphsurgery.recipes.contracts.trace_contracts import TraceContracts


def two_layers(x="x", width=6):
    return [
        ("MatMul", [x, weight(5, width)], "hidden", {}),
        ("Relu", ["hidden"], "active", {}),
        ("MatMul", ["active", weight(width, 3, seed=1)], "out", {}),
    ]


def edited(tmp_path, path, shape=None):
    """A file that is read, cut and widened, each compared in ONNX Runtime; the network that it is."""
    graph = import_onnx(path, shape=shape).graph
    small = compress(graph, 0.5)
    assert {s.name: s.size for s in small.spaces} != {s.name: s.size for s in graph.spaces}
    rewrite_onnx(path, small, tmp_path / "small.onnx")
    rewrite_onnx(path, widen(graph, 2), tmp_path / "wide.onnx")
    return graph


def test_a_size_below_zero_is_a_free_batch(tmp_path):
    path = built(tmp_path / "m.onnx", {"x": (np.float32, [-1, 5])}, two_layers())
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == -1
    graph = edited(tmp_path, path)
    assert [spec.batched for spec in graph.inputs] == [True]


def with_state(batch, free):
    """`x [batch, 5]` and a state `[2, batch, 6]` that is added to the hidden units, and given again."""
    size = "batch" if free else batch
    inputs = {"x": (np.float32, [size, 5]), "state": (np.float32, [2, size, 6])}
    first = two_layers()[0]
    added = [("Add", ["hidden", "state"], "sum", {}), ("ReduceMean", ["sum"], "mean", {"axes": [0], "keepdims": 0})]
    last = [
        ("Relu", ["mean"], "active", {}),
        ("MatMul", ["active", weight(6, 4)], "more", {}),
        ("Relu", ["more"], "m", {}),
    ]
    return inputs, [first, *added, *last, ("MatMul", ["m", weight(4, 3, seed=1)], "out", {})]


@pytest.mark.parametrize("free", [True, False])
def test_states_may_have_the_batch_behind_the_first_axis(tmp_path, free):
    inputs, nodes = with_state(1, free)
    path = built(tmp_path / "m.onnx", inputs, nodes)
    graph = edited(tmp_path, path)
    assert [spec.batched for spec in graph.inputs] == [False, False]
    assert graph.inputs[1].shape == ((2, 3, 6) if free else (2, 1, 6))
    before, after = (onnx.load(file).graph.input for file in (path, tmp_path / "small.onnx"))
    assert list(before) == list(after)


def test_inputs_have_free_axes_of_several_sizes(tmp_path):
    inputs = {"x": (np.float32, ["batch", 5]), "y": (np.float32, ["tokens", 5])}
    nodes = [
        *two_layers(),
        ("MatMul", ["y", weight(5, 3, seed=2)], "other", {}),
        ("ReduceMean", ["other"], "mean", {"axes": [0]}),
    ]
    nodes.append(("Add", ["out", "mean"], "sum", {}))
    path = built(tmp_path / "m.onnx", inputs, nodes, ("sum",))
    graph = edited(tmp_path, path, {"x": (4, 5), "y": (7, 5)})
    assert [spec.shape for spec in graph.inputs] == [(4, 5), (7, 5)]


def test_a_number_stands_beside_a_batch(tmp_path):
    inputs = {"x": (np.float32, ["batch", 5]), "rate": (np.float32, [])}
    first, *rest = two_layers()
    path = built(
        tmp_path / "m.onnx",
        inputs,
        [first, ("Mul", ["hidden", "rate"], "scaled", {}), ("Relu", ["scaled"], "active", {}), rest[1]],
    )
    graph = edited(tmp_path, path)
    assert [(spec.shape, spec.batched) for spec in graph.inputs] == [((2, 5), True), ((), False)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"input y is \?x5 in the file; give --input, such as --input y=1x128x5$"),
        ((7, 5), r"has the inputs x, y; say whose shape it is, such as --input y=1x128x5$"),
        ({"z": (1, 2)}, "has no input z; choose from x, y"),
        ({"y": (1, 7, 6)}, r"input y is \?x\?x5 in the file, not 1x7x6"),
        ({"x": (2, 5, 3)}, r"input x is \?x5 in the file, not 2x5x3"),
        ({"y": (2, 7, 5), "x": (3, 5)}, "axis batch of input x has the size 3, and 2 elsewhere"),
    ],
)
def test_sizes_that_are_missing_or_do_not_fit(tmp_path, given, message):
    inputs = {"x": (np.float32, ["batch", 5]), "y": (np.float32, ["batch", "tokens", 5])}
    nodes = [*two_layers(), ("ReduceMean", ["y"], "mean", {"axes": [1], "keepdims": 0})]
    nodes += [("MatMul", ["mean", weight(5, 3)], "more", {}), ("Add", ["out", "more"], "sum", {})]
    path = built(tmp_path / "m.onnx", inputs, nodes, ("sum",))
    with pytest.raises(gs.SpecError, match=message):
        import_onnx(path, shape=given)


def test_a_file_of_numbers_alone_is_refused(tmp_path):
    path = built(tmp_path / "m.onnx", {"x": (np.float32, [])}, [("Relu", ["x"], "out", {})])
    with pytest.raises(gs.UnsupportedError, match=r"input x is a single number, expected \[batch, ...\]"):
        import_onnx(path)


def test_sizes_are_said_by_name_on_the_command_line(tmp_path, capsys):
    inputs = {"x": (np.float32, ["batch", 5]), "y": (np.float32, ["batch", "tokens", 5])}
    nodes = [*two_layers(), ("ReduceMean", ["y"], "mean", {"axes": [1], "keepdims": 0})]
    nodes += [("MatMul", ["mean", weight(5, 3)], "more", {}), ("Add", ["out", "more"], "sum", {})]
    path = str(built(tmp_path / "m.onnx", inputs, nodes, ("sum",)))
    out = str(tmp_path / "small.onnx")
    assert run(["compress", path, "--keep", "0.5", "-o", out, "--input", "y=1x7x5", "--input", "x=1x5"]) == 0
    capsys.readouterr()
    for tokens, message in {
        ("--input", "y=1x7x5", "--input", "y=1x8x5"): "expected one NAME=1x3x224x224 for an input, with the batch",
        ("--input", "7x5", "--input", "5"): "say whose shape each is: --input NAME=1x3x224x224, with the batch",
        ("--input", "y=7xfive"): "expected sizes joined by x",
    }.items():
        assert run(["inspect", path, *tokens]) == 2
        assert message in capsys.readouterr().err
    assert run(["inspect", "paper/mlp", "--input", "x=1x5"]) == 2
    assert "shapes by name are for the inputs of an .onnx file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_bytes_and_indices_are_drawn_in_the_range_that_a_file_takes(tmp_path, kind):
    first, *rest = two_layers()
    if kind is np.uint8:
        nodes = [("Cast", ["x"], "floats", {"to": 1}), ("MatMul", ["floats", first[1][1]], "hidden", {}), *rest]
        inputs = {"x": (kind, ["batch", 5])}
    else:
        nodes = [("Gather", [weight(20, 6), "x"], "hidden", {"axis": 0}), *rest]
        inputs = {"x": (kind, ["batch", 5])}
    graph = edited(tmp_path, built(tmp_path / "m.onnx", inputs, nodes))
    assert (graph.inputs[0].low, graph.inputs[0].high) == ((0, 255) if kind is np.uint8 else (0, 9))
    assert torch.unique(graph.example_inputs(8)[0]).numel() > 5


def test_indices_that_are_too_large_print_nothing(tmp_path, capfd):
    nodes = [("Gather", [weight(20, 6), "x"], "hidden", {"axis": 0}), *two_layers()[1:]]
    import_onnx(built(tmp_path / "m.onnx", {"x": (np.int64, ["batch", 5])}, nodes))
    assert capfd.readouterr().err == ""


def held_by_a_state(state):
    """`x [batch, 5]`, and a state `[2, 1, 6]` whose batch is fixed; or sizes that have no names."""
    _, nodes = with_state(1, False)
    return {"x": (np.float32, ["batch", 5] if state[1] == 1 else [None, 5]), "state": (np.float32, state)}, nodes


def beside_each_other(nodes):
    """With the hidden units beside those of the state, in place of their sum."""
    joined = [("Unsqueeze", ["hidden", np.array([0])], "one", {}), ("Concat", ["one", "state"], "sum", {"axis": 0})]
    return [nodes[0], *joined, *nodes[2:]]


def test_a_state_of_a_fixed_size_holds_the_batch_that_is_said(tmp_path):
    inputs, nodes = held_by_a_state([2, 1, 6])
    nodes = beside_each_other(nodes)  # which takes no other batch
    path = built(tmp_path / "m.onnx", inputs, nodes)
    with pytest.raises(gs.SurgeryError, match="node_2"):
        import_onnx(path)
    graph = edited(tmp_path, path, {"x": (1, 5)})
    assert [(spec.shape, spec.batched) for spec in graph.inputs] == [((1, 5), False), ((2, 1, 6), False)]


def test_axes_without_names_are_one_where_their_sizes_are(tmp_path):
    inputs, nodes = held_by_a_state([2, None, 6])
    path = built(tmp_path / "m.onnx", inputs, beside_each_other(nodes))
    graph = edited(tmp_path, path, {"x": (4, 5), "state": (2, 4, 6)})
    assert [spec.shape for spec in graph.inputs] == [(4, 5), (2, 4, 6)]


def test_doctor_knows_which_inputs_have_no_batch(tmp_path, capsys):
    inputs, nodes = with_state(1, False)
    path = built(tmp_path / "m.onnx", inputs, nodes)
    graph = import_onnx(path).graph
    contracts = TraceContracts(graph.module, graph.inputs, large=False, seed=0)
    assert [spec.batched for spec in contracts.traced.inputs] == [False, False]
    assert run(["inspect", str(path)]) == 0
    assert "x [1, 5], state [2, 1, 6]" in capsys.readouterr().out


def test_who_writes_a_space_is_no_name_of_it(tmp_path):
    nodes = [*two_layers(), ("MatMul", ["x", weight(5, 6, seed=3)], "beside", {})]
    nodes = [nodes[0], nodes[3], ("Add", ["hidden", "beside"], "sum", {}), ("Relu", ["sum"], "active", {}), nodes[2]]
    graph = import_onnx(built(tmp_path / "m.onnx", {"x": (np.float32, ["batch", 5])}, nodes)).graph
    (space,) = graph.spaces
    assert len(space.writers) == 2
    with pytest.raises(
        gs.SurgeryError, match=rf"{space.writers[1]} is not a space of this model; it writes {space.name}"
    ):
        compress(graph, {space.writers[1]: 3})
