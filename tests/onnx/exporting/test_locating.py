"""The first node of a file that computes something else is named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.errors import CheckFailedError
from graphsurgery.onnx.exporting import check_onnx, checking, export_onnx, locating
from graphsurgery.onnx.exporting.judging import Judgement
from graphsurgery.onnx.exporting.locating import first_difference


class Net(nn.Module):
    """Convolutions with norms, which the exporter fuses, and attention, which it takes to pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.scale = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + F.relu(self.body(x))
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.scale(x)).chunk(3, -1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        scores = (q @ k.transpose(1, 2)).masked_fill(mask.logical_not(), float("-inf"))
        x = x + self.out(scores.softmax(-1) @ v)
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = Net().eval()
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    graph = gs.trace(model, torch.zeros(2, 1, 4, 4))
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    export_onnx(graph, path)
    check_onnx(graph, path, rtol=1e-5)
    return graph, path


@pytest.fixture(autouse=True, scope="module")
def exported_once():
    """What the exporter makes of a network, which is asked for in nearly every test, is kept for the next."""
    programs = {}

    def export_program(graph, opset):
        # Where the weights are the same memory; the graph is kept with the program, so that it stays taken.
        key = graph.module.code, opset, tuple(t.data_ptr() for t in graph.tensors().values())
        if key not in programs:
            programs[key] = locating_export(graph, opset), graph
        return programs[key][0]

    locating_export = locating.export_program
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locating, "export_program", export_program)
        yield


def readers(model, name):
    return [node for node in model.graph.node if name in node.input]


def damageable(path):
    """The weights of numbers, by name."""
    return [t.name for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]


def damaged(path, name, folder):
    """The file with one weight changed, and the nodes that read it."""
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[-1] = np.nan_to_num(values.flat[-1], neginf=0) + 3
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, folder / "damaged.onnx")
    return folder / "damaged.onnx", readers(model, name)


def test_nothing_differs_in_a_good_file(exported):
    graph, path = exported
    assert first_difference(graph, path, graph.example_inputs(3)) is None


@pytest.mark.parametrize("number", [0, 3, 5, 8, -1])
def test_a_damaged_weight_is_found(exported, tmp_path, number):
    graph, path = exported
    file, expected = damaged(path, damageable(path)[number], tmp_path)
    found = first_difference(graph, file, graph.example_inputs(2))
    assert (found.node, found.operator) == (expected[0].name, expected[0].op_type)
    assert found.deviation > 1e-4
    assert found.between == ()


def test_a_failed_check_names_the_node(exported, tmp_path):
    graph, path = exported
    file, (reader,) = damaged(path, "body.weight", tmp_path)
    wanted = rf"first node that differs is {reader.name} \(Conv of body\), by \d\.\de"
    with pytest.raises(CheckFailedError, match=wanted):
        check_onnx(graph, file)
    check = check_onnx(graph, file, raise_on_failure=False)
    assert (check.first.node, check.first.layer) == (reader.name, "body")


def test_what_differs_on_real_inputs_alone_is_found(tmp_path):
    """The unit whose weight is damaged is off for all but large inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    nn.init.constant_(model[0].bias, -1e3)
    graph = gs.trace(model, torch.zeros(2, 2))
    export_onnx(graph, tmp_path / "m.onnx")
    file, (reader,) = damaged(tmp_path / "m.onnx", "0.weight", tmp_path)
    assert check_onnx(graph, file).first is None
    real = torch.zeros(3, 2)
    real[1] = 1e4
    check = check_onnx(graph, file, inputs=[real], raise_on_failure=False)
    assert not check.holds
    assert check.first.node == reader.name


def test_not_a_number_is_a_difference(exported, tmp_path):
    graph, path = exported
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "body.weight")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "m.onnx")
    check = check_onnx(graph, tmp_path / "m.onnx", raise_on_failure=False)
    assert (check.first.layer, check.first.deviation) == ("body", float("inf"))


def test_what_only_fusion_makes_differ_is_said(exported, monkeypatch):
    graph, path = exported
    monkeypatch.setattr(checking, "judge", lambda runs, *_: Judgement({run.label: 1.0 for run in runs}))
    with pytest.raises(CheckFailedError, match="every value by itself agrees, so what ONNX Runtime fuses differs"):
        check_onnx(graph, path)


def test_a_search_that_fails_does_not_hide_the_failure(exported, tmp_path, monkeypatch):
    graph, path = exported
    file, _ = damaged(path, "body.weight", tmp_path)

    def failing(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr(checking, "first_difference", failing)
    with pytest.raises(CheckFailedError, match="the node could not be looked for: no memory"):
        check_onnx(graph, file)
