"""Layers of users that act in training only: traced, cut, saved, and opened without their class."""

import copy
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import graphsurgery as gs
from graphsurgery.errors import CheckpointError
from graphsurgery.network.training_only import InTraining
from graphsurgery.onnx.exporting.exporter import export_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.deviation import deviation


class DropPath(nn.Module):
    """Another class of this name, with another name for its share, and other draws."""

    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.p == 0 or not self.training:
            return x
        keep = 1 - self.p
        mask = (keep + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)).floor_()
        return x.div(keep) * mask


class OldDropPath(DropPath):
    """timm's of some years ago."""

    def __init__(self, drop_prob=0.5):
        super().__init__(drop_prob)
        self.drop_prob = drop_prob


class Noise(nn.Module):
    def forward(self, x):
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        return x


class InPlace(nn.Module):
    def forward(self, x):
        return x * x.new_empty(x.size()).bernoulli_(0.8).div_(0.8) if self.training else x


class DropBlock(nn.Module):
    def __init__(self, size=3, p=0.3):
        super().__init__()
        self.size, self.p = size, p

    def forward(self, x):
        if not self.training:
            return x
        gamma = self.p / self.size**2
        seeds = (torch.rand(x.shape[0], *x.shape[2:]) < gamma).to(x.dtype)
        kept = 1 - F.max_pool2d(seeds[:, None], self.size, 1, self.size // 2)
        return x * kept * kept.numel() / kept.sum()


class Table(nn.Module):
    """Has a constant, and a dropout written as a function."""

    def __init__(self):
        super().__init__()
        self.scale = 2.0

    def forward(self, x):
        if not self.training:
            return x
        return F.dropout(x, 0.3, self.training) * torch.tensor([1.0, self.scale]).mean()


class Chance(nn.Module):
    """Draws from Python, which no graph does."""

    def forward(self, x):
        return x * random.random() if self.training else x


class Narrow(nn.Module):
    """Decides by the width."""

    def forward(self, x):
        if not self.training:
            return x
        return x * 2 if x.shape[1] == 6 else x * 3


LAYERS = {kind.__name__: kind for kind in (DropPath, OldDropPath, Noise, InPlace, DropBlock, Table)}


def network(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), layer, nn.ReLU(), nn.Conv2d(6, 2, 1))


def drawn(module, x, seed=1):
    torch.manual_seed(seed)
    return module(x)


@pytest.mark.parametrize("name", LAYERS)
def test_it_trains_as_its_class_wherever_it_goes(name, tmp_path):
    model, x = network(LAYERS[name]()), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = gs.trace(model, x)
    assert [space.name for space in graph.spaces] == ["0"]
    assert type(graph.module.get_submodule("1")) is InTraining
    gs.save(graph, tmp_path / "a.pt")
    stored = gs.load(tmp_path / "a.pt").module
    again = gs.trace(graph.module, x).module
    for module in (graph.module, stored, again, copy.deepcopy(stored), pickle.loads(pickle.dumps(stored))):
        for size in (8, 11):
            x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(size))
            for mode in (True, False):
                expected, state = drawn(model.train(mode), x), torch.get_rng_state()
                torch.testing.assert_close(drawn(module.train(mode), x), expected, rtol=0, atol=0)
                assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_cut_widened_merged_and_exported(name, tmp_path):
    model, x = network(LAYERS[name]()), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = gs.trace(model.eval(), x)
    small = compress(graph, {"0": [0, 2, 5]})
    gs.save(small, tmp_path / "small.pt")
    wide, both = widen(graph, to={"0": 9}), concatenate([graph, gs.trace(network(LAYERS[name]()), x)])
    for found in (small, wide, both, gs.load(tmp_path / "small.pt")):
        found.module.train()
        assert drawn(found, x).isfinite().all()
        assert type(found.module.get_submodule("1")) is InTraining
    with torch.no_grad():
        assert deviation(wide.module.eval()(x), model(x)) < 1e-5
        assert deviation(both.module.eval()(x), model(x)) < 1e-5
        model[3].weight[:, [1, 3, 4]] = 0
        assert deviation(small.module.eval()(x), model(x)) < 1e-5
        if name not in ("Noise", "InPlace", "Table"):  # these draw for each channel
            assert deviation(drawn(small.module.train(), x), drawn(model.train(), x)) < 1e-5
    export_onnx(small, tmp_path / "a.onnx")


@pytest.mark.parametrize("layer", [Chance(), Narrow()], ids=["Chance", "Narrow"])
def test_what_cannot_be_followed_stays_its_class_and_is_not_saved(layer, tmp_path):
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = gs.trace(network(layer), x)
    assert type(graph.module.get_submodule("1")) is type(layer)
    with pytest.raises(
        gs.SurgeryError, match=rf"1: a layer of class .*{type(layer).__name__} cannot be stored; .*one that"
    ):
        gs.save(graph, tmp_path / "a.pt")


def test_drop_path_of_timm_is_that_of_torchvision():
    timm = pytest.importorskip("timm")
    graph = gs.trace(network(timm.layers.DropPath(0.3)), torch.zeros(2, 3, 8, 8))
    assert type(graph.module.get_submodule("1")) is torchvision.ops.StochasticDepth


def stored(tmp_path, change):
    """A checkpoint whose layer was altered, with the digest that it then has."""
    from graphsurgery.checkpoint.files import _digest

    gs.save(gs.trace(network(Noise()).eval(), torch.zeros(2, 3, 8, 8)), tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    change(content["graph"]["modules"]["1"])
    content["digest"] = _digest(content["graph"])
    torch.save(content, tmp_path / "a.pt")


ALTERED = {
    r"function 'os.system' is not one that a checkpoint may call": lambda e: e["nodes"][1].update(target="os.system"),
    r"1: output: expected one output, at the end": lambda e: e["nodes"].pop(),
    r"1: the description is damaged \(KeyError": lambda e: e.pop("nodes"),
    r"'x;y' is not a plain name": lambda e: e.update(kind="x;y"),
    r"gives something else in training": lambda e: e["nodes"][-1].update(args=[3]),
    r"cannot be run in training": lambda e: e["nodes"][1]["kwargs"].update(dtypes=1),
    r"has one input": lambda e: e["nodes"].insert(
        1, {"name": "y", "op": "placeholder", "target": "y", "args": [], "kwargs": {}}
    ),
}


@pytest.mark.parametrize("message", ALTERED)
def test_files_that_say_something_else_are_refused(message, tmp_path):
    stored(tmp_path, ALTERED[message])
    with pytest.raises(CheckpointError, match=message):
        gs.load(tmp_path / "a.pt")
