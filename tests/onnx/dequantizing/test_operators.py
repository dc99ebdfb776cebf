"""Operators that compute in integers, opened as the floating ones that they stand for.

Numbers are such that 8 bits hold them exactly, so that ONNX Runtime gives on the file what the floating network gives,
on every processor; where a result has to be rounded, within half a step.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from random_networks import RandomNetwork
from torch import nn

import graphsurgery as gs
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.exporting import export_onnx
from graphsurgery.onnx.files.model_file import read_onnx
from graphsurgery.onnx.files.nodes import read_nodes
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.sessions import open_session, run_session
from graphsurgery.passes.compress import compress
from graphsurgery.surgery.deviation import deviation

MICROSOFT = "com.microsoft"
DRAW = np.random.default_rng(0)


def whole(*shape, most=3, kind=np.int8):
    """Weights that are small, so that no pair of products saturates."""
    return DRAW.integers(-most if kind is np.int8 else 0, most + 1, shape).astype(kind)


def saved(path, nodes, x, constants, *, outputs=("y",), more=()):
    """A file of one floating input `x`."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x), *more]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, values, weights)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def both(path, x):
    """What the network gives that the file is opened as, and what the file gives."""
    graph = import_onnx(path).graph
    kinds = {n.op_type for n in import_onnx(path).file.model.graph.node}
    assert not [kind for kind in kinds if "Integer" in kind or "Q" in kind or "Quant" in kind]
    session = open_session(path, threads=1, optimised=False)
    with torch.no_grad():
        return graph.module(x), run_session(session, {"x": x}, str(path))[0]


def ramp(*shape):
    """Whole numbers from 0 to 255, both among them: 8 bits that are chosen for them hold them exactly."""
    x = torch.from_numpy(DRAW.integers(0, 256, shape).astype(np.float32))
    x.reshape(-1)[:2] = torch.tensor([0.0, 255.0])
    return x


def dynamic(product, weight, scale, *, zero=0, behind=(), **attributes):
    """What quantises its input as it comes, multiplies, and scales."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "quantise"),
        helper.make_node(product, ["q", "w_quantized", "z", "w_zero"], ["sums"], "layer_quant", **attributes),
        helper.make_node("Cast", ["sums"], ["cast"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "w_scale"], ["scales"], "scales"),
        helper.make_node("Mul", ["cast", "scales"], ["scaled" if behind else "y"], "scale"),
        *behind,
    ]
    return nodes, {"w_quantized": weight, "w_scale": np.float32(scale), "w_zero": np.asarray(zero, weight.dtype)}


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_products_of_what_is_quantised_as_it_comes(tmp_path, kind):
    zero = 0 if kind is np.int8 else 2
    nodes, constants = dynamic("MatMulInteger", whole(6, 5, kind=kind), 0.5, zero=zero)
    given, wanted = both(saved(tmp_path / "m.onnx", nodes, ["b", 6], constants), ramp(4, 6))
    assert deviation(given, wanted) < 1e-6
    graph = import_onnx(tmp_path / "m.onnx").graph
    weight = (constants["w_quantized"].astype(np.float32) - zero) * 0.5
    assert any(torch.equal(p, torch.from_numpy(weight.T)) for p in graph.module.parameters())


def test_a_product_with_a_scale_for_each_column(tmp_path):
    nodes, constants = dynamic("MatMulInteger", whole(6, 4), 1, zero=np.arange(4))
    constants["w_scale"] = np.float32([0.5, 0.25, 1, 2])
    given, wanted = both(saved(tmp_path / "m.onnx", nodes, ["b", 3, 6], constants), ramp(2, 3, 6))
    assert deviation(given, wanted) < 1e-6


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_gets_its_bias_back(tmp_path, groups):
    behind = [
        helper.make_node("Reshape", ["w_bias", "laid"], ["shaped"], "shape"),
        helper.make_node("Add", ["scaled", "shaped"], ["y"], "bias"),
    ]
    nodes, constants = dynamic("ConvInteger", whole(6, 4 // groups, 3, 3), 0.25, behind=behind, group=groups)
    constants |= {"w_bias": np.arange(6, dtype=np.float32), "laid": np.int64([1, -1, 1, 1])}
    path = saved(tmp_path / "m.onnx", nodes, ["b", 4, 6, 6], constants)
    given, wanted = both(path, ramp(2, 4, 6, 6))
    assert deviation(given, wanted) < 1e-6
    [layer] = [m for m in import_onnx(path).graph.module.modules() if isinstance(m, nn.Conv2d)]
    assert layer.bias.tolist() == [0, 1, 2, 3, 4, 5]


def rounded(shape, factor="w_scale"):
    """A bias as ONNX Runtime's quantiser wrote it before 1.8: in whole numbers, added to the sums."""
    nodes, constants = dynamic("ConvInteger", whole(6, 4, 3, 3), 0.25)
    quantise, layer, cast, *scale = nodes
    cast.input[0] = "with_bias"
    nodes = [
        quantise,
        helper.make_node("Mul", ["s", factor], ["step"], "step"),
        helper.make_node("Div", ["w_bias", "step"], ["divided"], "divide"),
        helper.make_node("Floor", ["divided"], ["floor"], "round"),
        helper.make_node("Cast", ["floor"], ["whole"], "whole", to=TensorProto.INT32),
        helper.make_node("Reshape", ["whole", "laid"], ["shaped"], "shape"),
        layer,
        helper.make_node("Add", ["sums", "shaped"], ["with_bias"], "bias"),
        cast,
        *scale,
    ]
    more = {"w_bias": np.arange(6, dtype=np.float32), "laid": np.int64(shape), "other": np.float32(0.5)}
    return nodes, constants | more


def test_a_bias_in_whole_numbers(tmp_path):
    nodes, constants = rounded([1, -1, 1, 1])
    path = saved(tmp_path / "m.onnx", nodes, ["b", 4, 6, 6], constants)
    given, wanted = both(path, ramp(2, 4, 6, 6))
    assert deviation(given, wanted) < 1e-6
    [layer] = [m for m in import_onnx(path).graph.module.modules() if isinstance(m, nn.Conv2d)]
    assert layer.bias.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("shape", "factor"), [([1, -1, 1, 1], "other"), ([1, 1, 1, -1], "w_scale")])
def test_a_bias_in_other_whole_numbers_is_refused(tmp_path, shape, factor):
    nodes, constants = rounded(shape, factor)
    path = saved(tmp_path / "m.onnx", nodes, ["b", 4, 8, 8], constants)
    with pytest.raises(gs.UnsupportedError, match="step computes with the numbers by which values are quantised"):
        import_onnx(path)


def test_a_bias_that_is_no_number_for_each_channel_stays_outside(tmp_path):
    behind = [
        helper.make_node("Reshape", ["w_bias", "laid"], ["shaped"], "shape"),
        helper.make_node("Add", ["scaled", "shaped"], ["y"], "bias"),
    ]
    nodes, constants = dynamic("ConvInteger", whole(4, 4, 3, 3), 0.25, behind=behind)
    constants |= {"w_bias": np.arange(4, dtype=np.float32), "laid": np.int64([1, 1, 1, 4])}
    given, wanted = both(saved(tmp_path / "m.onnx", nodes, ["b", 4, 6, 6], constants), ramp(2, 4, 6, 6))
    assert deviation(given, wanted) < 1e-6


def test_a_product_of_two_values(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "turn", perm=[0, 2, 1]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "first"),
        helper.make_node("DynamicQuantizeLinear", ["t"], ["q2", "s2", "z2"], "second"),
        helper.make_node("MatMulInteger", ["q", "q2", "z", "z2"], ["sums"], "product"),
        helper.make_node("Cast", ["sums"], ["cast"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s2", "s"], ["scales"], "scales"),
        helper.make_node("Mul", ["scales", "cast"], ["y"], "scale"),
    ]
    given, wanted = both(saved(tmp_path / "m.onnx", nodes, ["b", 3, 6], {}), ramp(1, 3, 6))
    assert deviation(given, wanted) < 1e-6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_fused_products(tmp_path, kind, bias):
    constants = {"w": whole(6, 4), "ws": np.float32([0.5, 1, 2, 4]), "wz": np.int8([0, 1, 2, 3]), "bias": np.ones(4)}
    constants["bias"] = constants["bias"].astype(np.float32)
    behind = ["bias"] if bias else []
    if kind == "DynamicQuantizeMatMul":
        nodes = [helper.make_node(kind, ["x", "w", "ws", "wz", *behind], ["y"], "product", domain=MICROSOFT)]
    else:
        inputs = ["q", "w", "s", "ws", "z", "wz", *behind]
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "quantise"),
            helper.make_node(kind, inputs, ["y"], "product", domain=MICROSOFT),
        ]
    given, wanted = both(saved(tmp_path / "m.onnx", nodes, ["b", 6], constants), ramp(4, 6))
    assert deviation(given, wanted) < 1e-6


@pytest.mark.parametrize("scales", ["one", "each direction", "each row"])
def test_a_recurrent_layer_has_its_weights_the_right_way_round(tmp_path, scales):
    """Its gates saturate where its input is large, so that it is compared with an LSTM of the same weights."""
    hidden, size = 3, 5
    shape = {"one": (2,), "each direction": (2,), "each row": (2, 4 * hidden)}[scales]
    w, r = whole(2, size, 4 * hidden, most=100), whole(2, hidden, 4 * hidden, most=100)
    scale = np.full(shape, 2.0**-7, np.float32) if scales == "one" else DRAW.choice([2.0**-7, 2.0**-8], shape)
    zero = np.zeros(shape, np.int8)
    constants = {"w": w, "r": r, "s": scale.astype(np.float32), "z": zero}
    inputs = ["x", "w", "r", "", "", "", "", "", "s", "z", "s", "z"]
    keywords = {"hidden_size": hidden, "direction": "bidirectional"}
    quantised = [helper.make_node("DynamicQuantizeLSTM", inputs, ["y"], "lstm", domain=MICROSOFT, **keywords)]
    path = saved(tmp_path / "q.onnx", quantised, [4, 2, size], constants)
    laid = constants["s"].reshape(2, 1, -1)
    turned = {name: (constants[name] * laid).swapaxes(1, 2) for name in ("w", "r")}
    plain = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", **keywords)]
    reference = saved(tmp_path / "m.onnx", plain, [4, 2, size], turned)
    x = torch.randn(4, 2, size, generator=torch.Generator().manual_seed(0))
    given, quantised = both(path, x)
    _, wanted = both(reference, x)
    assert deviation(given, wanted) < 1e-6
    assert deviation(quantised, wanted) < 0.1


STEP = 0.125


def static(kind, operands, *, x, constants, zero=60, domain=MICROSOFT, more=(), **attributes):
    """`x` in steps of a half, one operator on 8 bits, and back."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["x_quantized"], "quantise"),
        helper.make_node(kind, [*operands, *more], ["y_quantized"], "layer_quant", domain=domain, **attributes),
        helper.make_node("DequantizeLinear", ["y_quantized", "ys", "yz"], ["y"], "dequantise"),
    ]
    constants = {"xs": np.float32(0.5), "xz": np.uint8(3), "ys": np.float32(STEP), "yz": np.uint8(zero)} | constants
    return nodes, x, constants


X, Y = ["x_quantized", "xs", "xz"], ["ys", "yz"]
W = ["w", "ws", "wz"]
OTHER = {"w": whole(4, 1, 1, kind=np.uint8), "ws": np.float32(0.5), "wz": np.uint8(1)}
KERNEL = {"w": whole(5, 4, 3, 3, most=1), "ws": np.float32([0.5, 0.25, 0.5, 0.25, 0.25]), "wz": np.zeros(5, np.int8)}
MATRIX = {"w": whole(4, 6, most=2), "ws": np.float32([0.5, 0.25, 0.5, 0.25, 0.25, 0.5]), "wz": np.zeros(6, np.int8)}
ROWS = {"w": whole(6, 4, most=2), "ws": np.float32(0.25), "wz": np.int8(0)}
IMAGE, VECTOR = ["b", 4, 6, 6], ["b", 4]
STATIC = {
    "QLinearConv": static(
        "QLinearConv",
        [*X, *W, *Y],
        x=IMAGE,
        domain="",
        more=["c"],
        constants=KERNEL | {"c": np.int32([1, 2, -3, 4, 5])},
    ),
    "QLinearMatMul": static("QLinearMatMul", [*X, *W, *Y], x=VECTOR, domain="", constants=MATRIX),
    "QGemm": static(
        "QGemm", [*X, *W, "c", *Y], x=VECTOR, transB=1, constants=ROWS | {"c": np.int32([1, 2, -3, 4, 5, 6])}
    ),
    "QLinearAdd": static("QLinearAdd", [*X, *W, *Y], x=IMAGE, constants=OTHER),
    "QLinearMul": static("QLinearMul", [*X, *W, *Y], x=IMAGE, constants=OTHER),
    "QLinearLeakyRelu": static("QLinearLeakyRelu", [*X, *Y], x=IMAGE, alpha=0.25, constants={}),
    "QLinearSigmoid": static("QLinearSigmoid", [*X, *Y], x=IMAGE, constants={}),
    "QLinearSoftmax": static("QLinearSoftmax", [*X, *Y], x=IMAGE, axis=-1, opset=18, constants={}),
    "QLinearGlobalAveragePool": static("QLinearGlobalAveragePool", [*X, *Y], x=IMAGE, constants={}),
    "QLinearAveragePool": static("QLinearAveragePool", [*X, *Y], x=IMAGE, kernel_shape=[2, 2], constants={}),
    "QLinearConcat": static("QLinearConcat", [*Y, *X, "x_quantized", "xs", "xz"], x=IMAGE, axis=1, constants={}),
}


def small(x):
    shape = [3 if size == "b" else size for size in x]
    return torch.from_numpy(DRAW.integers(-1, 4, shape).astype(np.float32) / 2)


@pytest.mark.parametrize("kind", STATIC)
def test_operators_on_8_bits(tmp_path, kind):
    nodes, x, constants = STATIC[kind]
    given, wanted = both(saved(tmp_path / "m.onnx", nodes, x, constants), small(x))
    assert wanted.min() > -60 * STEP, "no result is cut off"
    assert wanted.max() < 195 * STEP, "no result is cut off"
    assert (given - wanted).abs().max() <= STEP / 2 + 1e-6
    assert given.abs().max() > STEP


@pytest.mark.parametrize("kind", ["QLinearConv", "QLinearMatMul", "QLinearAdd"])
def test_a_relu_that_went_into_the_range_of_a_result(tmp_path, kind):
    nodes, x, constants = STATIC[kind]
    path = saved(tmp_path / "m.onnx", nodes, x, constants | {"yz": np.uint8(0)})
    given, wanted = both(path, small(x) - 1)
    assert (given - wanted).abs().max() <= STEP / 2 + 1e-6
    assert given.min() == 0
    assert any(n.op == "call_function" and "relu" in n.name for n in import_onnx(path).graph.module.graph.nodes)


def test_what_moves_8_bits_moves_floating_numbers(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"], "quantise"),
        helper.make_node("MaxPool", ["q"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["pooled", "pooled"], ["both"], "join", axis=1),
        helper.make_node("Transpose", ["both"], ["turned"], "turn", perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["turned", "shape"], ["flat"], "flatten"),
        helper.make_node("DequantizeLinear", ["flat", "xs", "xz"], ["y"], "dequantise"),
    ]
    constants = {"xs": np.float32(0.5), "xz": np.uint8(3), "shape": np.int64([0, -1])}
    given, wanted = both(saved(tmp_path / "m.onnx", nodes, IMAGE, constants), small(IMAGE))
    assert torch.equal(given, torch.as_tensor(wanted))


def test_a_table_in_8_bits_that_is_looked_up(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], "index", to=TensorProto.INT64),
        helper.make_node("Gather", ["table_quantized", "i"], ["rows"], "look_up"),
        helper.make_node("DequantizeLinear", ["rows", "s", "z"], ["y"], "dequantise"),
        helper.make_node("Gather", ["table_quantized", "i"], ["again"], "look_again"),
        helper.make_node("DequantizeLinear", ["again", "s2", "z"], ["y2"], "dequantise_again"),
    ]
    constants = {"table_quantized": whole(9, 4, most=100), "s": np.float32(0.25), "s2": np.float32(0.25)}
    constants["z"] = np.int8(5)
    path = saved(tmp_path / "m.onnx", nodes, ["b", 3], constants, outputs=("y", "y2"))
    x = torch.arange(6.0).reshape(2, 3)
    with torch.no_grad():
        given = import_onnx(path).graph.module(x)
    wanted = run_session(open_session(path, threads=1, optimised=False), {"x": x}, str(path))
    assert all(torch.equal(a, torch.as_tensor(b)) for a, b in zip(given.values(), wanted, strict=True))
    saved(path, nodes, ["b", 3], constants | {"s2": np.float32(0.5)}, outputs=("y", "y2"))
    with pytest.raises(gs.UnsupportedError, match="dequantise_again reads again by other numbers"):
        import_onnx(path)


def refused(kind):
    """Nodes that mean something else than what they look like, and the words."""
    nodes, constants = dynamic("MatMulInteger", whole(6, 5), 0.5)
    both_scales = {"s1": np.float32(0.5), "s2": np.float32(0.25), "z": np.uint8(3)}
    quantise = helper.make_node("QuantizeLinear", ["x", "s1", "z"], ["q"], "quantise")
    last = helper.make_node("DequantizeLinear", ["y_quantized", "s1", "z"], ["y"], "dequantise")
    shape = helper.make_node("Shape", ["sums"], ["n"], "sizes")
    cases = {
        "scale": [*nodes[:-1], helper.make_node("Mul", ["cast", "s"], ["y"], "scale")],
        "sums": [*nodes[:2], helper.make_node("Relu", ["sums"], ["r"], "relu"), *nodes[2:]],
        "size of sums": [*nodes[:2], shape, *nodes[2:]],
        "scale elsewhere": [*nodes, helper.make_node("Mul", ["x", "s"], ["y2"], "elsewhere")],
        "two scales": [quantise, helper.make_node("DequantizeLinear", ["q", "s2", "z"], ["y"], "dequantise")],
        "integers": [quantise, helper.make_node("Pad", ["q", "pads"], ["y_quantized"], "pad"), last],
        "joined": [
            quantise,
            helper.make_node("QuantizeLinear", ["x", "s2", "z"], ["q2"], "second"),
            helper.make_node("Concat", ["q", "q2"], ["y_quantized"], "join", axis=1),
            last,
        ],
        "channels last": [
            quantise,
            helper.make_node(
                "QLinearGlobalAveragePool", ["q", "s1", "z", "s1", "z"], ["y_quantized"], "pool", domain=MICROSOFT,
                channels_last=1,
            ),
            last,
        ],
    }  # fmt: skip
    return cases[kind], constants | both_scales | {"pads": np.int64([0, 0, 0, 1])}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("scale", "layer_quant computes in integers"),
        ("sums", "layer_quant computes in integers"),
        ("size of sums", "layer_quant computes in integers"),
        ("scale elsewhere", "elsewhere computes with the numbers by which values are quantised"),
        ("two scales", "dequantise reads q by other numbers than it was quantised by"),
        ("integers", r"pad computes in integers \(Pad\)"),
        ("joined", r"join computes in integers \(Concat\)"),
        ("channels last", "pool is a QLinearGlobalAveragePool with its channels last"),
    ],
)
def test_what_is_not_what_it_looks_like_is_refused(tmp_path, kind, message):
    nodes, constants = refused(kind)
    path = saved(tmp_path / "m.onnx", nodes, ["b", 4] if kind in ("integers", "joined") else ["b", 6], constants)
    with pytest.raises(gs.UnsupportedError, match=f"{message}.*; give the file before quantisation"):
        import_onnx(path)


class Reader(CalibrationDataReader):
    """A batch to choose ranges by."""

    def __init__(self, name, x):
        self.left = [{name: x.numpy()}]

    def get_next(self):
        return self.left.pop() if self.left else None


class Text(nn.Module):
    """A table, a recurrent layer in both directions, and attention."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.lstm = nn.LSTM(16, 12, batch_first=True, bidirectional=True)
        self.q, self.k, self.v, self.head = (nn.Linear(24, n) for n in (24, 24, 24, 5))

    def forward(self, indices):
        x, _ = self.lstm(self.table(indices))
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2) / 5, -1)
        return self.head(weights @ self.v(x))


def quantised(path, out, form, x):
    """A file in the dialects of ONNX Runtime's quantiser."""
    logging.disable(logging.WARNING)
    name = onnx.load(path).graph.input[0].name
    try:
        if form.startswith("dynamic"):
            options = {"MatMulConstBOnly": False} if form == "dynamic, both" else {}
            quantize_dynamic(
                path, out, weight_type=QuantType.QInt8, per_channel=form == "dynamic, rows", extra_options=options
            )
        else:
            quantize_static(
                path, out, Reader(name, x), quant_format=QuantFormat.QOperator, per_channel=form == "static, rows"
            )
    finally:
        logging.disable(logging.NOTSET)
    return out


@cache
def floating(name):
    """A network as a file, and its input."""
    torch.manual_seed(0)
    module = Text() if name == "text" else RandomNetwork(name)
    x = torch.randint(0, 20, (4, 7)) if name == "text" else torch.randn(4, 3, 4, 4)
    with TemporaryDirectory() as folder:
        export_onnx(gs.trace(module.eval(), x), Path(folder, "m.onnx"), check=False)
        return Path(folder, "m.onnx").read_bytes(), x


FORMS = ("dynamic", "dynamic, rows", "dynamic, both", "static", "static, rows")
NETWORKS = [("text", form) for form in FORMS] + [
    (seed, form) for seed in (1, 5) for form in ("dynamic", "static, rows")
]


@pytest.mark.parametrize(("name", "form"), NETWORKS)
def test_quantised_networks_are_what_they_were(tmp_path, name, form):
    """Each weight within a step, each space, and an edit that is written."""
    file, x = floating(name)
    (tmp_path / "m.onnx").write_bytes(file)
    before = import_onnx(tmp_path / "m.onnx").graph
    path = quantised(tmp_path / "m.onnx", tmp_path / "q.onnx", form, x)
    graph = import_onnx(path).graph
    assert sorted(s.size for s in graph.spaces) == sorted(s.size for s in before.spaces)
    counts = {read_nodes(read_onnx(file)).parameters for file in (tmp_path / "m.onnx", path)}
    assert counts == {sum(p.numel() for p in graph.module.parameters())}
    now = defaultdict(list)
    for parameter in graph.module.parameters():
        now[parameter.shape].append(parameter)
    for parameter in before.module.parameters():
        nearest = min((other - parameter).abs().max() for other in now[parameter.shape])
        assert nearest <= parameter.abs().max() / 127 + 1e-6
    with torch.no_grad():
        assert deviation(graph.module(x), before.module(x)) < (0.03 if form.startswith("dynamic") else 0.2)
    assert rewrite_onnx(path, compress(graph, 0.7), tmp_path / "small.onnx").holds
