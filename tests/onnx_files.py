"""`.onnx` files for tests: exports in both dialects, and files written by hand."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as surgeon
import torch
import zoo
from onnx import TensorProto, helper, numpy_helper

import graphsurgery as gs


def scripted(
    module: torch.nn.Module,
    x: torch.Tensor,
    path: Path,
    *,
    free: bool = True,
    sides: bool = False,
    bn: bool = False,
    opset: int = 17,
):
    """An export by TorchScript; `sides` frees height and width; with `bn`, batch norms stay and nothing is folded."""
    axes = {"input": {0: "batch"} | ({2: "height", 3: "width"} if sides else {})} if free else None
    mode = torch.onnx.TrainingMode.PRESERVE if bn else torch.onnx.TrainingMode.EVAL
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                (x,),
                str(path),
                dynamo=False,
                opset_version=opset,
                input_names=["input"],
                dynamic_axes=axes,
                training=mode,
                do_constant_folding=not bn,
            )
    finally:
        logging.disable(logging.NOTSET)
    return path


@cache
def exported(name: str, dialect: str) -> bytes:
    """A network of the zoo in float32, as a file; what several tests begin with is made once.

    Args:
        name: of the network.
        dialect: "ours", our exporter; or "free 17", TorchScript in an opset with a free batch; or "fixed 17", of one.
    """
    module, x = zoo.model(name).float(), zoo.example(name).float()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        if dialect == "ours":
            gs.export_onnx(gs.trace(module, x), path)
        else:
            word, opset = dialect.split()
            scripted(module, x[:1] if word == "fixed" else x, path, free=word == "free", opset=int(opset))
        return path.read_bytes()


def written(path: Path, nodes, inputs, outputs, constants=None, opset: int = 18, ir: int = 10) -> Path:
    """A file of these nodes.

    Args:
        inputs: shapes by name, `None` for a free size; or pairs of a type and a shape.
        outputs: names.
        constants: arrays by name.
    """
    graph = helper.make_graph(
        list(nodes),
        "test",
        [_value(name, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    others = sorted({node.domain for node in nodes} - {""})
    versions = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in others)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=ir), str(path))
    return path


def before_attention():
    """`last` and `total` of a mask, as GroupQueryAttention takes lengths, and `q`, `k` and `v` of `x`."""
    return [
        helper.make_node("ReduceSum", ["mask", "one"], ["sum"], keepdims=0),
        helper.make_node("Sub", ["sum", "one"], ["less"]),
        helper.make_node("Cast", ["less"], ["last"], to=TensorProto.INT32),
        helper.make_node("Shape", ["mask"], ["shape"]),
        helper.make_node("Gather", ["shape", "at"], ["length"]),
        helper.make_node("Cast", ["length"], ["total"], to=TensorProto.INT32),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        *(helper.make_node("MatMul", ["r", f"w{name}"], [name]) for name in "qkv"),
    ]


def _value(name, shape):
    kind, shape = shape if isinstance(shape, tuple) and isinstance(shape[0], int) and shape[0] == -1 else (None, shape)
    return helper.make_tensor_value_info(name, TensorProto.FLOAT if kind is None else TensorProto.INT64, list(shape))


def built(path, inputs, nodes, outputs=("out",), ir=8, opset=17):
    """A file of nodes, by onnx-graphsurgeon.

    Args:
        inputs: dtype and shape by name; a name for a free size.
        nodes: kind, inputs (names of values, constants), names of outputs, attributes; a domain in front of a kind.
        outputs: names.
    """
    values = {name: surgeon.Variable(name, dtype, shape) for name, (dtype, shape) in inputs.items()}
    graph = surgeon.Graph(inputs=list(values.values()), opset=opset, ir_version=ir, name="test")
    domains = {"": opset}
    values[""] = surgeon.Variable.empty()
    for number, (kind, read, written, attributes) in enumerate(nodes):
        operands = [
            surgeon.Constant(f"constant_{number}_{at}", value) if isinstance(value, np.ndarray) else values[value]
            for at, value in enumerate(read)
        ]
        written = [written] if isinstance(written, str) else written
        values |= {name: surgeon.Variable(name) for name in written if name}
        results = [values[name] if name else surgeon.Variable.empty() for name in written]
        domain, _, kind = kind.rpartition(".")
        graph.nodes.append(surgeon.Node(kind, f"node_{number}", attributes, operands, results, domain or None))
        domains.setdefault(domain, 1)
    graph.outputs = [values[name] for name in outputs]
    for value in graph.outputs:
        value.dtype = np.float32
    graph.import_domains = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    onnx.save(surgeon.export_onnx(graph), str(path))
    return path


def weight(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) / 2).astype(np.float32)
