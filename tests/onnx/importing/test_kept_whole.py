"""Operators of a file that are kept whole count among its weights, and say what they cannot."""

import onnx
import pytest
import torch
from onnx_files import scripted
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
