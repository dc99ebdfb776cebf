"""Convolutions in double precision give part by part what they give at once, in a fraction of the memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import graphsurgery as gs
from graphsurgery.network.outputs import strips
from graphsurgery.network.outputs.naming import run
from graphsurgery.network.outputs.strips import ConvolutionsInStrips
from graphsurgery.recipes.contracts.subjects import calibrate
from graphsurgery.surgery.deviation import InDouble, double
from graphsurgery.surgery.masks.constants import constants

LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def counted(monkeypatch, layer, x):
    """What a layer gives in strips of at most 200 bytes, and the shapes that its kernel was given."""
    monkeypatch.setattr(strips, "_LAID_OUT", 200)
    seen = []

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.extend([args[0].shape] if func in strips._CONVOLUTIONS else [])
            return func(*args, **(kwargs or {}))

    with Watched(), ConvolutionsInStrips():
        return layer(x), seen


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_a_convolution_gives_stays(data):
    axes = data.draw(st.integers(1, 3))
    sizes, kernel, stride, dilation = (
        tuple(data.draw(st.integers(low, high)) for _ in range(axes))
        for low, high in ((5, 9), (1, 3), (1, 3), (1, 2))
    )  # fmt: skip
    groups = data.draw(st.sampled_from((1, 2)))
    same = data.draw(st.booleans()) and set(stride) == {1}
    padding = "same" if same else tuple(data.draw(st.integers(0, 2)) for _ in range(axes))
    mode = data.draw(st.sampled_from(("zeros", "circular")))
    layer = LAYERS[axes](4, 6, kernel, stride, padding, dilation, groups, data.draw(st.booleans()), mode).double()
    x = torch.randn(data.draw(st.integers(1, 3)), 4, *sizes, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        found, _ = counted(patch, layer, x)
    torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axes", LAYERS)
def test_no_more_is_laid_out_than_is_said(monkeypatch, axes):
    layer = LAYERS[axes](2, 3, 2, padding=1).double()
    found, seen = counted(monkeypatch, layer, torch.randn(4, 2, *[6] * axes, dtype=torch.float64))
    assert len(seen) > 4
    assert all(shape[0] == 1 for shape in seen)
    assert sum(shape[2] - 1 for shape in seen) == 4 * 7 or axes > 1
    assert found.shape == (4, 3, *[7] * axes)


def test_examples_stay_together_where_they_are_small(monkeypatch):
    _, seen = counted(monkeypatch, nn.Conv1d(1, 1, 2).double(), torch.randn(9, 1, 6, dtype=torch.float64))
    assert [shape[0] for shape in seen] == [2, 2, 2, 2, 1]


PLAIN = {"single precision": (torch.float32, 3), "no batch": (torch.float64, 2), "on meta": (torch.float64, 3)}


@pytest.mark.parametrize("case", PLAIN)
def test_what_is_not_laid_out_is_left_as_it_is(monkeypatch, case):
    dtype, dims = PLAIN[case]
    device = "meta" if case == "on meta" else "cpu"
    layer = nn.Conv1d(4, 6, 3).to(dtype).to(device)
    found, seen = counted(monkeypatch, layer, torch.zeros(*[2, 4, 90][-dims:], dtype=dtype, device=device))
    assert [len(shape) for shape in seen] == [dims]
    assert found.shape[-2:] == (6, 88)


@pytest.mark.parametrize(
    ("x", "match"), [((2, 3, 9), "to have 4 channels"), ((2, 4, 1), "Kernel size can't be greater")]
)
def test_torch_says_what_is_wrong(monkeypatch, x, match):
    with pytest.raises(RuntimeError, match=match):
        counted(monkeypatch, nn.Conv1d(4, 6, 3).double(), torch.zeros(x, dtype=torch.float64))


def test_gradients_are_those_of_the_whole(monkeypatch):
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    x = torch.randn(3, 2, 7, 5, dtype=torch.float64)
    gradients = []
    for found in (counted(monkeypatch, layer, x)[0], layer(x)):
        gradients.append(torch.autograd.grad(found.square().sum(), list(layer.parameters())))
    for a, b in itertools.zip_longest(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


MEASURED = {
    "a run": lambda graph: run(graph.module, graph.example_inputs(2), 0),
    "a copy in float64": lambda graph: InDouble(graph)(*graph.example_inputs(2)),
    "channels that are constant": constants,
    "statistics": lambda graph: calibrate(graph.module, graph.inputs, torch.float64, 0),
}


@pytest.mark.parametrize("case", MEASURED)
def test_what_measures_in_double_precision_has_strips(monkeypatch, case):
    layers = (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 3))
    graph = double(gs.trace(nn.Sequential(*layers).eval(), torch.zeros(2, 3, 9)))
    called, usual = [], strips._convolved
    monkeypatch.setattr(strips, "_convolved", lambda *args, **options: (called.append(1), usual(*args, **options))[1])
    MEASURED[case](graph)
    assert called
