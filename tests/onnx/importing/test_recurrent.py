"""Recurrent operators of files as layers of torch: read, cut, widened, and written back."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_graphsurgeon as surgeon
import pytest
import torch
from onnx_files import scripted
from torch import nn

import graphsurgery as gs
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.files.model_file import read_onnx
from graphsurgery.onnx.files.nodes import read_nodes
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import fold, gate
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import InDouble

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
WIDTH, HIDDEN = 5, 6


class Builder:
    """A file `x [batch, 4, 7] → product → recurrent operator → product → out [batch, 4, 3]`."""

    def __init__(self, kind, *, layout=0, starts="", lengths=False, bias=True, more=(), batch="batch", **attributes):
        self.generator = np.random.default_rng(0)
        self.graph = surgeon.Graph(opset=14, ir_version=8, name="recurrent")
        self.kind, self.layout, self.more = kind, layout, more
        self.ways = 2 if attributes.get("direction") == "bidirectional" else 1
        x = surgeon.Variable("x", np.float32, [batch, 4, 7])
        self.graph.inputs = [x]
        inner = self.op("MatMul", x, self.weight("in.weight", 7, WIDTH))
        inner = inner if layout else self.op("Transpose", inner, perm=[1, 0, 2])
        rows = GATES[kind] * HIDDEN
        read = [inner, self.weight("rnn.W", self.ways, rows, WIDTH), self.weight("rnn.R", self.ways, rows, HIDDEN)]
        read.append(self.weight("rnn.B", self.ways, 2 * rows) if bias else surgeon.Variable.empty())
        read.append(self.input("lengths", np.int32, ["batch"]) if lengths else surgeon.Variable.empty())
        if starts:
            read += [self.start(starts, at) for at in range(2 if kind == "LSTM" else 1)]
        while isinstance(read[-1], surgeon.Variable) and not read[-1].name:
            read.pop()
        outputs = [surgeon.Variable(name, np.float32) for name in ("y", "y_h", "y_c")[: 3 if kind == "LSTM" else 2]]
        attributes = {"hidden_size": HIDDEN, **({"layout": 1} if layout else {}), **attributes}
        self.graph.nodes.append(surgeon.Node(kind, "rnn", attributes, read, outputs))
        turned = self.op("Transpose", outputs[0], perm=[0, 1, 2, 3] if layout else [2, 0, 1, 3])
        flat = self.op("Reshape", turned, surgeon.Constant("flat", np.array([0, 0, self.ways * HIDDEN], np.int64)))
        out = self.op("MatMul", flat, self.weight("out.weight", self.ways * HIDDEN, 3))
        out.name = "out"
        ends = [v if layout else self.op("Transpose", v, perm=[1, 0, 2]) for v in outputs[1:] if v.name in more]
        self.graph.outputs = [out, *ends]

    def op(self, kind, *inputs, dtype=np.float32, **attributes):
        value = surgeon.Variable(f"value_{len(self.graph.nodes)}", dtype)
        self.graph.nodes.append(surgeon.Node(kind, f"node_{len(self.graph.nodes)}", attributes, list(inputs), [value]))
        return value

    def weight(self, name, *shape):
        return surgeon.Constant(name, (self.generator.standard_normal(shape) / 2).astype(np.float32))

    def input(self, name, dtype, shape):
        self.graph.inputs.append(surgeon.Variable(name, dtype, shape))
        return self.graph.inputs[-1]

    def start(self, kind, at):
        """A state to start with, `[ways, batch, hidden]`, or `[batch, ways, hidden]`."""
        shape = [1, self.ways, HIDDEN] if self.layout else [self.ways, 1, HIDDEN]
        if kind == "zeros":
            return surgeon.Constant(f"start_{at}", np.zeros(shape, np.float32))
        if kind == "numbers":
            return self.weight(f"start_{at}", *shape)
        if kind == "inputs":
            given = self.input(f"start_{at}", np.float32, ["batch", self.ways, HIDDEN])
            return given if self.layout else self.op("Transpose", given, perm=[1, 0, 2])
        sizes = self.op("Shape", self.graph.inputs[0], dtype=np.int64)
        batch = self.op("Gather", sizes, surgeon.Constant(f"at_{at}", np.array([0])), dtype=np.int64)
        parts = [surgeon.Constant(f"size_{at}_{n}", np.array([n], np.int64)) for n in (self.ways, HIDDEN)]
        parts.insert(0 if self.layout else 1, batch)
        return self.op("ConstantOfShape", self.op("Concat", *parts, dtype=np.int64, axis=0))

    def save(self, path):
        onnx.save(surgeon.export_onnx(self.graph), str(path))
        return path


CASES = {
    "plain": {},
    "both ways": {"direction": "bidirectional"},
    "backwards": {"direction": "reverse"},
    "without bias": {"bias": False},
    "zeros to start": {"starts": "zeros", "batch": 1},
    "numbers to start": {"starts": "numbers", "batch": 1, "direction": "bidirectional"},
    "states to start": {"starts": "inputs"},
    "zeros that are computed": {"starts": "computed"},
    "lengths": {"lengths": True, "direction": "bidirectional"},
    "last states": {"more": ("y_h", "y_c"), "direction": "bidirectional"},
}


def exact(kind):
    """The options that make an operator torch's."""
    return {"linear_before_reset": 1} if kind == "GRU" else {}


def inputs_of(graph, batch=3):
    """Random inputs of a network; lengths between 1 and 4."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, *spec.shape[1:], generator=generator)
        if spec.dtype.is_floating_point
        else torch.randint(1, 5, (batch, *spec.shape[1:]), generator=generator, dtype=spec.dtype)
        for spec in graph.inputs
    ]


def layer_in(graph):
    """The recurrent layer of a network; None where it has none."""
    return next((layer for layer in graph.module.modules() if isinstance(layer, nn.RNNBase)), None)


def spaces_of(graph):
    return {space.name.rstrip("_0123456789"): space.size for space in graph.spaces}


EVERY_CASE = itertools.product(("LSTM", "GRU"), CASES)
"""Those with two states and with one, of which an RNN is one more with fewer gates."""


@pytest.mark.parametrize(
    ("kind", "case"), [*EVERY_CASE, ("RNN", "plain"), ("RNN", "both ways"), ("RNN", "without bias")]
)
def test_a_layer_is_read_cut_widened_and_written_back(tmp_path, kind, case):
    """`import_onnx` and `rewrite_onnx` compare with ONNX Runtime."""
    path = Builder(kind, **exact(kind), **CASES[case]).save(tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    assert isinstance(layer_in(graph), getattr(nn, kind))
    free = case not in ("last states", "states to start")  # whose states are the file's interface
    assert spaces_of(graph) == {"in": WIDTH, **({kind.lower(): HIDDEN} if free else {})}
    small = compress(graph, {space.name: 4 if space.size == HIDDEN else 2 for space in graph.spaces})
    out = tmp_path / "small.onnx"
    rewrite_onnx(path, small, out)
    again = import_onnx(out).graph
    assert cost(again).parameters == cost(small).parameters < cost(graph).parameters
    x = inputs_of(graph)
    assert_same(again, small, x, 1e-5)
    node = next(node for node in onnx.load(out).graph.node if node.name == "rnn")
    assert {a.name: a.i for a in node.attribute}["hidden_size"] == (4 if free else HIDDEN)
    wide = widen(graph, 2)
    rewrite_onnx(path, wide, out)
    assert_same(import_onnx(out).graph, graph, x, 1e-4)


def assert_same(a, b, x, tolerance):
    with torch.no_grad():
        found, expected = (graph.module.eval()(*x) for graph in (a, b))
    found, expected = (list(v.values()) if isinstance(v, dict) else [v] for v in (found, expected))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("both", [False, True])
def test_the_file_is_what_cutting_the_module_gives(tmp_path, kind, both):
    """Two layers, as PyTorch exports them: with states that are computed and shared."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(5, 8)
            self.rnn = getattr(nn, kind)(8, 6, num_layers=2, bidirectional=both, batch_first=True)
            self.head = nn.Linear(12 if both else 6, 3)

        def forward(self, x):
            return self.head(self.rnn(torch.relu(self.stem(x)))[0])

    torch.manual_seed(0)
    module, x = Reader(), torch.randn(3, 7, 5)
    path = scripted(module, x, tmp_path / "m.onnx")
    rewrite_onnx(path, compress(import_onnx(path).graph, 0.5), tmp_path / "small.onnx")
    found = InDouble(import_onnx(tmp_path / "small.onnx").graph)(x)
    expected = InDouble(compress(gs.trace(module.eval(), x), 0.5))(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", GATES)
def test_products_are_counted_alike_in_file_and_network(tmp_path, kind):
    path = Builder(kind, direction="bidirectional", **exact(kind)).save(tmp_path / "m.onnx")
    nodes = read_nodes(read_onnx(path))
    macs = 4 * (7 * WIDTH + 2 * GATES[kind] * HIDDEN * (WIDTH + HIDDEN) + 2 * HIDDEN * 3)
    assert (nodes.macs, nodes.uncounted) == (macs, ())
    assert cost(import_onnx(path).graph).macs == macs


def test_gates_on_hidden_units_go_into_the_file(tmp_path):
    path = Builder("LSTM", direction="bidirectional").save(tmp_path / "m.onnx")
    gated = gate(import_onnx(path).graph)
    rewrite_onnx(path, fold(gated), tmp_path / "folded.onnx")
    assert_same(import_onnx(tmp_path / "folded.onnx").graph, fold(gated), inputs_of(gated), 1e-5)


def test_a_layout_that_onnx_runtime_does_not_have_is_refused(tmp_path):
    path = Builder("LSTM", layout=1).save(tmp_path / "m.onnx")
    with pytest.raises(
        gs.UnsupportedError, match=r"rnn is a LSTM, which is not translated, and ONNX Runtime cannot run it"
    ):
        import_onnx(path)


@pytest.mark.parametrize("same", [True, False])
def test_two_operators_may_share_weights(tmp_path, same):
    """Matrices that are read twice are tied; both biases stand in one vector, which is split where they differ."""
    builder = Builder("GRU", linear_before_reset=1)
    node = next(node for node in builder.graph.nodes if node.op == "GRU")
    flipped = builder.op("Neg", node.inputs[0])
    again = surgeon.Variable("again", np.float32)
    builder.graph.nodes.append(surgeon.Node("GRU", "twin", dict(node.attrs), [flipped, *node.inputs[1:]], [again]))
    node.outputs = [surgeon.Variable("once", np.float32), *node.outputs[1:]]
    y = builder.op("Add", node.outputs[0], again)
    reader = next(n for n in builder.graph.nodes if n.op == "Transpose" and "y" in {i.name for i in n.inputs})
    reader.inputs = [y]
    builder.graph.toposort()
    path = builder.save(tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    layers = [layer for layer in graph.module.modules() if isinstance(layer, nn.GRU)]
    assert len(layers) == 2
    assert layers[0].weight_hh_l0 is layers[1].weight_hh_l0
    if not same:
        with torch.no_grad():
            layers[1].bias_ih_l0.mul_(2)
    small = compress(graph, 0.5)
    rewrite_onnx(path, small, tmp_path / "small.onnx")
    assert_same(import_onnx(tmp_path / "small.onnx").graph, small, inputs_of(graph), 1e-5)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("GRU", {}),
        ("LSTM", {"clip": 0.5}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]}),
        ("LSTM", {"lengths": True, "direction": "reverse"}),
    ],
)
def test_what_torch_does_not_have_is_kept_whole(tmp_path, kind, attributes):
    path = Builder(kind, **attributes).save(tmp_path / "m.onnx")
    graph = import_onnx(path).graph
    assert layer_in(graph) is None
    assert not graph.spaces
    assert any(getattr(layer, "reason", "").startswith("rnn is a ") for layer in graph.module.modules())


def test_a_relu_is_one_of_torch(tmp_path):
    path = Builder("RNN", activations=["Relu"]).save(tmp_path / "m.onnx")
    assert layer_in(import_onnx(path).graph).nonlinearity == "relu"
