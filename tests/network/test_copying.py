"""Copies of modules and of models: what they share with the original, and what not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.network.copying import (
    Replicas,
    Twin,
    alias_copy,
    copy_module,
    is_laid_out,
    meta_copy,
    own_tensors,
    whole_copy,
)
from graphsurgery.passes import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.deepen import deepen
from graphsurgery.passes.factorize import factorize, unfactorize
from graphsurgery.passes.mask import mask
from graphsurgery.passes.slim import slim
from graphsurgery.passes.widen import widen
from graphsurgery.recipes.contracts.doctor import examine
from graphsurgery.recipes.contracts.subjects import light_copy
from graphsurgery.surgery.masks.mask_set import MaskSet


class Tied(nn.Module):
    """Attributes of many kinds, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.cache: dict[str, object] = {}
        self.names = ["a", ["b"]]
        self.constant = torch.arange(3.0)
        self.again = self.constant
        self.twice = nn.ModuleList([self.norm, self.norm])
        self.kept = [self.first]

    def forward(self, x):
        return self.norm(self.second(self.first(x)))


class Remembers(nn.Module):
    """Keeps results of its last call, which have a history."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.weight_norm(nn.Linear(4, 4))
        self.last = None
        self.states: list[object] = [[], {}]

    def forward(self, x):
        self.last = self.layer(x)
        self.states = [[self.last], {"x": (self.last * 2,)}]
        return torch.relu(self.last)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_a_forward_has_kept_is_copied():
    model, x = Remembers(), torch.randn(2, 4)
    expected = model(x).detach()
    for new in (alias_copy(model)[0], light_copy(model)):
        torch.testing.assert_close(new.states[1]["x"][0], model.last.detach() * 2)
        torch.testing.assert_close(new(x), expected)
        assert new.layer.weight_g.data_ptr() == model.layer.weight_g.data_ptr()
    graph = gs.trace(model, x)
    assert examine(graph, model, onnx=False).holds


@pytest.mark.parametrize("edit", ["cut", "widened", "in order", "masked", "concatenated"])
@pytest.mark.parametrize("rank", [2, 3])
def test_channels_stay_last_in_memory(edit, rank):
    torch.manual_seed(0)
    conv, form = (nn.Conv2d, torch.channels_last) if rank == 2 else (nn.Conv3d, torch.channels_last_3d)
    model = nn.Sequential(conv(4, 8, 3, padding=1), nn.ReLU(), conv(8, 6, 3, padding=1)).to(memory_format=form)
    graph = gs.trace(model, torch.zeros(2, 4, *[5] * rank))
    new = {
        "cut": lambda: compress.compress(graph, 0.5),
        "widened": lambda: widen(graph, 1.5),
        "in order": lambda: slim(graph),
        "masked": lambda: mask(graph, MaskSet.ones(graph)),
        "concatenated": lambda: concatenate([graph, graph]),
    }[edit]()
    for module in (graph.module, new.module):
        assert _layouts(module, form) == [form, form]


def _layouts(module, form):
    """How the weights lie in memory whose layout shows: channels last, or not."""
    weights = [p for p in module.parameters() if p.dim() > 3 and is_laid_out(p)]
    return [form if p.is_contiguous(memory_format=form) else torch.contiguous_format for p in weights]


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("edit", ["layer", "residual", "copy", "channel", "spatial", "merged"])
def test_new_layers_lie_in_memory_as_those_beside_them(edit, form):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
    )
    graph = gs.trace(model.to(memory_format=form).eval(), torch.zeros(2, 1, 9, 9))
    new = {
        "layer": lambda: deepen(graph, "1", block="layer"),
        "residual": lambda: deepen(graph, "3", block="residual"),
        "copy": lambda: deepen(graph, "3", block="copy"),
        "channel": lambda: factorize(graph, ["2"], rank=3),
        "spatial": lambda: factorize(graph, ["2"], rank=3, shape="spatial"),
        "merged": lambda: unfactorize(factorize(graph, ["2"], rank=3)),
    }[edit]()
    found = _layouts(new.module, form)
    more = {"layer": 1, "residual": 2, "copy": 1, "channel": 0, "spatial": 1, "merged": 0}[edit]
    assert found == [form] * (2 + more)


def test_a_meta_copy_has_the_structure_of_a_deep_copy():
    model, twins = Tied(), {}
    model.twice.register_forward_pre_hook(print)
    twin, deep = meta_copy(model, twins), copy.deepcopy(model)
    assert list(twin.state_dict()) == list(deep.state_dict())
    assert [type(m) for m in twin.modules()] == [type(m) for m in deep.modules()]
    assert all(m.__dict__.keys() == n.__dict__.keys() for m, n in zip(twin.modules(), deep.modules(), strict=True))
    assert all(t.is_meta for t in twin.state_dict().values())
    assert twin.second.weight is twin.first.weight
    assert twin.twice[0] is twin.twice[1] is twin.norm
    assert twin.kept == [twin.first]
    assert twin.again is twin.constant
    assert len(twin.twice._forward_pre_hooks) == 1
    assert twins[id(twin.first.weight)].real is model.first.weight


def test_a_meta_copy_shares_nothing_that_a_trace_could_change():
    model = Tied()
    twin = meta_copy(model, {})
    assert twin.cache is not model.cache
    assert twin.names == model.names
    assert twin.names[1] is not model.names[1]
    twin.constant.add_(1)
    torch.testing.assert_close(model.constant, torch.arange(3.0))
    for mine, theirs in zip(twin.modules(), model.modules(), strict=True):
        shared = [name for name, value in mine.__dict__.items() if value is theirs.__dict__[name]]
        assert not [name for name in shared if isinstance(mine.__dict__[name], (dict, list, set, torch.Tensor))]


@pytest.mark.parametrize("copied", [lambda model: meta_copy(model, {}), lambda model: alias_copy(model)[0], whole_copy])
def test_what_two_modules_share_is_one_in_a_copy(copied):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].board = model[1].board = {}
    model[0].around = model[1].around = [model]
    twin = copied(model)
    assert twin[0].board is twin[1].board is not model[0].board
    assert twin[0].around is twin[1].around
    assert twin[0].around[0] is twin


class SaysItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.copied = False

    def __deepcopy__(self, memo):
        new = SaysItself()
        new.layer = copy.deepcopy(self.layer, memo)
        new.copied = True
        return new


def test_a_module_that_says_how_it_is_copied_is_asked():
    twin = meta_copy(nn.Sequential(SaysItself()), {})
    assert twin[0].copied
    assert twin[0].layer.weight.is_meta
    model = nn.Sequential(nn.Sequential(SaysItself(), nn.LSTM(2, 2)), nn.Linear(2, 2))
    model[1].weight = model[0][0].layer.weight
    whole = whole_copy(model)
    assert whole[0][0].copied
    assert whole[1].weight is whole[0][0].layer.weight is not model[1].weight
    assert whole[0][1]._flat_weights[0] is whole[0][1].weight_ih_l0 is not model[0][1].weight_ih_l0


@pytest.mark.parametrize("traced", [False, True])
def test_a_whole_copy_is_a_deep_copy(traced):
    model = nn.Sequential(Tied(), nn.Dropout()).eval()
    model[0].norm.weight.requires_grad_(False)
    model[0].twice.register_forward_pre_hook(print)
    if traced:
        model = gs.trace(model, torch.ones(2, 4), check=False).module
    twin, deep = whole_copy(model), copy.deepcopy(model)
    assert [type(m).__name__ for m in twin.modules()] == [type(m).__name__ for m in deep.modules()]
    assert all(m.__dict__.keys() == n.__dict__.keys() for m, n in zip(twin.modules(), deep.modules(), strict=True))
    assert [m.training for m in twin.modules()] == [m.training for m in model.modules()]
    for name, tensor in model.state_dict(keep_vars=True).items():
        new = twin.state_dict(keep_vars=True)[name]
        assert (type(new), new.requires_grad) == (type(tensor), tensor.requires_grad)
        assert torch.equal(new, tensor)
        assert new.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
    assert len({id(t) for t in twin.parameters()}) == len({id(t) for t in model.parameters()})
    for mine, theirs in zip(list(twin.modules())[1:], list(model.modules())[1:], strict=True):
        shared = [name for name, value in mine.__dict__.items() if value is theirs.__dict__[name]]
        assert not [name for name in shared if isinstance(mine.__dict__[name], (dict, list, set, torch.Tensor))]


def test_a_copied_module_has_hooks_of_its_own():
    """A hook on the original runs there only, whether it was there before the copy or not."""
    layer, runs = nn.Linear(2, 2), []
    layer.register_forward_hook(lambda *_: runs.append("before"))
    new = copy_module(layer, lambda t: t)
    layer.register_forward_pre_hook(lambda *_: runs.append("after"))
    new(torch.zeros(1, 2))
    assert runs == []
    layer(torch.zeros(1, 2))
    assert runs == ["after", "before"]


def test_tensors_of_its_own():
    model = Tied()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    memory = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    new = copy_module(model, Replicas(copy=False))
    assert {t.untyped_storage().data_ptr() for t in new.state_dict().values()} == memory
    own_tensors(new)
    assert memory.isdisjoint(t.untyped_storage().data_ptr() for t in new.state_dict().values())
    assert new.second.weight is new.first.weight
    assert new.first.weight is not model.first.weight
    torch.testing.assert_close(dict(new.state_dict()), before, rtol=0, atol=0)


def test_replicas_keep_what_they_found_by_identity_alive():
    twin = Twin(torch.zeros(1), torch.ones(1))
    replica = Replicas()
    made = [replica(tensor.clone()) for tensor in [twin.new] * 20]
    assert len({id(tensor) for tensor in made}) == 20


# trace(copy=False) ----------------------------------------------------------------------------------------------------
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten()).eval()


def test_a_trace_without_a_copy_shares_the_memory_of_the_model():
    model, x = network(), torch.randn(2, 3, 8, 8)
    graph = gs.trace(model, x, copy=False)
    with torch.no_grad():
        model[0].weight.mul_(2)
    torch.testing.assert_close(graph(x), model(x))
    graph.module.double()
    assert {t.dtype for t in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("keep", [0.5, {"0": 8}])
def test_what_comes_of_it_shares_nothing(keep):
    """Not even what no cut touches."""
    model, x = network(), torch.randn(2, 3, 8, 8)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    small = compress.compress(gs.trace(model, x, copy=False), keep)
    with torch.no_grad():
        for tensor in (*small.module.parameters(), *small.module.buffers()):
            tensor.add_(1)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_both_kinds_of_trace_give_the_same():
    model, x = network(), torch.randn(2, 3, 8, 8)
    shared = compress.compress(gs.trace(model, x, copy=False), 0.5)
    torch.testing.assert_close(shared(x), compress.compress(gs.trace(model, x), 0.5)(x), rtol=0, atol=0)


def test_a_shuffle_is_taken_out_of_a_copy():
    """Its weights are permuted, and those of the model stay as they are."""

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.a(x)
            y = y.view(y.shape[0], 2, 4, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
            return self.b(y)

    model, x = Shuffled(), torch.randn(2, 3, 4, 4)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    graph = gs.trace(model, x, copy=False)
    torch.testing.assert_close(graph(x), model(x))
    assert [space.size for space in graph.spaces] == [8]
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert not torch.equal(graph.tensors()["b.weight"], model.b.weight)
