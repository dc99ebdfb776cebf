"""The norms of earlier versions, each by its own name, against torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from graphsurgery.checkpoint.building import build
from graphsurgery.errors import SurgeryError
from graphsurgery.network.layers import grouped_norm

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
