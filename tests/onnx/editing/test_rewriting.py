"""Edits that are written back into the file: the new file does what the network does, and the rest stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from onnx_files import exported, scripted, written
from random_networks import RandomNetwork
from torch import nn
from zoo import example, model

import graphsurgery as gs
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.deepen import deepen
from graphsurgery.passes.widen import widen

NAMES = (
    "shallow resnet18",
    "shallow mobilenet_v3",
    "shallow squeezenet1_1",
    "shallow resnext",
    "shallow convnext",
    "shallow vit",
)


def export(name, path, dialect):
    path.write_bytes(exported(name, dialect))


@pytest.mark.parametrize("dialect", ["free 17", "fixed 17", "ours"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_compressed_in_place(tmp_path, name, dialect):
    path, out = tmp_path / "m.onnx", tmp_path / "small.onnx"
    export(name, path, dialect)
    before = path.read_bytes()
    graph = compress(import_onnx(path).graph, 0.5)
    assert rewrite_onnx(path, graph, out).holds
    old, new = onnx.load(path), onnx.load(out)
    assert [(n.name, n.op_type, list(n.output)) for n in new.graph.node] == [
        (n.name, n.op_type, list(n.output)) for n in old.graph.node
    ]
    assert [v.name for v in new.graph.input] == [v.name for v in old.graph.input]
    assert [v.name for v in new.graph.output] == [v.name for v in old.graph.output]
    assert new.opset_import == old.opset_import
    assert new.ir_version == old.ir_version
    assert path.read_bytes() == before
    again = import_onnx(out).graph
    sizes = {space.name: space.size for space in graph.spaces}
    assert {space.name: space.size for space in again.spaces} == sizes


@pytest.mark.parametrize("name", ["shallow resnet18", "shallow mobilenet_v3", "shallow resnext"])
def test_the_file_is_what_compressing_the_module_gives(tmp_path, name):
    """In float64, with the norms kept."""
    module, x = model(name).float(), example(name, 3).float()
    path = scripted(module, x, tmp_path / "m.onnx", bn=True)
    rewrite_onnx(path, compress(import_onnx(path).graph, 0.5), tmp_path / "small.onnx")
    found = import_onnx(tmp_path / "small.onnx").graph.module.double()(x.double())
    expected = compress(gs.trace(module.eval(), x), 0.5).module.double()(x.double())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_random_networks_are_compressed_in_place(tmp_path, seed):
    torch.manual_seed(seed)
    path = scripted(RandomNetwork(seed).eval(), torch.randn(2, 3, 4, 4), tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    if not any(space.outer and space.size > 1 for space in graph.spaces):
        pytest.skip("nothing can be removed")
    small = compress(graph, 0.5, importance="random", seed=seed)
    assert rewrite_onnx(path, small, tmp_path / "small.onnx").holds


def test_a_file_is_widened_in_place(tmp_path):
    path = tmp_path / "m.onnx"
    export("shallow resnet18", path, "free 17")
    wide = widen(import_onnx(path).graph, 1.5)
    assert rewrite_onnx(path, wide, tmp_path / "wide.onnx").holds
    assert gs.check_onnx(import_onnx(path).graph, tmp_path / "wide.onnx").holds


def test_a_file_takes_its_own_place(tmp_path):
    path = tmp_path / "m.onnx"
    export("shallow resnet18", path, "free 17")
    small = compress(import_onnx(path).graph, 0.5)
    rewrite_onnx(path, small, path)
    assert gs.check_onnx(small, path).holds


def test_metadata_and_names_stay(tmp_path):
    path = scripted(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4), tmp_path / "m.onnx")
    stored = onnx.load(path)
    entry = stored.metadata_props.add()
    entry.key, entry.value = "author", "somebody"
    stored.doc_string, stored.producer_name = "a note", "a producer"
    onnx.save(stored, path)
    rewrite_onnx(path, compress(import_onnx(path).graph, 0.5), tmp_path / "small.onnx")
    new = onnx.load(tmp_path / "small.onnx")
    found = {entry.key: entry.value for entry in new.metadata_props}
    assert found.pop("graphsurgery.lineage").startswith('[{"pass": "import"')
    assert found == {"author": "somebody"}
    assert (new.doc_string, new.producer_name) == ("a note", "a producer")


def test_vectors_that_were_stored_once_part(tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        "u": rng.normal(size=(6, 4)).astype(np.float32),
        "v": rng.normal(size=(6, 6)).astype(np.float32),
        "w": rng.normal(size=(3, 6)).astype(np.float32),
        "b": np.zeros(6, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "u", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "b"], ["k"], transB=1),
        helper.make_node("Relu", ["k"], ["s"]),
        helper.make_node("Gemm", ["s", "w"], ["y"], transB=1),
    ]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"], weights)
    graph = import_onnx(path).graph
    first, second = graph.spaces
    small = compress(graph, {first.name: torch.tensor([0, 1]), second.name: torch.tensor([1, 2, 5])})
    assert rewrite_onnx(path, small, tmp_path / "small.onnx").holds


def test_a_file_is_deepened_in_place(tmp_path):
    path = scripted(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)),
        torch.randn(2, 4),
        tmp_path / "m.onnx",
    )
    graph = import_onnx(path).graph
    assert rewrite_onnx(path, deepen(graph), tmp_path / "deep.onnx").holds
    assert gs.check_onnx(graph, tmp_path / "deep.onnx").holds
    assert len(onnx.load(tmp_path / "deep.onnx").graph.node) > len(onnx.load(path).graph.node)


class Attention(nn.Module):
    """One head, whose scale an exporter computes from the shape."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 6) for _ in range(3))
        self.out = nn.Linear(6, 8)

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v)) / x.shape[-1]


def test_numbers_that_a_file_computes_stay_as_they_were(tmp_path):
    torch.manual_seed(0)
    path = scripted(Attention(), torch.randn(2, 5, 8), tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    small = compress(graph, {space.name: 3 for space in graph.spaces if space.size == 6})
    assert rewrite_onnx(path, small, tmp_path / "small.onnx").holds
    new = [tensor.name for tensor in onnx.load(tmp_path / "small.onnx").graph.initializer]
    assert any(name.endswith("_before") for name in new)


class Computed(nn.Module):
    """A convolution in groups whose weight is computed while it runs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.weight = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(nn.functional.conv2d(x, torch.tanh(self.weight), None, 1, 1, 1, 8))


def test_the_groups_of_a_convolution_follow(tmp_path):
    torch.manual_seed(0)
    path = scripted(Computed(), torch.randn(2, 3, 4, 4), tmp_path / "m.onnx", bn=True)
    graph = compress(import_onnx(path).graph, 0.5)
    assert rewrite_onnx(path, graph, tmp_path / "small.onnx").holds


class PartlyZero(nn.Module):
    """A bias of which a part is always 0, as of the keys of some attentions."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6, bias=False), nn.Linear(6, 2)
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x):
        bias = self.bias.clone()
        bias[2:4].zero_()
        return self.last(torch.relu(self.first(x) + bias))


def test_what_was_computed_once_follows(tmp_path):
    torch.manual_seed(0)
    path = scripted(PartlyZero(), torch.randn(2, 4), tmp_path / "m.onnx", bn=True)
    graph = compress(import_onnx(path).graph, {"first": [0, 2, 5]})
    assert rewrite_onnx(path, graph, tmp_path / "small.onnx").holds


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("groups", "inner"), [(2, 4), (4, 2), (8, 1)])
def test_transposed_convolutions_with_groups_grow_in_place(tmp_path, groups, inner, rank):
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank]
    torch.manual_seed(rank)
    network = nn.Sequential(
        conv(3, 8, 1), nn.Tanh(), transposed(8, 2 * groups, 2, 2, groups=groups), nn.Tanh(), conv(2 * groups, 3, 1)
    )
    path = scripted(network, torch.randn(2, 3, *[4] * rank), tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    assert {space.size for space in graph.spaces} == {groups, 2} | ({inner} if inner > 1 else set())
    wide = widen(graph, to={space.name: 2 * space.size + 1 for space in graph.spaces})
    assert rewrite_onnx(path, wide, tmp_path / "wide.onnx").holds
    x = torch.randn(3, 3, *[4] * rank, generator=torch.Generator().manual_seed(0))
    found = onnxruntime.InferenceSession(tmp_path / "wide.onnx").run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, network(x).numpy(), rtol=0, atol=1e-5)
