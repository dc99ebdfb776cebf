"""Inputs by name and in structures, constants among them, and outputs that are chosen by name."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.errors import SurgeryError, TraceError


@dataclasses.dataclass
class Named(OrderedDict):
    """A mapping that is a dataclass, as libraries give it."""

    hidden: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: object = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


class Library(nn.Module):
    """Takes what libraries take: arguments by name, in structures, and switches."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, mask=None, *, pairs=None, scale=1.0, mode="sum", cache=False):
        h = self.a(x)
        if mask is not None:
            h = h * mask[:, None]
        if pairs is not None:
            h = h + pairs["more"][0] * scale + pairs["more"][1]
        logits = self.b(h.relu() if mode == "sum" else h)
        return Named(h, logits, object() if cache else None)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Library().double().eval()


def tensors(*shapes):
    torch.manual_seed(1)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def test_inputs_by_name_and_in_structures(model):
    x, mask, one, two = tensors((2, 4), (2,), (2, 6), (2, 6))
    pairs = {"more": (one, two)}
    graph = gs.trace(model, [x], kwargs={"mask": mask, "pairs": pairs, "scale": 0.5, "mode": "none"})
    assert [spec.name for spec in graph.inputs] == ["x", "mask", "pairs_more_0", "pairs_more_1"]
    x, mask, one, two = tensors((5, 4), (5,), (5, 6), (5, 6))
    expected = model(x, mask, pairs={"more": (one, two)}, scale=0.5, mode="none")
    found = graph(x, mask, one, two)
    assert list(found) == ["hidden", "logits"]
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-12, atol=1e-12)


def test_a_mapping_is_taken_by_name(model):
    x, mask = tensors((2, 4), (2,))
    graph = gs.trace(model, {"x": x, "mask": mask})
    assert [spec.name for spec in graph.inputs] == ["x", "mask"]
    assert type(graph.module).__name__ == "Library"


def test_outputs_by_name(model):
    (x,) = tensors((2, 4))
    one = gs.trace(model, x, outputs="logits")
    torch.testing.assert_close(one(x), model(x)["logits"])
    several = gs.trace(model, x, kwargs={"cache": True}, outputs=["logits", "hidden"])
    assert list(several(x)) == ["logits", "hidden"]
    assert [space.name for space in one.spaces] == ["a"]


def test_what_was_called_is_remembered_where_the_network_goes_back(model):
    x, one, two = tensors((2, 4), (2, 6), (2, 6))
    graph = gs.trace(model, [x], kwargs={"pairs": {"more": [one, two]}, "scale": 2.0}, outputs="logits")
    assert graph.lineage[0]["call"]["kwargs"]["scale"] == 2.0
    installed = gs.install(graph, model)
    assert type(installed) is Library
    given = installed(x, pairs={"more": [one, two]}, scale=2.0)["logits"]
    torch.testing.assert_close(given, graph(x, one, two), rtol=1e-12, atol=1e-12)


def test_it_is_saved_and_loaded_with_its_call(model, tmp_path):
    (x,) = tensors((2, 4))
    graph = gs.compress(gs.trace(model, {"x": x}, outputs="logits"), 0.5)
    gs.save(graph, tmp_path / "small.pt")
    installed = gs.install(gs.load(tmp_path / "small.pt"), model)
    torch.testing.assert_close(installed(x)["logits"], graph(x), rtol=1e-12, atol=1e-12)


class OnTheInstance(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        return self.a(x) * scale


def test_a_forward_that_was_put_on_the_instance():
    model = OnTheInstance()
    model.forward = model.forward
    x = torch.randn(2, 4)
    torch.testing.assert_close(gs.trace(model, [x], kwargs={"scale": 3.0})(x), model(x, 3.0))
    model.forward = lambda x, scale=1.0: x * scale
    with pytest.raises(TraceError, match="its forward has been replaced on the instance"):
        gs.trace(model, [x], kwargs={"scale": 3.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": "logit"}, r"has no output logit; it gives hidden, logits; did you mean logits\?"),
        ({"outputs": "logits.aux"}, r"has no output logits.aux"),
        ({"kwargs": {"pairs": object()}}, r"the example for pairs holds a object, expected tensors, numbers, texts"),
        ({"kwargs": {"pairs": {1: 2}}}, r"the example for pairs holds a dict"),
        ({"kwargs": {"unknown": 1}}, r"unknown"),
    ],
)
def test_what_cannot_be_called_is_refused(model, options, message):
    with pytest.raises(SurgeryError, match=message):
        gs.trace(model, tensors((2, 4)), **options)


def test_hooks_see_other_arguments(model):
    model.register_forward_pre_hook(lambda _, args: args)
    with pytest.raises(TraceError, match="has hooks, which see its arguments by name"):
        gs.trace(model, {"x": torch.zeros(2, 4)})
