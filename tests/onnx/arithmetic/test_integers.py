"""Quantised files in integers: the same numbers on every processor, or how much others differ."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx_files import scripted
from patience import PATIENCE
from processors import without_vnni
from torch import nn

from graphsurgery.errors import SurgeryError
from graphsurgery.onnx.arithmetic.integers import IntegerNetwork
from graphsurgery.onnx.exporting.quantizing import SAFE, SCHEMES, quantize_onnx
from graphsurgery.onnx.runtime.sessions import open_session, run_session


class Residual(nn.Module):
    """Convolutions on a sum, with a pool and a mean: `[batch, 3, 8, 8]` to `[batch, 4]`."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 5, 1))
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        return self.head((x + self.branch(x)).mean((2, 3)))


class Attention(nn.Module):
    """One head, whose two products are of activations: `[batch, 6, 8]` to the same."""

    def __init__(self):
        super().__init__()
        self.packed, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.packed(x).chunk(3, -1)
        return self.out(torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v) + x


NETWORKS = {
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 7, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 2)), nn.ReLU(), nn.Conv2d(7, 4, 3)
        ),
        (3, 9, 9),
    ),
    "groups": (
        lambda: nn.Sequential(
            nn.Conv2d(6, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish(), nn.Conv2d(8, 12, 3, groups=4)
        ),
        (6, 8, 8),
    ),
    "signal": (lambda: nn.Sequential(nn.Conv1d(2, 6, 5), nn.Tanh(), nn.Conv1d(6, 4, 3, padding=1)), (2, 20)),
    "volume": (lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1)), (2, 5, 5, 5)),
    "layers": (lambda: nn.Sequential(nn.Linear(9, 33), nn.ReLU(), nn.Linear(33, 5)), (9,)),
    "residual": (Residual, (3, 8, 8)),
    "attention": (Attention, (6, 8)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each network under each scheme; its weights of one sign in many channels, so that pairs saturate easily."""
    folder = tmp_path_factory.mktemp("quantised")
    found = {}
    for name, (make, shape) in NETWORKS.items():
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter[::2] = parameter[::2].abs()
        scripted(model, torch.zeros(2, *shape), folder / "m.onnx")
        for scheme in SCHEMES:
            found[name, scheme] = folder / f"{name}.{scheme}.onnx"
            quantize_onnx(folder / "m.onnx", found[name, scheme], [(examples(shape, 16),)], scheme=scheme)
    return found


def examples(shape, count, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def adversarial(shape):
    """Values at both ends of the 8 bits, and beyond, all of one kind and mixed."""
    signs = torch.randint(0, 2, (6, *shape), generator=torch.Generator().manual_seed(2)) * 2.0 - 1
    constant = torch.ones(1, *shape)
    return torch.cat([signs * 3, signs * 1e3, constant * 1e3, constant * -1e3, constant * 0, examples(shape, 8, 1)])


def both(path, x):
    network = IntegerNetwork(path)
    return tuple(network.run([x], saturates=saturates)[0] for saturates in (False, True))


def step(path):
    """What one step of the 8 bits is worth in the output."""
    model = onnx.load(path)
    last = [node for node in model.graph.node if node.op_type == "DequantizeLinear"][-1]
    (scale,) = (numpy_helper.to_array(c) for c in model.graph.initializer if c.name == last.input[1])
    return float(scale)


@pytest.mark.parametrize("scheme", SAFE)
@pytest.mark.parametrize("name", NETWORKS)
def test_safe_schemes_give_the_same_with_both_sums(files, name, scheme):
    path = files[name, scheme]
    assert IntegerNetwork(path).overflowing == 0
    assert IntegerNetwork(path).kinds == (False,)
    exact, saturating = both(path, adversarial(NETWORKS[name][1]))
    assert torch.equal(exact, saturating)


@pytest.mark.parametrize("name", NETWORKS)
def test_signed_weights_of_8_bits_do_not(files, name):
    path = files[name, "u8s8"]
    assert IntegerNetwork(path).overflowing > 0
    exact, saturating = both(path, adversarial(NETWORKS[name][1]))
    assert not torch.equal(exact, saturating)


@given(seed=st.integers(0, 2**32 - 1), extreme=st.floats(0, 1), scale=st.floats(0.1, 1e4))
@settings(max_examples=25, deadline=None)
def test_whatever_the_weights_of_7_bits_and_the_inputs(files, tmp_path_factory, seed, extreme, scale):
    """Other weights, many at the ends of 7 bits, put into the files; inputs of any size."""
    random = np.random.default_rng(seed)
    model = onnx.load(files["groups", "u8s7"])
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
            drawn = random.integers(-64, 65, tensor.dims)
            drawn = np.where(random.random(tensor.dims) < extreme, np.where(drawn < 0, -64, 64), drawn)
            tensor.CopyFrom(numpy_helper.from_array(drawn.astype(np.int8), tensor.name))
    path = tmp_path_factory.mktemp("drawn") / "m.onnx"
    onnx.save(model, path)
    assert IntegerNetwork(path).overflowing == 0
    x = torch.from_numpy((random.standard_normal((3, 6, 8, 8)) * scale).astype(np.float32))
    exact, saturating = both(path, x)
    assert torch.equal(exact, saturating)


@pytest.mark.parametrize("scheme", SAFE)
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_computes_the_exact_sums(files, name, scheme):
    """On every processor. Only a value between two steps of the 8 bits may be rounded to the other one, by float32."""
    path = files[name, scheme]
    x = adversarial(NETWORKS[name][1])
    session = open_session(path, threads=1)
    (found,) = run_session(session, {session.get_inputs()[0].name: x}, path.name)
    (expected,) = IntegerNetwork(path).run([x], saturates=False)
    assert float((found - expected).abs().max()) < 2.5 * step(path)
    assert float((found != expected).double().mean()) < 0.05


SCRIPT = """
import sys
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = np.load(path + ".x.npy")
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    single = [session.run(None, {session.get_inputs()[0].name: part[None]})[0] for part in x]
    np.save(path + ".y.npy", y)
    np.save(path + ".single.npy", np.concatenate(single))
"""


def test_the_kernels_without_vnni_compute_the_saturating_sums(files, tmp_path):
    """The model next to ONNX Runtime's own kernels for AVX2, on a processor that says it has no more."""
    environment = without_vnni(tmp_path)
    for (name, _), path in files.items():
        np.save(f"{path}.x.npy", adversarial(NETWORKS[name][1]).numpy())
    command = [sys.executable, "-c", SCRIPT, *map(str, files.values())]
    subprocess.run(command, check=True, env=environment, timeout=PATIENCE)
    for (name, _), path in files.items():
        exact, saturating = both(path, adversarial(NETWORKS[name][1]))
        for found in (torch.from_numpy(np.load(f"{path}.{kind}.npy")) for kind in ("y", "single")):
            assert float((found - saturating).abs().max()) < 2.5 * step(path), path.name
            assert float((found != saturating).double().mean()) < 0.05, path.name
            if not torch.equal(exact, saturating):
                assert float((found != exact).double().mean()) > 0.05, path.name


def test_one_zero_for_each_channel_is_followed(tmp_path):
    """Weights with zeros of their own, as other programs write them."""
    random = np.random.default_rng(0)
    numbers, zeros = random.integers(0, 256, (4, 3), np.uint8), np.array([3, 100, 250], np.uint8)
    scales = np.array([0.5, 0.25, 2.0], np.float32)
    constants = {"w": numbers, "ws": scales, "wz": zeros, "xs": np.float32(0.5), "xz": np.uint8(7)}
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=1),
        onnx.helper.make_node("MatMul", ["d", "dw"], ["y"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", k]) for n, k in (("x", 4), ("y", 3))
    ]
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m"
    )
    x = torch.randint(-3, 100, (5, 4), generator=torch.Generator().manual_seed(0)) * 0.5
    (found,) = IntegerNetwork(tmp_path / "m").run([x], saturates=True)
    np.testing.assert_allclose(found, x.numpy() @ ((numbers - zeros.astype(int)) * scales), rtol=1e-6)


def test_bad_inputs(files, tmp_path):
    network = IntegerNetwork(files["layers", "u8s7"])
    with pytest.raises(SurgeryError, match=r"layers.u8s7.onnx: found 2 inputs, expected 1: "):
        network.run([torch.zeros(1, 9)] * 2, saturates=False)
    with pytest.raises(SurgeryError, match=r"layers.u8s7.onnx: ONNX Runtime cannot open it: "):
        network.run([torch.zeros(1, 9, dtype=torch.int64)], saturates=False)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(SurgeryError, match=r"bad.onnx: is no whole ONNX file: "):
        IntegerNetwork(tmp_path / "bad.onnx")
