"""The norms of earlier versions, each by its own name, against torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphsurgery as gs
from graphsurgery.checkpoint import load, read_metadata, save
from graphsurgery.checkpoint.building import build
from graphsurgery.errors import SurgeryError
from graphsurgery.network.layers import grouped_norm
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.deviation import deviation

HOMES = ("graphsurgery.layers", "graphsurgery.network.layers")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def node(name, op, target, args=(), kwargs=None):
    return {"name": name, "op": op, "target": target, "args": list(args), "kwargs": kwargs or {}}


def described(tensors, call, modules=()):
    """A network of one input, one call, and the tensors that it reads."""
    kinds = {
        path: {
            "kind": "buffer" if path == "shares" else "parameter",
            "shape": list(tensor.shape),
            "dtype": "float64",
            "requires_grad": path != "shares",
        }
        for path, tensor in tensors.items()
    }
    reads = [node(path, "get_attr", path) for path in tensors if "." not in path]
    return {
        "modules": {"": {"class": "torch.nn.Module", "training": False}, **dict(modules)},
        "tensors": kinds,
        "nodes": [node("x", "placeholder", "x"), *reads, call, node("output", "output", "output", [ref(call["name"])])],
    }


def ref(name):
    return {"node": name}


def each(function, x):
    """A function of the first two channels, and of the others."""
    return torch.cat([function(x[:, :2]), function(x[:, 2:])], 1)


SEGMENTED = {
    "segmented_layer_norm": ([[2, 4]], {}, lambda x: F.layer_norm(x, x.shape[1:])),
    "segmented_group_norm": ([{"tuple": [2, 4]}], {}, lambda x: F.group_norm(x, 1)),
    "segmented_normalize": ([3.0], {"segments": {"tuple": [2, 4]}, "groups": None}, lambda x: F.normalize(x, 3.0)),
}


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("name", SEGMENTED)
def test_segments(home, name):
    args, kwargs, plain = SEGMENTED[name]
    tensors = {} if name == "segmented_normalize" else {"weight": draw(6, seed=1), "bias": draw(6, seed=2)}
    call = node("norm", "call_function", f"{home}.{name}", [ref("x"), *args, *map(ref, tensors)], kwargs)
    network = build(described(tensors, call), tensors)
    x = draw(3, 6)
    expected = each(plain, x) * tensors["weight"] + tensors["bias"] if tensors else each(plain, x)
    torch.testing.assert_close(network(x), expected, rtol=1e-13, atol=1e-13)
    assert network.norm_members.sum(0).tolist() == [2, 4]


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("name", ["weighted_rms_norm", "weighted_group_norm", "segmented_layer_norm"])
def test_shares(home, name):
    """Copies of four channels by their shares: the norm of the four."""
    plain = {
        "weighted_rms_norm": lambda x: F.rms_norm(x, (4,), eps=1e-3),
        "weighted_group_norm": lambda x: F.group_norm(x, 2, eps=1e-3),
        "segmented_layer_norm": lambda x: F.layer_norm(x, (4,), eps=1e-3),
    }[name]
    shares = torch.tensor([0.5, 0.5, 1.0, 1.0, 0.25, 0.75], dtype=torch.float64)
    args = {
        "weighted_rms_norm": [ref("shares"), None, 1e-3],
        "weighted_group_norm": [2, ref("shares"), None, None, 1e-3],
        "segmented_layer_norm": [[2, 4], None, None, 1e-3, [0, 0], ref("shares")],
    }[name]
    call = node("norm", "call_function", f"{home}.{name}", [ref("x"), *args])
    network = build(described({"shares": shares}, call), {"shares": shares})
    x = draw(3, 4)
    copies = [0, 0, 1, 2, 3, 3]
    torch.testing.assert_close(network(x[:, copies]), plain(x)[:, copies], rtol=1e-13, atol=1e-13)
    # What nobody reads any more is gone.
    assert [path for path, _ in network.named_buffers()] == ["norm_members"]
    assert [n.name for n in network.graph.nodes if n.op == "get_attr"] == ["norm_members"]


@pytest.mark.parametrize("affine", [True, False])
def test_the_layer_keeps_the_names_of_its_weights(affine):
    tensors = {"b.norm.weight": draw(6, seed=1), "b.norm.bias": draw(6, seed=2)} if affine else {}
    layer = {
        "class": f"{HOMES[1]}.SegmentedLayerNorm",
        "arguments": {"segments": {"tuple": [1, 2, 3]}, "groups": {"tuple": [0, 1, 0]}, "eps": 1e-3},
        "training": False,
    }
    modules = {"b": {"class": "torch.nn.Module", "training": False}, "b.norm": layer}
    network = build(described(tensors, node("norm", "call_module", "b.norm", [ref("x")]), modules), tensors)
    assert {name for name, _ in network.named_parameters()} == {*tensors}
    x, outer = draw(3, 5, 6), [0, 3, 4, 5]
    expected = torch.empty_like(x)
    expected[..., outer] = F.layer_norm(x[..., outer], (4,), eps=1e-3)
    expected[..., 1:3] = F.layer_norm(x[..., 1:3], (2,), eps=1e-3)
    if affine:
        expected = expected * draw(6, seed=1) + draw(6, seed=2)
    torch.testing.assert_close(network(x), expected, rtol=1e-13, atol=1e-13)
    assert [n.target for n in network.graph.nodes if n.op == "call_function"] == [grouped_norm]


DAMAGED = {
    "shares that do not fit": ([2, 3], ref("shares"), r"norm: a norm of 5 channels in 2 segments has 6 shares"),
    "more channels than there can be": ([10**9, 10**9], None, r"a norm of 2000000000 channels in 2 segments has no"),
    "shares that are computed": ([6], ref("x"), r"norm: a norm has shares that are computed, expected a buffer"),
    "no segments": ("all", None, r"norm: the description is damaged \(TypeError"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_norms_are_refused(case):
    segments, shares, message = DAMAGED[case]
    call = node("norm", "call_function", f"{HOMES[0]}.segmented_layer_norm", [ref("x"), segments])
    call["kwargs"] = {"shares": shares}
    with pytest.raises(SurgeryError, match=message):
        build(described({"shares": draw(6)}, call), {"shares": draw(6)})


@pytest.mark.parametrize("groups", [0, 7, 10**12])
def test_groups_that_have_no_channels_are_refused(groups):
    call = node("norm", "call_function", f"{HOMES[0]}.weighted_group_norm", [ref("x"), groups, ref("shares")])
    with pytest.raises(SurgeryError, match=rf"norm: a norm of {groups} groups has 6 shares, expected one for each"):
        build(described({"shares": draw(6)}, call), {"shares": draw(6)})


class Norms(nn.Module):
    """Each norm that keeps networks apart: over positions, as a layer and as a function, and a division by a norm."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.whole = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(1, 4)
        self.inner, self.norm, self.outer = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)
        for norm in (self.whole, self.norm):
            nn.init.normal_(norm.weight, 1)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = torch.relu(self.whole(self.first(x))).mean((2, 3))
        x = F.normalize(torch.relu(self.norm(self.inner(x))), dim=1)
        return self.head(F.layer_norm(self.outer(x), (5,)))


STORED = {
    "stored_norms_0_1_0.pt": {"first": 8, "inner": 12, "outer": 10},
    "stored_wide_norms_0_1_0.pt": {"first": 8, "inner": 15, "outer": 13},
}
"""Two of these networks side by side, and widened after that, with their spaces; their input and output are inside."""


@pytest.mark.parametrize("name", STORED)
def test_stored_networks_give_what_they_gave_and_are_edited_again(name, tmp_path):
    path = Path(__file__).with_name(name)
    graph, stored = load(path), read_metadata(path)
    x = torch.tensor(stored["x"])
    torch.testing.assert_close(graph(x), torch.tensor(stored["y"]), rtol=1e-5, atol=1e-6)
    assert {space.name: space.size for space in graph.spaces} == STORED[name]
    assert len([n for n in graph.module.graph.nodes if n.target is grouped_norm]) == 4
    save(graph, tmp_path / "again.pt")
    assert deviation(load(tmp_path / "again.pt")(x), graph(x)) == 0
    x = x.double()
    graph.module.double()
    other = gs.trace(Norms(2).double().eval(), x[:2])
    with torch.no_grad():
        assert deviation(widen(graph, 1.3)(x), graph(x)) < 1e-12
        assert deviation(concatenate([graph, other])(x), (graph(x) + other(x)) / 2) < 1e-12
        assert deviation(concatenate([other, graph])(x), (graph(x) + other(x)) / 2) < 1e-12
