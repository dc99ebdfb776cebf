"""Files with operators to which the order of channels means something: cut, widened and written back."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen

MIDDLE = {
    "LRN": lambda: helper.make_node("LRN", ["r"], ["b"], size=3),
    "CumSum": lambda: helper.make_node("CumSum", ["r", "axis"], ["b"]),
    "Softmax": lambda: helper.make_node("Softmax", ["r"], ["b"], axis=1),
}


def file_with(middle, path):
    """A file `[batch, 3, 4, 4]` to `[batch, 4, 4, 4]` with an operator between two convolutions."""
    draw = np.random.default_rng(0)
    weights = {"w1": (8, 3, 1, 1), "w2": (4, 8, 1, 1)}
    tensors = [numpy_helper.from_array(draw.standard_normal(s).astype(np.float32), n) for n, s in weights.items()]
    tensors.append(numpy_helper.from_array(np.array(1, np.int64), "axis"))
    first = [helper.make_node("Conv", ["x", "w1"], ["a"]), helper.make_node("Relu", ["a"], ["r"])]
    nodes = [*first, middle, helper.make_node("Conv", ["b", "w2"], ["y"])]
    ends = [helper.make_tensor_value_info(name, 1, ["n", size, 4, 4]) for name, size in (("x", 3), ("y", 4))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("name", MIDDLE)
def test_an_operator_of_a_file_computes_at_its_old_size(name, tmp_path):
    file_with(MIDDLE[name](), tmp_path / "m.onnx")
    graph = import_onnx(tmp_path / "m.onnx").graph
    assert [space.size for space in graph.spaces] == [8]
    edits = [widen(graph, 1.5)] if name == "Softmax" else [compress(graph, 0.5), widen(graph, 1.5)]
    for number, edited in enumerate(edits):
        assert rewrite_onnx(tmp_path / "m.onnx", edited, tmp_path / f"{number}.onnx").holds
        kinds = [node.op_type for node in onnx.load(tmp_path / f"{number}.onnx").graph.node]
        assert name in kinds
        assert "Gather" in kinds
