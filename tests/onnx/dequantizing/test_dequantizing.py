"""Quantised files, opened as what they were before, edited and quantised again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import written
from torch import nn

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.exporting import export_onnx
from graphsurgery.onnx.exporting.quantizing import quantize_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.sessions import open_session, run_session
from graphsurgery.passes.compress import compress
from graphsurgery.surgery.deviation import deviation


def images(count=8):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network, and the same in 8 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    )
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(gs.trace(model.eval(), images(2)), folder / "m.onnx")
    quantize_onnx(folder / "m.onnx", folder / "q.onnx", [(images(),)])
    return folder / "m.onnx", folder / "q.onnx"


def outputs(path, x, *, optimised=True):
    session = open_session(path, threads=1, optimised=optimised)
    return run_session(session, {session.get_inputs()[0].name: x}, str(path))[0]


def test_what_is_opened_is_the_network_before(files):
    before, quantised = (import_onnx(path).graph for path in files)
    assert [(s.name, s.size) for s in quantised.spaces] == [(s.name, s.size) for s in before.spaces]
    pairs = zip(before.module.parameters(), quantised.module.parameters(), strict=True)
    for a, b in pairs:
        assert a.shape == b.shape
        assert (a - b).abs().max() <= a.abs().max() / 64 / 2 + 1e-6  # half a step of the scheme's 7 bits
    with torch.no_grad():
        assert deviation(quantised.module(images()), outputs(files[1], images())) < 0.05
    assert quantised.lineage[0]["quantised"] >= 6


def test_it_is_edited_and_quantised_again(files, tmp_path, capsys):
    small, again = tmp_path / "small.onnx", tmp_path / "again.onnx"
    assert run(["compress", str(files[1]), "--keep", "0.5", "-o", str(small)]) == 0
    assert "dequantised: an edited file is in floating numbers; quantise" in capsys.readouterr().out
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert not {"QuantizeLinear", "DequantizeLinear"} & kinds
    assert quantize_onnx(small, again, [(images(),)]) > 0
    graph = import_onnx(again).graph
    with torch.no_grad():
        expected = compress(import_onnx(files[1]).graph, 0.5).module(images())
        assert deviation(graph.module(images()), expected) < 0.05
    rewrite_onnx(again, graph, tmp_path / "same.onnx")


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_activations_that_went_into_a_range_are_back(tmp_path, activation):
    """Who quantises leaves them out where the range does their work."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), activation(), nn.Flatten(), nn.Linear(8 * 36, 4))
    export_onnx(gs.trace(model.eval(), images(2)), tmp_path / "m.onnx")
    x = 10 * images(64)
    quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", [(x,)])
    assert not {"Relu", "Clip"} & {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    with torch.no_grad():
        assert deviation(import_onnx(tmp_path / "q.onnx").graph.module(x), model(x)) < 0.05


def test_scales_along_an_axis_and_in_blocks(tmp_path):
    generator = np.random.default_rng(0)
    weight = generator.integers(-100, 100, (6, 4)).astype(np.int8)
    cases = {
        "one": (np.float32(0.02), np.int8(3), {}),
        "columns": (generator.uniform(0.01, 0.1, 4).astype(np.float32), np.arange(4).astype(np.int8), {"axis": 1}),
        "rows": (generator.uniform(0.01, 0.1, 6).astype(np.float32), np.zeros(6, np.int8), {"axis": 0}),
        "blocks": (
            generator.uniform(0.01, 0.1, (2, 4)).astype(np.float32),
            np.zeros((2, 4), np.int8),
            {"axis": 0, "block_size": 3},
        ),
    }
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    for name, (scale, zero, attributes) in cases.items():
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], "dequantise", **attributes),
            helper.make_node("MatMul", ["x", "f"], ["y"], "product"),
        ]
        constants = {"w": weight, "s": scale, "z": zero}
        path = written(tmp_path / f"{name}.onnx", nodes, {"x": ["b", 6]}, ["y"], constants, opset=21)
        with torch.no_grad():
            found = import_onnx(path).graph.module(x)
        torch.testing.assert_close(found, outputs(path, x, optimised=False), rtol=1e-5, atol=1e-5)


def bad(kind):
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(128), "z")
    x = helper.make_tensor_value_info("x", TensorProto.UINT8 if kind == "input" else TensorProto.FLOAT, ["b", 4])
    result = TensorProto.UINT8 if kind == "output" else TensorProto.FLOAT
    nodes = {
        "input": [helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], "d")],
        "output": [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], "q")],
        "integers": [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
            helper.make_node("MatMulInteger", ["q", "w"], ["i"], "product"),
            helper.make_node("Cast", ["i"], ["y"], "cast", to=TensorProto.FLOAT),
        ],
    }[kind]
    weights = [scale, zero, numpy_helper.from_array(np.ones((4, 3), np.int8), "w")]
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", result, None)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("input", "d dequantises what is no weight; give the file before quantisation"),
        ("output", "q quantises what is not dequantised; give the file before quantisation"),
        ("integers", r"product computes in integers \(MatMulInteger\); give the file before quantisation"),
    ],
)
def test_what_computes_in_integers_is_refused(tmp_path, kind, message):
    onnx.save(bad(kind), tmp_path / "m.onnx")
    with pytest.raises(gs.UnsupportedError, match=message):
        import_onnx(tmp_path / "m.onnx")
