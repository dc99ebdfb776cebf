"""Traced and edited networks in the hands of torch's and Python's own tools; names that are no Python names."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from patience import PATIENCE
from torch import fx, nn

import graphsurgery as gs
from graphsurgery.models.detection.parts import Part, replaced
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import gate
from graphsurgery.passes.widen import widen
from graphsurgery.recipes.delivery.deliver import deliver


class Decides(nn.Module):
    """Checks a size, asks the mode, mixes channels by a norm, and has heads."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        h = torch.relu(self.a(x))
        if h.shape[2] > 3:
            h = h * 2
        factor = 2.0 if self.training else 3.0
        h = self.norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * factor
        return self.c(torch.tanh(self.b(h)))


def by_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


TOOLS = {
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": by_torch_save,
    "deepcopy": copy.deepcopy,
    "symbolic_trace": lambda module: fx.symbolic_trace(module),
    "trace": lambda module: gs.trace(module, torch.zeros(2, 3, 4, 4)).module,
}
EDITS = {
    "as traced": lambda graph: graph,
    "widened": lambda graph: widen(graph, to={"a": 13, "b": 11}),
    "gated": gate,
    "cut": lambda graph: compress(graph, 0.5),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("edit", EDITS)
def test_a_tool_gives_the_same_network(edit, tool):
    torch.manual_seed(0)
    module = EDITS[edit](gs.trace(Decides().eval(), torch.zeros(2, 3, 4, 4))).module.eval()
    x = torch.randn(3, 3, 4, 4)
    found = TOOLS[tool](module).eval()
    with torch.no_grad():
        torch.testing.assert_close(found(x), module(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"trace the model at this input size"):
        found(torch.zeros(3, 3, 2, 4))


class Named(nn.Module):
    def __init__(self, keys):
        super().__init__()
        self.parts = nn.ModuleDict({key: nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for key in keys})
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for key in self.parts:
            x = self.parts[key](x)
        return self.head(x)


@pytest.mark.parametrize("keys", [("class", "for"), ("a b", "c-d"), ("1", "2x"), ("None", "print", "is not", "is")])
def test_modules_may_have_names_that_are_no_python_names(keys, tmp_path):
    torch.manual_seed(0)
    network = Named(keys)
    graph = gs.trace(network, torch.zeros(2, 4))
    x = torch.randn(3, 4)
    assert [space.name for space in graph.spaces] == [f"parts.{key}.0" for key in keys]
    with torch.no_grad():
        wide = widen(graph, 1.5)
        torch.testing.assert_close(wide(x), network(x))
        for new in (wide, compress(graph, 0.5), gate(graph)):
            gs.save(new, tmp_path / "new.pt")
            again = gs.load(tmp_path / "new.pt").module
            torch.testing.assert_close(again.eval()(x), new.module.eval()(x), rtol=0, atol=0)
            for tool in ("pickle", "torch.save", "deepcopy", "trace"):
                found = TOOLS[tool](again) if tool != "trace" else gs.trace(again, torch.zeros(2, 4)).module
                torch.testing.assert_close(found(x), again(x), rtol=0, atol=0)
                assert dict(found.named_parameters()).keys() == dict(again.named_parameters()).keys()


def test_a_part_of_a_detector_may_have_such_names():
    torch.manual_seed(0)
    network, x = Named(("class", "for")), torch.randn(3, 4)
    module = gs.trace(network, torch.zeros(2, 4)).module
    layers = {str(n.target): module.get_submodule(str(n.target)) for n in module.graph.nodes if n.op == "call_module"}
    found = replaced(copy.deepcopy(network), Part(module.graph, layers))
    torch.testing.assert_close(found(x), network(x))


@pytest.mark.parametrize("keys", [("class", "class_"), ("a b", "for"), ("None", "is")])
def test_networks_with_such_names_are_exported(keys, tmp_path):
    torch.manual_seed(0)
    graph = compress(gs.trace(Named(keys), torch.zeros(2, 4)), 0.5)
    names = list(graph.tensors())
    assert deliver(graph, tmp_path / "m.onnx").check.holds
    assert list(graph.tensors()) == names


def test_slow_libraries_are_imported_by_those_who_need_them(tmp_path):
    """A network without layers of torchvision is traced, typed, cut, counted and stored without it.

    Nor is torch's compiler imported, which torch's own shapes of most operators would do.
    """
    code = """
import gc; gc.disable()
import sys, torch, graphsurgery as gs
from torch import nn
class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.q = nn.Parameter(torch.zeros(1, 1, 8)), nn.Linear(8, 8)
        self.norm, self.up, self.down, self.act = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.GELU()
    def forward(self, x):
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + torch.nn.functional.scaled_dot_product_attention(self.q(x), x, x)
        return (x + self.down(self.act(self.up(self.norm(x))))).mean(1)
network = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(3),
    Tokens(), nn.Linear(8, 2),
)
graph = gs.compress(gs.trace(network.eval(), torch.zeros(2, 3, 8, 8)), 0.5)
gs.save(graph, sys.argv[1])
loaded = gs.load(sys.argv[1])
assert loaded.module.get_parameter("4.weight").shape[1] == 4 and gs.cost(loaded).macs > 0
print([name for name in ("torchvision", "torch._dynamo", "sympy") if name in sys.modules])
"""
    found = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "n.pt"], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert found.stdout == "[]\n"
