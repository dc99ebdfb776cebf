import copy
import json
import math

import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.models.loading import open_pair
from graphsurgery.recipes import doctor, pass_contracts
from graphsurgery.recipes.contracts import TOLERANCES, Contract
from graphsurgery.recipes.doctor import examine
from graphsurgery.recipes.subjects import randomize
from graphsurgery.verify import deviation, double

MIXED = "gates 0 or 1 = compressed, mixed spaces"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Transformer(nn.Module):
    """One block with LayerNorm, attention and dropout; `[batch, 5, 4]` to `[batch, 3]`."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(x)).mean(1))


def statuses(report):
    return {contract.name: contract.status for contract in report.contracts}


@pytest.mark.parametrize("spec", ["paper/mlp", "paper/cnn?width=4", "paper/resnet20?width=4&in_channels=1"])
def test_every_contract_holds(spec):
    graph, module = open_pair(spec)
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    report = examine(graph, module)
    assert statuses(report) == {name: "holds" for name in TOLERANCES if name != MIXED}
    assert report.holds
    assert report.parameters == sum(p.numel() for p in module.parameters())
    assert 0.9 < report.editable <= 1
    assert 0 < report.kept < 0.6
    torch.testing.assert_close(dict(graph.module.state_dict()), before, rtol=0, atol=0)


def test_mixed_spaces_are_stated_and_not_promised():
    module = Transformer().eval()
    report = examine(gs.trace(module, torch.zeros(2, 5, 4)), module, onnx=False)
    assert statuses(report)[MIXED] == "stated"
    contract = next(c for c in report.contracts if c.name == MIXED)
    assert contract.measured > 1e-6
    assert "not exact: 1 spaces are mixed by layer_norm" in contract.note
    assert set(statuses(report).values()) == {"holds", "stated"}


def test_a_pass_that_refuses_gives_its_reason():
    report = examine(gs.trace(nn.Linear(4, 3), torch.zeros(2, 4)), onnx=False)
    refused = {c.name: c.refused for c in report.contracts if c.status == "refused"}
    assert "no space can be gated" in refused["gates open = no gates"]
    assert "no channel can be removed" in refused["compressed keeps its spaces"]
    assert report.holds
    assert report.kept is None


def test_a_mistake_in_a_pass_is_a_finding(monkeypatch):
    def broken(*_args, **_kwargs):
        raise IndexError("index 4 is out of range")

    monkeypatch.setattr(pass_contracts, "concatenate", broken)
    graph, _ = open_pair("paper/mlp")
    report = examine(graph, onnx=False)
    contract = next(c for c in report.contracts if c.name == "concatenated = mean of two")
    assert (contract.status, contract.note) == ("fails", "IndexError: index 4 is out of range")
    assert not report.holds
    assert "Infinity" not in json.dumps(report.as_dict())


def test_a_wrong_trace_is_found():
    graph, module = open_pair("paper/mlp")

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, x):
            return self.net(x) * (1.5 if torch.compiler.is_compiling() or type(x) is torch.Tensor else 1.0)

    report = examine(graph, Other(), onnx=False)
    assert statuses(report)["traced = eager, evaluating"] == "fails"


def test_large_networks_are_measured_on_a_cut(monkeypatch):
    monkeypatch.setattr(doctor, "LARGE", 100)
    graph, module = open_pair("paper/mlp")
    report = examine(graph, module, onnx=False)
    assert report.holds
    assert report.parameters == 301
    notes = {c.name: c.note for c in report.contracts}
    assert notes["traced = eager, evaluating"] == "in float32"
    assert notes["gates open = no gates"] == "on a cut to 41% of every space"


def test_double_keeps_the_function():
    graph, _ = open_pair("paper/cnn?width=4")
    twice = double(graph)
    x = graph.example_inputs()
    graph.module.eval()
    assert [spec.dtype for spec in twice.inputs] == [torch.float64]
    assert [s.name for s in twice.spaces] == [s.name for s in graph.spaces]
    assert deviation(twice(x[0].double()), graph(*x)) < 1e-5


def test_randomize_shows_what_fresh_networks_hide():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).double()
    nn.init.zeros_(module[3].weight)
    twin = copy.deepcopy(module)
    randomize(module, 0)
    assert module[3].weight.abs().max() > 0.1
    assert module[1].running_var.unique().numel() == 4
    assert bool(((module[1].weight >= 0.5) & (module[1].weight <= 1.5)).all())
    randomize(twin, 0)
    torch.testing.assert_close(dict(module.state_dict()), dict(twin.state_dict()), rtol=0, atol=0)


def test_infinity_fails():
    assert Contract("saved and loaded = original", math.inf, 0.0, 0.0).status == "fails"
