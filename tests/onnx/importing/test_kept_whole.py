"""Operators of a file that are kept whole count among its weights, and say what they cannot."""

import numpy as np
import onnx
import pytest
import torch
from onnx_files import built, scripted, weight
from torch import nn

import graphsurgery as gs
from graphsurgery.axes.maps import Widths
from graphsurgery.cli import run
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.channels.planned_cost import PlannedCost


class Listening(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.more = nn.Conv1d(3, 16, 3), nn.Conv1d(16, 8, 3)
        self.gru, self.head = nn.GRU(8, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.more(torch.relu(self.conv(x))))
        return self.head(self.gru(x.transpose(1, 2))[0][:, -1])


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    path = scripted(Listening(), torch.randn(2, 3, 20), tmp_path / "m.onnx")
    model = onnx.load(path)
    gru = next(node for node in model.graph.node if node.op_type == "GRU")
    # With the reset gate in front of the product, which torch does not have.
    kept = [attribute for attribute in gru.attribute if attribute.name != "linear_before_reset"]
    del gru.attribute[:]
    gru.attribute.extend(kept)
    onnx.save(model, path)
    return path


def held(path):
    """How many numbers the weights of a file have."""
    found = [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    return sum(onnx.numpy_helper.to_array(tensor).size for tensor in found)


def test_their_weights_are_counted(file):
    graph = import_onnx(file).graph
    found = cost(graph)
    assert abs(found.parameters - sum(p.numel() for p in Listening().parameters())) <= 12  # a state of zeros
    assert found.parameters >= held(file)
    assert len(found.uncounted) == 1
    assert PlannedCost(graph).at(Widths({})) == found
    small = compress(graph, 0.5)
    assert found.parameters - cost(small).parameters == (3 * 3 + 1) * 8 + 3 * 8 * 8
    assert found.bytes - cost(small).bytes == 4 * (found.parameters - cost(small).parameters)


def test_a_target_is_met_on_what_the_file_has(file, tmp_path, capsys):
    assert run(["compress", str(file), "--target", "params=0.85x", "-o", str(tmp_path / "s.onnx")]) == 0
    shown = capsys.readouterr().out
    assert "MACs without" in shown
    assert 0.75 < held(tmp_path / "s.onnx") / held(file) <= 0.85
    assert run(["compress", str(file), "--target", "params=0.2x", "-o", str(tmp_path / "t.onnx")]) == 2
    assert "params=0.2x cannot be reached" in capsys.readouterr().err
    assert run(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "MACs without" in shown
    assert "``" not in shown
    assert shown.splitlines()[-1].endswith("-o small.onnx")


def test_they_cannot_be_exported_anew(file, tmp_path, capsys):
    graph = import_onnx(file).graph
    with pytest.raises(gs.UnsupportedError, match=r"an operator of an .onnx file that is kept whole; compress"):
        gs.export_onnx(graph, tmp_path / "again.onnx")
    assert run(["export", str(file), "-o", str(tmp_path / "again.onnx")]) == 3
    assert capsys.readouterr().err.startswith(f"error  {tmp_path / 'again.onnx'}: the network cannot be exported")
    assert not (tmp_path / "again.onnx").exists()


def around(path, middle, inputs=None, opset=17):
    """A layer, what is tried, and a layer behind it."""
    first = [("MatMul", ["x", weight(5, 8)], "hidden", {}), ("Relu", ["hidden"], "h", {})]
    last = [("MatMul", ["m", weight(8, 6, seed=1)], "more", {}), ("Relu", ["more"], "r", {})]
    inputs = inputs or {"x": (np.float32, ["batch", 5])}
    return built(
        path, inputs, [*first, *middle, *last, ("MatMul", ["r", weight(6, 3, seed=2)], "out", {})], opset=opset
    )


def rewritten(path, tmp_path):
    """The network of a file, cut and written back, which is compared in ONNX Runtime."""
    graph = import_onnx(path).graph
    gs.rewrite_onnx(path, compress(graph, 0.5), tmp_path / "small.onnx")
    return graph


def test_a_reversed_sequence_is_none_of_tensors(tmp_path):
    inputs = {"x": (np.float32, ["batch", 4, 5]), "lengths": (np.int64, ["batch"])}
    middle = [("ReverseSequence", ["h", "lengths"], "m", {"time_axis": 1, "batch_axis": 0})]
    graph = rewritten(around(tmp_path / "m.onnx", middle, inputs), tmp_path)
    assert [space.size for space in graph.spaces] == [6]  # what is kept whole freezes what it touches


def test_sizes_go_into_what_is_kept_whole(tmp_path):
    """A loop that runs as often as a sequence is long, which the file counts in 32 bits."""
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["go"], ["on"]), onnx.helper.make_node("Mul", ["v", "half"], ["w"])],
        "body",
        [
            onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, None),
        ],
        [
            onnx.helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, None),
        ],
    )
    middle = [
        ("Shape", ["x"], "shape", {}), ("Gather", ["shape", np.array(0)], "n", {}), ("Cast", ["n"], "n32", {"to": 6}),
        ("Cast", ["n32"], "count", {"to": 7}), ("Identity", ["h"], "m", {}),
    ]  # fmt: skip
    path = around(tmp_path / "m.onnx", middle)
    model = onnx.load(path)
    at = next(number for number, node in enumerate(model.graph.node) if node.op_type == "Identity")
    model.graph.node[at].CopyFrom(onnx.helper.make_node("Loop", ["count", "yes", "h"], ["m"], "loop", body=body))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    onnx.save(model, path)
    graph = rewritten(path, tmp_path)
    assert [space.size for space in graph.spaces] == [6]


def test_of_two_branches_one_takes_the_sizes(tmp_path):
    """Without values nobody knows which is taken; one that cannot run is not."""
    bad, good = (
        onnx.helper.make_graph(
            [onnx.helper.make_node("Reshape", ["h", name], ["b"])], name, [], [onnx.ValueInfoProto(name="b")]
        )
        for name in ("five", "eight")
    )
    path = around(
        tmp_path / "m.onnx", [("Identity", ["h"], "m", {})], {"x": (np.float32, ["batch", 5]), "way": (np.bool_, [])}
    )
    model = onnx.load(path)
    at = next(number for number, node in enumerate(model.graph.node) if node.op_type == "Identity")
    model.graph.node[at].CopyFrom(onnx.helper.make_node("If", ["way"], ["m"], "if", then_branch=good, else_branch=bad))
    for size, name in ((5, "five"), (8, "eight")):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, size]), name))
    onnx.save(model, path)
    graph = import_onnx(path, check=False).graph
    assert [space.size for space in graph.spaces] == [6]


def test_where_all_is_kept_whole_the_reason_is_said(tmp_path):
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["b"])], "body", [], [onnx.ValueInfoProto(name="b")],
        [onnx.numpy_helper.from_array(weight(5, 3), "w")],
    )  # fmt: skip
    node = onnx.helper.make_node("If", ["yes"], ["out"], "if", then_branch=body, else_branch=body)
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", n])
        for name, n in (("x", 5), ("out", 3))
    ]
    yes = onnx.helper.make_tensor_value_info("yes", onnx.TensorProto.BOOL, [])
    graph = onnx.helper.make_graph([node], "g", [ends[0], yes], ends[1:])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    graph = import_onnx(tmp_path / "m.onnx").graph
    message = r"all its weights are in what is kept whole \(if is a If, which is not translated\)"
    with pytest.raises(gs.SurgeryError, match=message):
        compress(graph, 0.5)


def test_what_is_pooled_and_unpooled_is_kept_whole(tmp_path):
    """Its indices count through all channels, which torch's do not; what lies beside it is edited."""
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        ("MaxPool", ["x"], ["p", "i"], pool), ("MaxUnpool", ["p", "i"], "z", pool),
        ("Conv", ["z", weight(6, 3, 1, 1)], "a", {}), ("Relu", ["a"], "b", {}),
        ("Conv", ["b", weight(4, 6, 1, 1, seed=3)], "out", {}),
    ]  # fmt: skip
    path = built(tmp_path / "m.onnx", {"x": (np.float32, ["batch", 3, 6, 4])}, nodes)
    assert [space.size for space in rewritten(path, tmp_path).spaces] == [6]
