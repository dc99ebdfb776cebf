"""Static quantisation: 8-bit weights per channel, metadata kept, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from zoo import example, traced

import graphsurgery as gs
from graphsurgery.errors import SurgeryError
from graphsurgery.onnx.exporting import export_onnx
from graphsurgery.onnx.exporting.quantizing import SAFE, quantize_onnx
from graphsurgery.onnx.runtime.sessions import open_session, run_session
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.surgery.deviation import deviation


def exported(model, path, shape):
    export_onnx(gs.trace(model.eval(), torch.zeros(2, *shape)), path)
    return path


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    return exported(model, tmp_path_factory.mktemp("onnx") / "m.onnx", (3, 8, 8))


def batches(*shape, count=3):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator),) for _ in range(count)]


def test_weights_have_a_scale_for_each_channel(convolutions, tmp_path):
    assert quantize_onnx(convolutions, tmp_path / "q.onnx", batches(4, 3, 8, 8)) > 0
    before, after = onnx.load(convolutions), onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(after, full_check=True)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    (weight,) = (value for name, value in tensors.items() if value.dtype == "int8" and value.ndim == 4)
    assert weight.shape == (6, 3, 3, 3)
    scales = [value for name, value in tensors.items() if name.endswith("_scale") and value.shape == (6,)]
    assert scales
    assert list(after.metadata_props) == list(before.metadata_props)
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]


@pytest.mark.parametrize(
    ("scheme", "dtype", "lowest", "highest", "zero"),
    [("u8s7", "int8", -64, 64, 0), ("u8u8", "uint8", 0, 255, 128), ("u8s8", "int8", -127, 127, 0)],
)
def test_a_scheme_says_what_the_weights_are(convolutions, tmp_path, scheme, dtype, lowest, highest, zero):
    quantize_onnx(convolutions, tmp_path / "q.onnx", batches(4, 3, 8, 8), scheme=scheme)
    graph = onnx.load(tmp_path / "q.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [
        node for node in graph.node if node.op_type == "DequantizeLinear" and tensors.get(node.input[0]) is not None
    ]
    weights = [node for node in weights if tensors[node.input[0]].dtype != "int32"]
    assert len(weights) == 2
    for node in weights:
        numbers, zeros = tensors[node.input[0]], tensors[node.input[2]]
        assert numbers.dtype == zeros.dtype == dtype
        assert (zeros == zero).all()
        assert lowest <= numbers.min() < zero < numbers.max() <= highest
        # The largest weight of each channel is at an end of the range, but for rounding.
        ends = np.abs(numbers.astype(int) - zero).reshape(len(numbers), -1).max(1)
        assert (ends >= highest - zero - 1).all()
    activations = [tensors[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"]
    assert set(activations) == {np.dtype("uint8")}


def test_the_default_is_safe(convolutions, tmp_path):
    quantize_onnx(convolutions, tmp_path / "default.onnx", batches(4, 3, 8, 8))
    quantize_onnx(convolutions, tmp_path / "named.onnx", batches(4, 3, 8, 8), scheme="u8s7")
    assert (tmp_path / "default.onnx").read_bytes() == (tmp_path / "named.onnx").read_bytes()
    assert "u8s7" in SAFE


def test_an_unknown_scheme(convolutions, tmp_path):
    with pytest.raises(SurgeryError, match=r"m\.onnx: found scheme 's8s8', expected one of u8s7, u8u8, u8s8"):
        quantize_onnx(convolutions, tmp_path / "q.onnx", batches(4, 3, 8, 8), scheme="s8s8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", SAFE)
def test_the_outputs_stay_near(convolutions, tmp_path, scheme):
    """The sums of both schemes are exact on every processor, so that the bound is, too."""
    quantize_onnx(convolutions, tmp_path / "q.onnx", batches(4, 3, 8, 8), scheme=scheme)
    feed = {"input": batches(5, 3, 8, 8)[0][0]}
    found = []
    for path in (convolutions, tmp_path / "q.onnx"):
        session = open_session(path, threads=1)
        found.append(run_session(session, {session.get_inputs()[0].name: feed["input"]}, path.name))
    assert 0 < deviation(found[1], found[0]) < 0.05


@pytest.mark.parametrize("name", ["shallow vit", "shallow convnext", "normalize"])
def test_norms_of_groups_stay_in_floating_point(tmp_path, name):
    """A network beside itself computes the same, and loses about what it does alone, where its norms are ONNX's."""
    if name == "normalize":
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 1), Divided(), nn.Conv2d(8, 6, 1), nn.GroupNorm(1, 6), nn.Conv2d(6, 2, 1)
        )
        x = torch.randn(8, 3, 4, 4)
        alone = gs.trace(network, x[:2])
    else:
        alone = traced(name)[0]
        x = torch.randn(16, *example(name).shape[1:], generator=torch.Generator().manual_seed(0))
    errors = []
    for graph in (alone, concatenate([alone, alone])):
        graph.module.float()
        export_onnx(graph, tmp_path / "m.onnx", check=False)
        quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", [(x,)])
        sessions = [open_session(tmp_path / f"{n}.onnx", threads=1) for n in "mq"]
        plain, quantized = (run_session(s, {s.get_inputs()[0].name: x}, "m.onnx")[0] for s in sessions)
        errors.append(float((plain - quantized).square().mean() / plain.var()))
    assert errors[1] < 1.5 * errors[0]
    file = onnx.load(tmp_path / "q.onnx").graph
    makers = {output: node.op_type for node in file.node for output in node.output}
    constants = {tensor.name: tensor for tensor in file.initializer}
    products = [node for node in file.node if node.op_type == "MatMul" and node.input[1] in constants]
    # Four for each norm, two for a division; weights are not constants any more.
    assert len(products) == {"shallow vit": 4 * 3, "shallow convnext": 4 * 5, "normalize": 4 + 2}[name]
    roots = [node for node in file.node if node.op_type in ("Sqrt", "Reciprocal", "Pow")]
    assert roots
    assert not any(makers.get(given) == "DequantizeLinear" for node in roots for given in node.input)


class Divided(nn.Module):
    def forward(self, x):
        return nn.functional.normalize(x, 3.0, 1)


def test_no_examples(convolutions, tmp_path):
    with pytest.raises(SurgeryError, match="cannot be quantised without examples; give at least one"):
        quantize_onnx(convolutions, tmp_path / "q.onnx", [])
    assert list(tmp_path.iterdir()) == []


def test_examples_of_another_shape(convolutions, tmp_path):
    with pytest.raises(SurgeryError, match="ONNX Runtime cannot quantise it"):
        quantize_onnx(convolutions, tmp_path / "q.onnx", batches(4, 3, 9, 9))
    with pytest.raises(SurgeryError, match="calibration: has 2 inputs, the network takes 1"):
        quantize_onnx(convolutions, tmp_path / "q.onnx", [(torch.zeros(1), torch.zeros(1))])
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_quantise(tmp_path):
    path = exported(nn.Sequential(nn.Tanh()), tmp_path / "m.onnx", (3,))
    with pytest.raises(SurgeryError, match="has no operator that can be quantised"):
        quantize_onnx(path, tmp_path / "q.onnx", batches(2, 3))
