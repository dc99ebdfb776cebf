"""Relabel: logits at the numbers of their classes."""

import pytest
import torch
from torch import nn
from zoo import traced

import graphsurgery as gs
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.relabel import relabel
from graphsurgery.surgery.deviation import deviation


@pytest.mark.parametrize("name", ["paper/cnn", "resnet18", "vit", "mobilenet_v3"])
@pytest.mark.parametrize("classes", [[*range(9, -1, -1)], [7, 3, 0, 1, 4, 10, 6, 5, 9, 11]])
def test_known_logits_stay(name, classes):
    graph, x = traced(name)
    count = max(classes) + 1
    new = relabel(graph, classes, count)
    unknown = [c for c in range(count) if c not in classes]
    with torch.no_grad():
        logits, old = new(x), graph(x)
    assert logits.shape == (len(x), count)
    assert deviation(logits[:, classes], old) < 1e-12
    if unknown:
        assert deviation(logits[:, unknown], old.mean(1, keepdim=True).expand(-1, len(unknown))) < 1e-12


def test_in_onnx_runtime(tmp_path):
    new = relabel(traced("paper/cnn")[0], [0, 1, 2, 3, 4, 5, 6, 7, 9, 10], 11)
    gs.export_onnx(new, tmp_path / "new.onnx")
    assert gs.check_onnx(new, tmp_path / "new.onnx").deviation <= 1e-4
    gs.save(new, tmp_path / "new.pt")
    assert gs.load(tmp_path / "new.pt").lineage[-1]["pass"] == "relabel"


def test_networks_of_other_classes_have_a_direct_sum():
    (a, x), (b, _) = traced("paper/cnn", 0), traced("paper/cnn", 1)
    one, other = relabel(a, [*range(10)], 12), relabel(b, [*range(2, 12)], 12)
    with torch.no_grad():
        assert deviation(concatenate([one, other])(x), (one(x) + other(x)) / 2) < 1e-12


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 1], "2 classes are given, the network has 3 logits; give one each"),
        ([0, 1, 1], "class 1 is given twice; give each logit a class of its own from 0 to 3"),
        ([0, 1, 4], "class 4 does not exist; give each logit a class of its own from 0 to 3"),
    ],
)
def test_refuses_other_classes(classes, message):
    graph = gs.trace(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)), torch.zeros(2, 2))
    with pytest.raises(gs.SurgeryError, match=message):
        relabel(graph, classes, 4)


def test_refuses_what_is_no_logits():
    network = nn.Sequential(nn.Linear(2, 4), nn.Softmax(-1)).double()
    graph = gs.trace(network, torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(gs.SurgeryError, match="logits are mixed by softmax at 1, so that a class more would change"):
        relabel(graph, [0, 1, 2, 3], 5)
    x = torch.randn(3, 2, dtype=torch.float64)
    assert deviation(relabel(graph, [3, 1, 2, 0], 4)(x), graph(x)[:, [3, 1, 2, 0]]) < 1e-12
    two = gs.trace(nn.Conv2d(1, 2, 1), torch.zeros(2, 1, 4, 4))
    with pytest.raises(gs.SurgeryError, match=r"gives \[\[2, 2, 4, 4\]\], expected one output \[batch, logits\]"):
        relabel(two, [0, 1], 2)
