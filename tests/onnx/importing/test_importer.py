"""Networks from files: the same outputs, the same spaces, trainable, and every problem in one line."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import exported, scripted, written
from random_networks import RandomNetwork
from torch import nn
from zoo import example, model

import graphsurgery as gs
from graphsurgery.errors import CheckpointError, SpecError, TraceError, UnsupportedError
from graphsurgery.models.loading import open_model, open_pair
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.factorize import factorize
from graphsurgery.passes.widen import widen
from graphsurgery.recipes.contracts.doctor import examine

SMALL = ("shallow resnet18", "shallow mobilenet_v3", "shallow squeezenet1_1", "shallow convnext", "shallow vit")


class Positions(nn.Module):
    """Adds a table that is computed from the size of the image, and masks what is far from the corner."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv(x)
        rows = torch.arange(x.shape[2]).float().cumsum(0)[:, None].expand(x.shape[2], x.shape[3])
        mask = torch.zeros(x.shape[2], x.shape[3])
        mask[: x.shape[2] // 2] = 1
        return self.head(((x + torch.sin(rows)) * mask).mean((2, 3)))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt(), self.bias)


def network(name):
    return model(name).float().eval(), example(name).float()


@pytest.mark.parametrize("name", [*SMALL[:-1], "shallow shufflenet_v2", "densenet"])
def test_a_file_that_was_not_folded_is_the_network(tmp_path, name):
    """With the norms kept, in float64; the scale of an attention stands in the file in float32."""
    module, x = network(name)
    path = scripted(module, x, tmp_path / "m.onnx", bn=True)
    graph = import_onnx(path).graph
    expected = copy.deepcopy(module).double()(x.double())
    torch.testing.assert_close(graph.module.double()(x.double()), expected, rtol=1e-10, atol=1e-10)
    counts = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (graph.module, module)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("free", [True, False], ids=["any batch", "one example"])
@pytest.mark.parametrize("name", SMALL)
def test_the_scripted_dialect(tmp_path, name, free):
    """Also where the file fixes the batch: the network takes any."""
    module, x = network(name)
    path = scripted(module, x if free else x[:1], tmp_path / "m.onnx", free=free)
    graph = import_onnx(path).graph
    for batch in (1, 3):
        y = torch.randn(batch, *x.shape[1:])
        expected = module(y).detach()
        torch.testing.assert_close(graph.module(y), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert gs.check_onnx(graph, path, batches=(1, 3) if free else (1,)).holds


@pytest.mark.parametrize("name", SMALL)
def test_our_own_export_comes_back(tmp_path, name):
    module, x = network(name)
    traced = gs.trace(module, x)
    (tmp_path / "m.onnx").write_bytes(exported(name, "ours"))
    graph = import_onnx(tmp_path / "m.onnx").graph
    assert gs.check_onnx(graph, tmp_path / "m.onnx").holds
    sizes = sorted(space.size for space in traced.spaces if space.outer)
    assert sorted(space.size for space in graph.spaces if space.outer) == sizes


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_come_back(tmp_path, seed):
    torch.manual_seed(seed)
    module = RandomNetwork(seed).eval()
    x = torch.randn(2, 3, 4, 4)
    path = scripted(module, x, tmp_path / "m.onnx")
    assert gs.check_onnx(import_onnx(path).graph, path).holds


def test_every_pass_works_on_it(tmp_path):
    module, x = network("shallow resnet18")
    graph, reference = open_pair(str(scripted(module, x, tmp_path / "m.onnx", bn=True)))
    report = examine(graph, reference, onnx=False)
    assert {contract.status for contract in report.contracts} <= {"holds", "not measured"}
    assert report.editable > 0.999


def test_it_trains_and_is_stored(tmp_path):
    module, x = network("shallow resnet18")
    graph = open_model(str(scripted(module, x, tmp_path / "m.onnx", bn=True)))
    assert all(p.requires_grad for p in graph.module.parameters())
    before = graph.module.bn1.running_mean.clone()
    graph.module.train()(x).sum().backward()
    assert not torch.equal(graph.module.bn1.running_mean, before)
    assert graph.module.conv1.weight.grad is not None
    gs.save(graph, tmp_path / "m.pt")
    again = gs.load(tmp_path / "m.pt")
    torch.testing.assert_close(again.module.eval()(x), graph.module.eval()(x), rtol=0, atol=0)
    assert again.lineage[0] == {"pass": "import", "file": "m.onnx", "operators": graph.lineage[0]["operators"]}


def test_equal_vectors_that_are_stored_once_do_not_tie_layers(tmp_path):
    weights = {"v": np.eye(4, dtype=np.float32), "w": 2 * np.eye(4, dtype=np.float32), "b": np.zeros(4, np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "v", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w", "b"], ["y"], transB=1),
    ]
    graph = import_onnx(written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"], weights)).graph
    assert [space.size for space in graph.spaces] == [4]
    assert compress(graph, 0.5).module(torch.ones(2, 4)).shape == (2, 4)


def test_a_matrix_that_is_read_twice_stays_one(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    weights = {"w": np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)}
    graph = import_onnx(written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"], weights)).graph
    assert len({id(p) for p in graph.module.parameters()}) == 1


def test_what_torch_does_not_have_runs_and_freezes(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"]),
        helper.make_node("MeanVarianceNormalization", ["h"], ["t"], name="/act/Norm", axes=[1]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = {"v": rng.normal(size=(4, 6)).astype(np.float32), "w": rng.normal(size=(6, 3)).astype(np.float32)}
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"], weights)
    graph = import_onnx(path).graph
    assert not graph.spaces
    assert any("is a MeanVarianceNormalization, which is not translated" in frozen.reason for frozen in graph.frozen)
    assert gs.check_onnx(graph, path).holds


def test_two_files_are_merged_side_by_side(tmp_path):
    graphs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        graphs.append(import_onnx(scripted(module, torch.randn(2, 4), tmp_path / f"{seed}.onnx")).graph)
    x = torch.randn(5, 4)
    expected = (graphs[0].module(x) + graphs[1].module(x)) / 2
    torch.testing.assert_close(concatenate(graphs).module(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(widen(graphs[0], 2.0).module(x), graphs[0].module(x), rtol=1e-5, atol=1e-6)


def test_open_sizes_are_asked_for(tmp_path):
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 3, "h", "w"]}, ["y"])
    with pytest.raises(SpecError, match=r"input x is 3x\?x\? in the file; give --input"):
        import_onnx(path)
    with pytest.raises(SpecError, match=r"input x is 3x\?x\? in the file, not 4x8x8"):
        import_onnx(path, shape=(4, 8, 8))
    assert import_onnx(path, shape=(3, 8, 8)).graph.module(torch.ones(2, 3, 8, 8)).shape == (2, 3, 1, 1)


@pytest.mark.parametrize("opset", [7, 9])
def test_weights_may_be_inputs_too(tmp_path, opset):
    """As every file had to say before version 4 of the format; operators of older opsets are converted."""
    module, x = network("resnet18")
    path = scripted(module, x, tmp_path / "m.onnx", bn=True, opset=9)
    old = onnx.load(path)
    old.ir_version, old.opset_import[0].version = 3, opset
    for tensor in old.graph.initializer:
        old.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.save(old, path)
    graph = import_onnx(path).graph
    torch.testing.assert_close(graph.module(x), module(x), rtol=1e-5, atol=1e-5)
    for edit in (compress(graph, 0.5), widen(graph, 2), factorize(graph, rank=0.5)):
        rewrite_onnx(path, edit, tmp_path / "out.onnx")
        new = onnx.load(tmp_path / "out.onnx")
        onnx.checker.check_model(new, full_check=True)
        assert (new.ir_version, new.opset_import[0].version) == (3, 9)
        assert {tensor.name for tensor in new.graph.initializer} < {value.name for value in new.graph.input}
        names = {node.name for node in old.graph.node}
        assert len(names & {node.name for node in new.graph.node}) > 0.5 * len(names)


def test_sparse_weights_become_ordinary_ones(tmp_path):
    dense = np.zeros((6, 4), np.float32)
    dense[[0, 2, 5], [1, 3, 0]] = [1.5, -2, 3]
    places = np.flatnonzero(dense)
    for name, indices in (("flat", places), ("pairs", np.argwhere(dense))):
        model = proto(helper.make_node("MatMul", ["x", "w"], ["y"]), shape=("b", 6))
        values = numpy_helper.from_array(dense.reshape(-1)[places], "w")
        where = numpy_helper.from_array(indices.astype(np.int64), "places")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [6, 4]))
        onnx.save(model, tmp_path / f"{name}.onnx")
        graph = import_onnx(tmp_path / f"{name}.onnx").graph
        x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(graph.module(x), x @ torch.from_numpy(dense))


def proto(*nodes, opset=18, shape=("b", 4), kind=TensorProto.FLOAT, constants=None, output="y"):
    initializers = [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    value = helper.make_tensor_value_info("x", kind, shape)
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [value], [result], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


RELU = helper.make_node("Relu", ["x"], ["y"], name="act")
QUANTISED = proto(helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"]))
BAD = {
    "cut off": (proto(RELU).SerializeToString()[:-9], CheckpointError, "is truncated or no ONNX file at all"),
    "text": (b"not a model at all", CheckpointError, "is truncated or no ONNX file"),
    "empty": (b"", CheckpointError, "holds no whole ONNX model"),
    "old": (
        proto(helper.make_node("Fancy", ["x"], ["y"]), opset=7),
        UnsupportedError,
        "opset 7 is older than 9, and is not converted: ",
    ),
    "quantised": (
        proto(helper.make_node("QuantizeLinear", ["x", "s"], ["y"], name="q"), constants={"s": np.float32(1)}),
        UnsupportedError,
        "q quantises what is not dequantised",
    ),
    "cycle": (
        proto(helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]), output="b"),
        CheckpointError,
        "Add reads b, which is not computed before it",
    ),
    "no output": (proto(RELU, output="z"), CheckpointError, "output z is not computed"),
    "free rank": (proto(RELU, shape=None), UnsupportedError, "input x has a free number of axes"),
    "a number": (proto(RELU, shape=()), UnsupportedError, r"input x is a single number, expected \[batch"),
    "unknown domain": (
        proto(helper.make_node("Fancy", ["x"], ["y"], name="f", domain="some.where")),
        UnsupportedError,
        r"f is a some.where.Fancy, which is not translated, and ONNX Runtime cannot run it",
    ),
    "sequence": (
        proto(
            helper.make_node("SplitToSequence", ["x"], ["s"], name="parts", axis=1),
            helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=1),
        ),
        UnsupportedError,
        r"parts makes or reads a sequence \(SplitToSequence\)",
    ),
    "control flow": (
        proto(
            helper.make_node(
                "If", ["c"], ["y"], name="choose", then_branch=proto(RELU).graph, else_branch=QUANTISED.graph
            ),
            constants={"c": np.asarray(True)},
        ),
        UnsupportedError,
        r"choose is control flow \(If\) with operators that are not followed",
    ),
    "shapes that clash": (
        proto(helper.make_node("MatMul", ["x", "w"], ["y"], name="mm"), constants={"w": np.ones((3, 2), np.float32)}),
        TraceError,
        r"mm \(MatMul\): ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(tmp_path, name):
    content, error, message = BAD[name]
    path = tmp_path / "m.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    before = path.read_bytes()
    with pytest.raises(error, match=message) as caught:
        import_onnx(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_weights_that_are_not_beside_the_file(tmp_path):
    module = nn.Linear(64, 64)
    path = scripted(module, torch.randn(2, 64), tmp_path / "m.onnx")
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    x = torch.randn(3, 64)
    torch.testing.assert_close(import_onnx(path).graph.module(x), module(x))
    (tmp_path / "m.data").unlink()
    with pytest.raises(CheckpointError, match=r"m\.data"):
        import_onnx(path)
    with pytest.raises(CheckpointError, match="no such file"):
        import_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize("free", [True, False])
def test_what_is_the_same_for_every_batch_is_computed_once(tmp_path, free):
    torch.manual_seed(0)
    path = scripted(Positions().eval(), torch.randn(2 if free else 1, 3, 6, 6), tmp_path / "m.onnx", free=free)
    graph = import_onnx(path).graph
    assert not graph.frozen
    assert {space.size for space in graph.spaces} == {8}
    assert gs.check_onnx(graph, path, batches=(1, 3) if free else (1,)).holds
    assert graph.module(torch.randn(5, 3, 6, 6)).shape == (5, 3)


def test_an_image_of_free_size_stays_free(tmp_path):
    torch.manual_seed(0)
    module = Positions().eval()
    path = scripted(module, torch.randn(2, 3, 6, 6), tmp_path / "m.onnx", sides=True)
    network = import_onnx(path, shape=(3, 6, 6)).graph.module
    for side in (6, 8):
        x = torch.randn(2, 3, side, side)
        assert torch.allclose(network(x), module(x), atol=1e-5)


def test_layers_have_the_names_of_their_biases_where_their_matrices_have_none(tmp_path):
    weight, bias = np.ones((4, 3), np.float32), np.ones(3, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "val_7"], ["p"], "node_MatMul_3"),
        helper.make_node("Add", ["p", "block.fc.bias"], ["y"]),
    ]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"], {"val_7": weight, "block.fc.bias": bias})
    assert set(import_onnx(path).graph.tensors()) == {"block.fc.weight", "block.fc.bias"}


def test_weights_that_are_computed_from_constants_are_weights(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(Standardised(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 2)).eval()
    path = scripted(module, torch.randn(2, 3, 6, 6), tmp_path / "m.onnx", bn=True)
    imported = import_onnx(path)
    assert any(isinstance(layer, nn.Conv2d) for layer in imported.graph.module.modules())
    assert gs.check_onnx(imported.graph, path).holds
    small = compress(imported.graph, 0.5)
    assert rewrite_onnx(path, small, tmp_path / "small.onnx").holds
    kinds = [node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node]
    assert "ReduceMean" not in kinds
    again = rewrite_onnx(path, imported.graph, tmp_path / "same.onnx")
    assert again.holds
    assert [n.op_type for n in onnx.load(tmp_path / "same.onnx").graph.node] == [
        n.op_type for n in onnx.load(path).graph.node
    ]
