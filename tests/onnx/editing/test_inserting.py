"""New operators in a file: it computes what the network does, and the rest of it stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx_files import exported, scripted, written
from random_networks import SHUFFLES, STEPS, RandomNetwork
from torch import nn

import graphsurgery as gs
from graphsurgery.axes.maps import ChannelMap
from graphsurgery.errors import SurgeryError, TraceError, UnsupportedError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.layers import grouped_norm
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.deepen import deepen
from graphsurgery.passes.factorize import factorize, unfactorize
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.remapping.remap import remap


def group_norms():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2),
        nn.SiLU(),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.GroupNorm(1, 12),
        nn.Flatten(),
        nn.Linear(12 * 16, 5),
    )
    for parameter in network.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network, torch.randn(2, 3, 8, 8)


def layer_norms():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 12), nn.Linear(12, 4))
    nn.init.uniform_(network[1].weight, 0.5, 1.5)
    nn.init.uniform_(network[1].bias, 0.5, 1.5)
    return network, torch.randn(2, 5, 8)


class RootMeanSquares(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 12), nn.RMSNorm(12), nn.Linear(12, 4)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


def network_of(name):
    if name == "group norms":
        return group_norms()
    if name == "layer norms":
        return layer_norms()
    return RootMeanSquares(), torch.randn(2, 8)


def export(name, path, dialect):
    """By the dialect's name: our exporter, or TorchScript in an opset, with a free batch or one of 1."""
    if not name.endswith(("norm", "norms")):
        path.write_bytes(exported(name, dialect))
        return signed(path)
    module, x = network_of(name)
    if dialect == "ours":
        gs.export_onnx(gs.trace(module.eval(), x), path)
    else:
        word, opset = dialect.split()
        scripted(module, x[:1] if word == "fixed" else x, path, free=word == "free", opset=int(opset))
    return signed(path)


def signed(path):
    """The file, with metadata of its own."""
    stored = onnx.load(path)
    entry = stored.metadata_props.add()
    entry.key, entry.value = "author", "somebody"
    onnx.save(stored, path)
    return path


def shape_of(value):
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def assert_the_rest_stays(before, after):
    """Inputs, outputs, opset and metadata; nodes and weights that both files have."""
    old, new = onnx.load(before), onnx.load(after)
    assert [(v.name, shape_of(v)) for v in old.graph.input] == [(v.name, shape_of(v)) for v in new.graph.input]
    assert [(v.name, shape_of(v)) for v in old.graph.output] == [(v.name, shape_of(v)) for v in new.graph.output]
    assert [(o.domain, o.version) for o in old.opset_import] == [(o.domain, o.version) for o in new.opset_import]
    assert old.ir_version == new.ir_version
    assert ("author", "somebody") in {(entry.key, entry.value) for entry in new.metadata_props}
    order = [node.name for node in new.graph.node]
    assert len(set(order)) == len(order)
    assert [n.name for n in old.graph.node if n.name in set(order)] == [
        name for name in order if name in {n.name for n in old.graph.node}
    ]
    unread = [{i.name for i in f.graph.initializer} - {n for o in f.graph.node for n in o.input} for f in (old, new)]
    assert unread[1] <= unread[0]


def weights(path):
    return {i.name: i.SerializeToString() for i in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("shallow mobilenet_v3", "free 11"), ("shallow mobilenet_v3", "free 13"),
        ("shallow vit", "ours"), ("shallow vit", "free 17"), ("shallow vit", "fixed 17"),
        ("group norms", "free 9"), ("layer norms", "free 13"),
        ("shallow shufflenet_v2", "free 17"),
    ],
)  # fmt: skip
def test_a_file_is_factorized_and_back(tmp_path, name, dialect):
    path = export(name, tmp_path / "m.onnx", dialect)
    graph = import_onnx(path).graph
    small = factorize(graph, rank=0.5, force=True, how="random")
    assert rewrite_onnx(path, small, tmp_path / "two.onnx").holds
    assert_the_rest_stays(path, tmp_path / "two.onnx")
    again = import_onnx(tmp_path / "two.onnx").graph
    one = unfactorize(again)
    assert len(one.lineage[-1]["layers"]) == len(small.lineage[-1]["ranks"])
    assert rewrite_onnx(tmp_path / "two.onnx", one, tmp_path / "one.onnx").holds
    assert_the_rest_stays(path, tmp_path / "one.onnx")


def test_only_what_is_factorized_changes(tmp_path):
    path = export("shallow vit", tmp_path / "m.onnx", "free 17")
    graph = import_onnx(path).graph
    layer = "encoder.layers.encoder_layer_0.mlp.0"
    rewrite_onnx(path, factorize(graph, layer, rank=4), tmp_path / "two.onnx")
    old, new = weights(path), weights(tmp_path / "two.onnx")
    added = {f"{layer}.{name}" for name in ("reduce.weight", "expand.weight", "expand.bias")}
    assert {*new} - {*old} == added
    assert {name: new[name] for name in new if name in old} == {name: old[name] for name in old if name in new}
    assert len(old) - len({*old} & {*new}) == 2  # its weight and its bias


def test_at_full_rank_the_file_computes_the_same(tmp_path):
    path = export("group norms", tmp_path / "m.onnx", "free 11")
    graph = import_onnx(path).graph
    rewrite_onnx(path, factorize(graph, rank=1.0, force=True, shape="spatial"), tmp_path / "two.onnx")
    assert gs.check_onnx(graph, tmp_path / "two.onnx").holds


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("shallow vit", "ours"), ("shallow vit", "free 17"), ("shallow vit", "free 14"),
        ("shallow convnext", "free 11"), ("shallow convnext", "ours"),
        ("group norms", "ours"), ("group norms", "free 9"), ("group norms", "free 17"), ("layer norms", "free 11"),
        ("layer norms", "free 17"), ("rms norm", "ours"), ("shallow shufflenet_v2", "free 13"),
    ],
)  # fmt: skip
def test_a_file_with_norms_is_widened(tmp_path, name, dialect):
    path = export(name, tmp_path / "m.onnx", dialect)
    graph = import_onnx(path).graph
    wide = widen(graph, 1.4)
    assert rewrite_onnx(path, wide, tmp_path / "wide.onnx").holds
    assert gs.check_onnx(graph, tmp_path / "wide.onnx").holds
    assert_the_rest_stays(path, tmp_path / "wide.onnx")


@pytest.mark.parametrize(
    ("name", "dialect"),
    [("layer norms", "ours"), ("layer norms", "free 17"), ("shallow vit", "free 17"), ("shallow vit", "ours")],
)
def test_a_file_with_norms_is_put_beside_itself(tmp_path, name, dialect):
    path = export(name, tmp_path / "m.onnx", dialect)
    graph = import_onnx(path).graph
    both = concatenate([graph, graph])
    assert rewrite_onnx(path, both, tmp_path / "both.onnx").holds
    assert gs.check_onnx(graph, tmp_path / "both.onnx").holds
    assert_the_rest_stays(path, tmp_path / "both.onnx")


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_groups_are_divided_by_norms_of_any_order(tmp_path, power):
    """On an axis in the middle, in two groups, one of which has copies."""
    torch.manual_seed(0)
    path = scripted(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)), torch.randn(2, 3, 4, 4), tmp_path / "m.onnx")
    graph = import_onnx(path).graph.copy()
    first = next(node for node in graph.module.graph.nodes if node.op == "call_module")
    members = torch.eye(2).repeat_interleave(3, 0) * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.25, 0.75]).unsqueeze(1)
    graph.module.register_buffer("members", members)
    with graph.module.graph.inserting_after(first):
        read = graph.module.graph.get_attr("members")
    with graph.module.graph.inserting_after(read):
        norm = graph.module.graph.call_function(grouped_norm, (first, read), {"dim": 1, "power": power, "eps": 1e-12})
    first.replace_all_uses_with(norm, delete_user_cb=lambda user: user is not norm)
    read.meta["value"], norm.meta["value"] = torch.empty(6, 2, device="meta"), first.meta["value"]
    graph.module.recompile()
    edited = ModelGraph(graph.module, graph.inputs)
    assert rewrite_onnx(path, edited, tmp_path / "normed.onnx").holds
    assert gs.check_onnx(edited, tmp_path / "normed.onnx").holds


def test_the_widened_group_norm_is_exact(tmp_path):
    path = export("group norms", tmp_path / "m.onnx", "free 17")
    graph = import_onnx(path).graph
    graph.module.double()
    wide = widen(graph, 1.4)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(wide.module(x), graph.module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("shallow mobilenet_v3", "ours"), ("shallow vit", "free 17"), ("shallow vit", "ours"),
        ("group norms", "free 17"), ("shallow shufflenet_v2", "free 11"),
    ],
)  # fmt: skip
def test_every_space_may_be_permuted(tmp_path, name, dialect):
    path = export(name, tmp_path / "m.onnx", dialect)
    graph = import_onnx(path).graph
    generator = torch.Generator().manual_seed(0)
    maps = {space.dim: ChannelMap(torch.randperm(space.size, generator=generator)) for space in graph.spaces}
    assert maps
    permuted = remap(graph, maps, {"pass": "permute"})
    assert rewrite_onnx(path, permuted, tmp_path / "permuted.onnx").holds
    assert gs.check_onnx(graph, tmp_path / "permuted.onnx").holds
    assert_the_rest_stays(path, tmp_path / "permuted.onnx")


@pytest.mark.parametrize("dialect", ["free 17", "free 9", "fixed 17"])
def test_channel_shuffles_are_compressed(tmp_path, dialect):
    path = export("shallow shufflenet_v2", tmp_path / "m.onnx", dialect)
    small = compress(import_onnx(path).graph, 0.5)
    assert rewrite_onnx(path, small, tmp_path / "small.onnx").holds
    assert_the_rest_stays(path, tmp_path / "small.onnx")


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31), shuffles=st.booleans(), spatial=st.booleans())
def test_random_networks_are_factorized_and_permuted(tmp_path_factory, seed, shuffles, spatial):
    folder = tmp_path_factory.mktemp("random")
    torch.manual_seed(seed)
    # TorchScript does not export the function, and a shuffled batch of an attention is not told from its tokens.
    unfit = ("shuffle_function", "shuffle_module", "attention")
    kinds = [kind for kind in (*STEPS, *SHUFFLES) if kind not in unfit] if shuffles else None
    path = scripted(RandomNetwork(seed, 4, kinds).eval(), torch.randn(2, 3, 4, 4), folder / "m.onnx")
    try:
        graph = import_onnx(path).graph
    except (UnsupportedError, TraceError):  # TorchScript writes branches or sequences, or the size of a batch of heads
        reject()
    two = factorize(graph, rank=0.5, force=True, shape="spatial" if spatial else "channel")
    assert rewrite_onnx(path, two, folder / "two.onnx").holds
    one = unfactorize(import_onnx(folder / "two.onnx").graph)
    assert rewrite_onnx(folder / "two.onnx", one, folder / "one.onnx").holds
    maps = {space.dim: ChannelMap(torch.randperm(space.size)) for space in graph.spaces}
    rewrite_onnx(path, remap(graph, maps, {"pass": "permute"}), folder / "permuted.onnx")
    assert gs.check_onnx(graph, folder / "permuted.onnx").holds


def test_layers_behind_the_last_one_give_the_output_its_name(tmp_path):
    path = scripted(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)), torch.randn(2, 4), tmp_path / "m.onnx")
    imported = import_onnx(path)
    graph = deepen(imported.graph)
    assert rewrite_onnx(path, graph, tmp_path / "deep.onnx").holds
    assert gs.check_onnx(imported.graph, tmp_path / "deep.onnx").holds
    last = with_call(imported.graph, torch.tanh)
    assert rewrite_onnx(path, last, tmp_path / "last.onnx").holds
    names = [value.name for value in onnx.load(path).graph.output]
    assert [value.name for value in onnx.load(tmp_path / "last.onnx").graph.output] == names


def with_call(graph, function):
    """The network with a function behind its last node."""
    new = factorize(graph, rank=1.0, force=True)
    output = next(node for node in new.module.graph.nodes if node.op == "output")
    value = output.args[0]
    with new.module.graph.inserting_before(output):
        call = new.module.graph.call_function(function, (value,))
    call.meta["value"] = value.meta["value"]
    output.args = (call,)
    new.module.recompile()
    return ModelGraph(new.module, new.inputs, new.lineage)


def test_a_function_without_a_writer_is_refused_by_name(tmp_path):
    path = scripted(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(2, 4), tmp_path / "m.onnx")
    graph = with_call(import_onnx(path).graph, torch.erfinv)
    with pytest.raises(SurgeryError, match=r"erfinv \(erfinv\) is new, and is not written .*; write a \.pt"):
        rewrite_onnx(path, graph, tmp_path / "new.onnx")
    assert list(tmp_path.iterdir()) == [path]


def test_options_without_a_writer_are_refused(tmp_path):
    path = scripted(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(2, 4), tmp_path / "m.onnx")

    def rounded(graph):
        new = with_call(graph, torch.mean)
        node = next(node for node in new.module.graph.nodes if node.target is torch.mean)
        node.args, node.kwargs = node.args, {"dim": 0, "keepdim": True, "dtype": torch.float32}
        return new

    with pytest.raises(SurgeryError, match=r"mean \(mean\) is new, and has options that are not written \(.*'dtype'"):
        rewrite_onnx(path, rounded(import_onnx(path).graph), tmp_path / "new.onnx")


def splitting(tmp_path, opset):
    rng = np.random.default_rng(0)
    constants = {
        "u": rng.normal(size=(4, 4)).astype(np.float32),
        "w": rng.normal(size=(3, 2)).astype(np.float32),
        "v": rng.normal(size=(3, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "u", "zero"], ["h"], transB=1),
        helper.make_node("Split", ["h"], ["a", "b"], axis=1, **({"num_outputs": 2} if opset >= 18 else {})),
        helper.make_node("Gemm", ["a", "w", "none"], ["c"], transB=1),
        helper.make_node("Gemm", ["b", "v", "none"], ["d"], transB=1),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    constants |= {"zero": np.zeros(4, np.float32), "none": np.zeros(3, np.float32)}
    return written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"], constants, opset=opset, ir=8)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_an_even_split_gets_sizes_where_its_parts_are_not_alike(tmp_path, opset):
    path = splitting(tmp_path, opset)
    graph = import_onnx(path).graph
    first, second = graph.spaces
    assert (first.size, second.size) == (2, 2)
    small = compress(graph, {first.name: torch.tensor([0]), second.name: torch.tensor([0, 1])})
    assert rewrite_onnx(path, small, tmp_path / "small.onnx").holds
    split = next(node for node in onnx.load(tmp_path / "small.onnx").graph.node if node.op_type == "Split")
    attributes = {a.name: helper.get_attribute_value(a) for a in split.attribute}
    if opset < 13:
        assert attributes == {"axis": 1, "split": [1, 2]}
    else:
        assert attributes == {"axis": 1}
        stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(tmp_path / "small.onnx").graph.initializer}
        assert stored[split.input[1]].tolist() == [1, 2]


def test_an_even_split_stays_where_its_parts_are_alike(tmp_path):
    path = splitting(tmp_path, 13)
    graph = import_onnx(path).graph
    small = compress(graph, {space.name: torch.tensor([1]) for space in graph.spaces})
    assert rewrite_onnx(path, small, tmp_path / "small.onnx").holds
    split = next(node for node in onnx.load(tmp_path / "small.onnx").graph.node if node.op_type == "Split")
    assert len(split.input) == 1


class Chunks(nn.Module):
    """In TorchScript the limits of the pieces are computed from the size."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 9, 1), nn.Conv2d(9, 2, 1)

    def forward(self, x):
        return self.b(torch.cat(self.a(x).chunk(2, 1)[::-1], 1)).flatten(1)


def test_limits_that_are_computed_become_numbers(tmp_path):
    path = scripted(Chunks(), torch.randn(2, 3, 4, 4), tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    wide = widen(graph, 1.4)
    assert rewrite_onnx(path, wide, tmp_path / "wide.onnx").holds
    assert gs.check_onnx(graph, tmp_path / "wide.onnx").holds
