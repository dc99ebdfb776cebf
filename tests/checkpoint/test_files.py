"""Checkpoints: exact round trips, closed to everything else, and never half written."""

from __future__ import annotations

import errno
import json
import operator
import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from forked import Forked
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE
from torch import Tensor, fx, nn

import graphsurgery as gs
from graphsurgery.checkpoint import is_checkpoint, load, read_metadata, save, vocabulary
from graphsurgery.checkpoint.encoding import decode, encode
from graphsurgery.checkpoint.files import _digest
from graphsurgery.errors import CheckpointError, SurgeryError
from graphsurgery.graph import InputSpec, ModelGraph
from graphsurgery.network import layers

Pair = namedtuple("Pair", ["logits", "aux"])


class Net(nn.Module):
    """A little of everything: norms, dropout, a tied weight, a shared layer, a parameter, a hidden buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 4, 3, padding=1, bias=False), norm=nn.BatchNorm2d(4)))
        self.shared = nn.Conv2d(4, 4, 1)
        self.drop = nn.Dropout(0.5)
        self.encode = nn.Linear(4, 6)
        self.decode = nn.Linear(4, 6)
        self.decode.weight = self.encode.weight
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.register_buffer("shift", torch.arange(4.0).reshape(4, 1, 1), persistent=False)
        self.encode.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = F.relu(self.stem(x)) * self.scale + self.shift
        x = self.shared(self.shared(x))[..., 1:]
        x = self.drop(x.mean((2, 3)).view(x.shape[0], -1))
        return {"out": self.encode(x), "aux": (self.decode(x).to(torch.float64), [x.clamp(min=float("-inf"))])}


def graph_of(model: nn.Module, *shape: int) -> ModelGraph:
    return ModelGraph(fx.symbolic_trace(model), (InputSpec("x", shape),), ({"pass": "trace", "seed": 0},))


def net(seed: int = 0) -> ModelGraph:
    torch.manual_seed(seed)
    graph = graph_of(Net(), 2, 1, 6, 6)
    graph(torch.randn(5, 1, 6, 6))
    return graph


def assert_same_network(found: ModelGraph, expected: ModelGraph, x: Tensor) -> None:
    left, right = found.module.state_dict(), expected.module.state_dict()
    assert list(left) == list(right)
    torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert [n.name for n in found.module.graph.nodes] == [n.name for n in expected.module.graph.nodes]
    assert (found.inputs, found.lineage) == (expected.inputs, expected.lineage)
    found.module.eval(), expected.module.eval()
    torch.testing.assert_close(found(x), expected(x), rtol=0, atol=0)


def content_of(graph: ModelGraph, path: Path) -> dict[str, Any]:
    save(graph, path)
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def rewrite(content: dict[str, Any], path: Path) -> None:
    """Store an altered checkpoint with the digest that fits it."""
    torch.save({**content, "digest": _digest(content["graph"])}, path)


def test_round_trip_is_exact_and_keeps_modes_ties_and_flags(tmp_path):
    graph = net()
    graph.module.stem.norm.eval()
    save(graph, tmp_path / "m.pt", epochs=3, data={"name": "digits"})
    loaded = load(tmp_path / "m.pt")
    assert loaded.module.training
    assert not loaded.module.stem.norm.training
    assert loaded.module.encode.weight is loaded.module.decode.weight
    assert not loaded.module.encode.bias.requires_grad
    assert "shift" not in loaded.module.state_dict()
    assert [n for n, _ in loaded.module.named_parameters()] == [n for n, _ in graph.module.named_parameters()]
    assert read_metadata(tmp_path / "m.pt") == {"epochs": 3, "data": {"name": "digits"}}
    assert is_checkpoint(tmp_path / "m.pt")
    assert_same_network(loaded, graph, torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(1)))


def test_loaded_network_trains_and_switches_modes(tmp_path):
    save(net(), tmp_path / "m.pt")
    module = load(tmp_path / "m.pt").module
    x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.train()
    assert not torch.equal(module(x)["out"], module(x)["out"])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(x)["out"].square().mean().backward()
    optimizer.step()
    after = module.state_dict()
    for name in ("stem.conv.weight", "stem.norm.running_mean", "encode.weight", "scale"):
        assert not torch.equal(before[name], after[name])
    assert torch.equal(before["encode.bias"], after["encode.bias"])
    module.eval()
    assert torch.equal(module(x)["out"], module(x)["out"])


@pytest.mark.parametrize(
    "make",
    [
        torchvision.models.resnet18,
        torchvision.models.mobilenet_v3_small,
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5),
    ],
    ids=["resnet18", "mobilenet_v3", "vit"],
)
def test_torchvision_round_trip(tmp_path, make):
    torch.manual_seed(0)
    graph = graph_of(make(), 2, 3, 32, 32)
    save(graph, tmp_path / "m.pt")
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert_same_network(load(tmp_path / "m.pt"), graph, x)


def test_own_layers_round_trip(tmp_path):
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = layers.ChannelGate(4, beta=0.5)
            self.norm = nn.LayerNorm(4, bias=False)
            self.register_buffer("members", torch.eye(2).repeat_interleave(torch.tensor([1, 3]), 0))
            self.rnn = nn.LSTM(4, 3, num_layers=2, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            normed = layers.grouped_norm(x, self.members, self.norm.weight, eps=1e-3)
            return self.rnn(layers_scale(normed, self.gate(x)))[0]

    def layers_scale(x: Tensor, mask: Tensor) -> Tensor:
        return layers.scale_axis(x, 2, [(mask, 1, 1)])

    fx_layers = fx.Tracer(autowrap_functions=(layers.scale_axis,))
    fx_layers.is_leaf_module = lambda m, _: type(m).__module__ in (layers.__name__, nn.LSTM.__module__)
    model = Gated()
    graph = ModelGraph(fx.GraphModule(model, fx_layers.trace(model)), (InputSpec("x", (2, 5, 4)),))
    save(graph, tmp_path / "m.pt")
    loaded = load(tmp_path / "m.pt")
    assert loaded.module.gate.beta == 0.5
    assert loaded.module.members.sum(0).tolist() == [1, 3]
    (call,) = [node for node in loaded.module.graph.nodes if node.target is layers.grouped_norm]
    assert call.kwargs == {"eps": 1e-3}
    assert_same_network(loaded, graph, torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)))


def test_named_tuple_output_becomes_a_tuple(tmp_path):
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Pair:
            return Pair(x + 1, {"again": x})

    graph = graph_of(Two(), 2, 3)
    save(graph, tmp_path / "m.pt")
    x = torch.ones(2, 3)
    out = load(tmp_path / "m.pt")(x)
    assert type(out) is tuple
    assert torch.equal(out[0], x + 1)
    assert torch.equal(out[1]["again"], x)


def test_half_precision_and_double_are_kept(tmp_path):
    for dtype in (torch.float64, torch.bfloat16):
        graph = ModelGraph(net().module.to(dtype), (InputSpec("x", (2, 1, 6, 6), dtype),))
        save(graph, tmp_path / "m.pt")
        loaded = load(tmp_path / "m.pt")
        assert loaded.inputs[0].dtype == dtype
        assert {p.dtype for p in loaded.module.parameters()} == {dtype}


def test_saving_neither_touches_the_network_nor_the_random_state(tmp_path):
    graph = net()
    code, modes = graph.module.code, [m.training for m in graph.module.modules()]
    state = torch.get_rng_state()
    save(graph, tmp_path / "m.pt")
    load(tmp_path / "m.pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert (graph.module.code, [m.training for m in graph.module.modules()]) == (code, modes)


def test_a_view_is_stored_without_the_rest_of_its_storage(tmp_path):
    graph = graph_of(nn.Sequential(nn.Linear(2, 3)), 2, 2)
    graph.module.get_submodule("0").weight = nn.Parameter(torch.zeros(100_000, 2)[:3])
    save(graph, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").stat().st_size < 20_000


def test_loads_where_the_class_does_not_exist(tmp_path):
    graph = net()
    graph.module.eval()
    save(graph, tmp_path / "m.pt")
    x = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import gc; gc.disable(); import sys, torch; from graphsurgery.checkpoint import load; folder = sys.argv[1]\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "torch.save(load(folder + '/m.pt')(torch.load(folder + '/x.pt'))['out'].detach(), folder + '/y.pt')"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=tmp_path, timeout=PATIENCE)
    assert torch.equal(torch.load(tmp_path / "y.pt"), graph(x)["out"])


# What cannot be stored


class Odd(nn.Linear):
    """A subclass, of which nobody knows what it does."""


def test_unknown_layer_is_named(tmp_path):
    graph = graph_of(nn.Sequential(nn.ReLU()), 2, 3)
    graph.module.add_module("0", Odd(3, 3))
    with pytest.raises(SurgeryError, match=r"0: a layer of class .*Odd cannot be stored; use a layer of torch\.nn"):
        save(graph, tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def graph_calling(function: Any, *args: Any) -> ModelGraph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(function, (x, *args)))
    return ModelGraph(fx.GraphModule(nn.Module(), graph), (InputSpec("x", (2, 3)),))


@pytest.mark.parametrize("function", [torch.save, torch.load, torch.compile, eval, print, torch.ops.aten.relu.default])
def test_unknown_function_is_named(tmp_path, function):
    with pytest.raises(SurgeryError, match=r"this network cannot be saved: \w+: function .* cannot be stored"):
        save(graph_calling(function), tmp_path / "m.pt")


def test_unknown_attribute_value_and_pruned_shape_are_named(tmp_path):
    with pytest.raises(SurgeryError, match=r"getattr_1: attribute .*__class__.* is not one"):
        save(graph_calling(getattr, "__class__"), tmp_path / "m.pt")
    with pytest.raises(SurgeryError, match="add: a value of type range cannot be stored"):
        save(graph_calling(operator.add, range(3)), tmp_path / "m.pt")
    graph = graph_of(nn.Sequential(nn.Linear(3, 3)), 2, 3)
    graph.module.get_submodule("0").weight = nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(SurgeryError, match=r"0\.weight: the layer has no tensor of shape \(2, 3\) here"):
        save(graph, tmp_path / "m.pt")
    with pytest.raises(SurgeryError, match="seed: a value of type Tensor is not JSON-like"):
        save(net(), tmp_path / "m.pt", seed=torch.zeros(1))


def test_the_vocabulary_reads_no_files_and_runs_no_code():
    names = {name.rpartition(".")[2] for name in vocabulary.functions()} | vocabulary.METHODS
    forbidden = {"load", "save", "compile", "from_file", "eval", "exec", "open", "apply_", "map_", "numpy", "storage"}
    assert not names & (forbidden | {"set_", "data_ptr", "register_hook", "backward", "__reduce__", "attrgetter"})
    assert all(hasattr(Tensor, name) or name in ("count", "index") for name in vocabulary.METHODS)


# What cannot be loaded


def test_bad_files_are_one_line_errors(tmp_path):
    path = tmp_path / "m.pt"
    save(net(), path)
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 255
    bad = tmp_path / "bad.pt"
    for data, message in (
        (b"", "truncated or no checkpoint"),
        (b"<html>not found</html>", "truncated or no checkpoint"),
        (whole[: len(whole) // 2], "truncated or no checkpoint"),
        (bytes(middle), "damaged|cannot be read"),
    ):
        bad.write_bytes(data)
        assert not is_checkpoint(bad) or data == bytes(middle)
        with pytest.raises(CheckpointError, match=message) as caught:
            load(bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "missing.pt")
    torch.save({"weight": torch.zeros(2)}, bad)
    with pytest.raises(CheckpointError, match=r"holds a dictionary of 1 entries, expected .* --arch SPEC"):
        load(bad)


def test_altered_and_newer_files_are_refused(tmp_path):
    path = tmp_path / "m.pt"
    content = content_of(net(), path)
    torch.save({**content, "version": 2}, path)
    with pytest.raises(CheckpointError, match="is of version 2, this graphsurgery reads 1; update"):
        load(path)
    content["graph"]["nodes"][1]["args"] = []
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="does not have the digest it was saved with"):
        load(path)
    content["graph"]["nodes"][1]["args"] = [torch.zeros(1)]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"m\.pt: the graph is not JSON"):
        load(path)
    del content["lineage"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="has no lineage of type list"):
        load(path)


EVIL = "__import__('pathlib').Path('executed').touch()"


def alterations(graph: dict[str, Any]) -> dict[str, Any]:
    """Ways to smuggle code into the description; each changes it in place."""
    nodes = {node["name"]: node for node in graph["nodes"]}
    first, method, call = graph["nodes"][0], nodes["mean"], nodes["relu"]
    return {
        "node name": lambda: first.update(name=f"x={EVIL}"),
        "placeholder": lambda: first.update(target=f"x={EVIL}"),
        "keyword argument": lambda: call.update(kwargs={f"inplace={EVIL},a": 1}),
        "method": lambda: method.update(target=f"mean({EVIL})"),
        "private method": lambda: method.update(target="__reduce__"),
        "function": lambda: call.update(target="os.system"),
        "getattr": lambda: call.update(target="builtins.getattr", args=[{"node": "x"}, "__class__"]),
        "module path": lambda: nodes["shared"].update(target=f'shared"+{EVIL}+"'),
        "get_attr": lambda: call.update(op="get_attr", target="forward.__globals__", args=[], kwargs={}),
        "get_attr of a layer": lambda: call.update(op="get_attr", target="shared", args=[], kwargs={}),
        "operation": lambda: call.update(op="eval", target=EVIL),
        "class": lambda: graph["modules"]["shared"].update({"class": "torch.load"}),
        "constructor": lambda: graph["modules"]["shared"].update(arguments={"in_channels": {"eval": EVIL}}),
        "later node": lambda: call.update(args=[{"node": "mean"}]),
        "module name": lambda: graph["modules"].update({"forward": graph["modules"]["shared"]}),
        "structure": lambda: graph.update(nodes=[[]]),
    }


@pytest.mark.parametrize("kind", alterations({"nodes": [{"name": "mean"}, {"name": "relu"}]}))
def test_hostile_descriptions_are_refused_and_nothing_runs(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content = content_of(net(), Path("m.pt"))
    alterations(content["graph"])[kind]()
    rewrite(content, Path("m.pt"))
    with pytest.raises(CheckpointError, match=r"m\.pt: ") as caught:
        load("m.pt")
    assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


def test_a_pickle_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"open({str(tmp_path / 'executed')!r}, 'w').close()",)

    torch.save({"format": "graphsurgery", "graph": Evil()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load(tmp_path / "m.pt")
    assert not (tmp_path / "executed").exists()


# Interrupted saves


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.pt"
    save(net(0), path)
    old = path.read_bytes()

    def full(_: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(SurgeryError, match=r"m\.pt: cannot be written \(No space left on device\)"):
            save(net(1), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(SurgeryError, match=r"cannot be written"):
        save(net(0), tmp_path / "no" / "folder.pt")


def test_a_kill_while_saving_leaves_a_whole_file(tmp_path):
    path = tmp_path / "m.pt"
    module = fx.symbolic_trace(nn.Sequential(nn.Linear(1000, 1000)))
    graph = ModelGraph(module, (InputSpec("x", (2, 1000)),))

    def save_for_ever(writing: int) -> None:
        for i in range(10**6):
            nn.init.constant_(module.get_submodule("0").weight, i)
            save(graph, path)
            os.write(writing, b".")

    for turn in range(3):
        reading, writing = os.pipe()
        with Forked(lambda writing=writing: save_for_ever(writing)) as saving:
            for _ in range(turn + 1):
                assert os.read(reading, 1) == b"."
            time.sleep(0.007 * turn)
            saving.send_signal(signal.SIGKILL)
            assert saving.wait() == -signal.SIGKILL
        os.close(reading)
        os.close(writing)
        weight = load(path).module.get_submodule("0").weight
        assert weight.min() == weight.max()


# Random values and networks

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
special = st.sampled_from(
    [
        torch.float16,
        torch.int64,
        torch.channels_last,
        torch.strided,
        torch.device("cpu"),
        ...,
        torch.Size([1, 2]),
        1 + 2j,
    ]
)
values = st.recursive(
    scalars | special | st.builds(slice, st.none() | st.integers(), st.integers(), st.none()),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def no_node(node: fx.Node) -> Any:
    raise AssertionError(node)


@given(values)
@settings(deadline=None, max_examples=100)
def test_encoding_round_trip(value):
    stored = json.loads(json.dumps(encode(value, no_node), allow_nan=False))
    assert repr(decode(stored, {})) == repr(value)


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_random_networks_round_trip(tmp_path_factory, data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    start = width = data.draw(st.integers(1, 4))
    graph = fx.Graph()
    root = nn.Module()
    node = graph.placeholder("x")
    for i in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["conv", "norm", "cat", "add", "view", "act", "slice"]))
        if kind == "conv":
            new, groups = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, width]))
            bias = data.draw(st.booleans())
            root.add_module(f"layer{i}", nn.Conv2d(width, new * groups, 1, groups=groups, bias=bias))
            node, width = graph.call_module(f"layer{i}", (node,)), new * groups
        elif kind == "norm":
            norm = data.draw(st.sampled_from([nn.BatchNorm2d(width), nn.GroupNorm(1, width, affine=False)]))
            root.add_module(f"layer{i}", norm)
            node = graph.call_module(f"layer{i}", (node,))
        elif kind == "cat":
            node, width = graph.call_function(torch.cat, ([node, node],), {"dim": 1}), 2 * width
        elif kind == "add":
            node = graph.call_function(operator.add, (node, data.draw(st.floats(-1, 1))))
        elif kind == "view":
            node = graph.call_method("reshape", (node, (-1, width, 3, 3)))
        elif kind == "act":
            node = graph.call_function(data.draw(st.sampled_from([torch.relu, F.gelu, F.hardswish])), (node,))
        else:
            node = graph.call_function(operator.getitem, (node, (slice(None), slice(0, width), ..., slice(None))))
    graph.output({"y": node})
    network = ModelGraph(fx.GraphModule(root, graph), (InputSpec("x", (2, start, 3, 3)),))
    path = tmp_path_factory.mktemp("random") / "m.pt"
    save(network, path)
    loaded = load(path)
    torch.testing.assert_close(loaded.module.state_dict(), network.module.state_dict(), rtol=0, atol=0)
    assert loaded.module.code == network.module.code
    x = torch.randn(2, start, 3, 3)
    torch.testing.assert_close(loaded.module.eval()(x), network.module.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (
            nn.Conv2d(
                4, 8, (3, 1), stride=2, padding="valid", dilation=2, groups=2, bias=False, padding_mode="reflect"
            ),
            [(2, 4, 9, 9)],
        ),
        (nn.ConvTranspose2d(4, 8, 3, stride=2, output_padding=1, groups=2), [(2, 4, 3, 3)]),
        (nn.BatchNorm2d(3, eps=1e-3, momentum=None, affine=False, track_running_stats=False), [(2, 3, 4, 4)]),
        (nn.LayerNorm((3, 4), eps=1e-6, bias=False), [(2, 3, 4)]),
        (
            nn.MultiheadAttention(8, 2, dropout=0.1, bias=False, add_bias_kv=True, kdim=4, vdim=6, batch_first=True),
            [(2, 3, 8), (2, 5, 4), (2, 5, 6)],
        ),
        (nn.GRU(3, 4, num_layers=2, bias=False, dropout=0.1), [(2, 3)]),
        (nn.RNN(3, 4, nonlinearity="relu"), [(2, 3)]),
        (nn.Embedding(5, 3, padding_idx=1, max_norm=2.0), [(2, 3)]),
        (nn.PReLU(3, init=0.1), [(2, 3)]),
        (nn.Hardtanh(-2.0, 2.0), [(2, 3)]),
        (nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True), [(2, 3, 4, 4)]),
        (nn.AdaptiveAvgPool2d((None, 2)), [(2, 3, 4, 4)]),
        (nn.Unflatten(1, (2, 2)), [(2, 4)]),
        (torchvision.ops.StochasticDepth(0.2, "row"), [(2, 3)]),
        (torchvision.ops.FrozenBatchNorm2d(3, eps=1e-3), [(2, 3, 4, 4)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_are_made_again_with_the_same_arguments(tmp_path, layer, shapes):
    root = nn.Module()
    root.add_module("layer", layer)
    graph = fx.Graph()
    names = [f"x{i}" for i in range(len(shapes))]
    graph.output(graph.call_module("layer", tuple(map(graph.placeholder, names))))
    dtype = torch.int64 if isinstance(layer, nn.Embedding) else torch.float32
    specs = tuple(InputSpec(name, shape, dtype) for name, shape in zip(names, shapes, strict=True))
    save(ModelGraph(fx.GraphModule(root, graph), specs), tmp_path / "m.pt")
    made = load(tmp_path / "m.pt").module.layer
    assert type(made) is type(layer)
    kept = [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in (made, layer)]
    assert repr(kept[0]) == repr(kept[1])
    torch.testing.assert_close(made.state_dict(), layer.state_dict(), rtol=0, atol=0)


class Grid(nn.Linear):
    """Adds the product of row and column to every position."""

    def forward(self, x):
        rows, columns = torch.meshgrid([torch.arange(n) for n in x.shape[1:3]], indexing="ij")
        return super().forward(x + (rows * columns).unsqueeze(-1))


def test_functions_behind_public_ones_are_stored(tmp_path):
    network = Grid(3, 4)
    graph = gs.trace(network, torch.zeros(2, 5, 6, 3))
    save(graph, tmp_path / "m.pt")
    x = torch.randn(2, 4, 7, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "m.pt")(x), network(x), rtol=0, atol=0)
