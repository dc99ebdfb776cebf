"""Damaged and hostile `.onnx` files: the second table of docs/reliability.md.

    python benchmarks/campaigns/damaged_onnx.py --cases 60    # of each kind; goes on where it was killed

A file that is opened must do what ONNX Runtime does with it, on random inputs; one that ONNX Runtime refuses must be
refused. Every file is also compared with the whole one node by node, as `diff` does.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from damage import OTHER, REFUSED, SAME, WRONG, Found, campaign, flipped, outcome_of
from onnx import TensorProto, helper, numpy_helper

from graphsurgery.errors import UnsupportedError
from graphsurgery.models.loading import open_model
from graphsurgery.onnx.exporting import export_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.comparing import compare_onnx
from graphsurgery.surgery.channels.cost import cost

NAMES = ("cnn.onnx", "attention.onnx", "outside.onnx")
HOSTILE = ("\x1b[2J\x1b[31m", "a\nb", "\x9b2J", "\u202egnp", "[red]x[/red]", "\x07", "a" * 3000, "\u0085", "{0}%s")
_ALLOWED = 1e-3


def attention() -> onnx.ModelProto:
    """A file of operators that exporters leave: shapes computed, a mask, a softmax, products of data."""
    draw = np.random.default_rng(0)
    weights = {
        "qkv": draw.normal(size=(8, 24)).astype(np.float32) / 3,
        "out": draw.normal(size=(8, 4)).astype(np.float32),
        "scale": np.array(0.5, np.float32),
        "first": np.array([0], np.int64),
        "rest": np.array([-1, 24], np.int64),
        "axis": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "qkv"], ["packed"], "project"),
        helper.make_node("Shape", ["packed"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "first"], ["batch"], "batch"),
        helper.make_node("Concat", ["batch", "rest"], ["target"], "target", axis=0),
        helper.make_node("Reshape", ["packed", "target"], ["again"], "again"),
        helper.make_node("Split", ["again"], ["q", "k", "v"], "split", axis=2, num_outputs=3),
        helper.make_node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], "scores"),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"], "scaled"),
        helper.make_node("Softmax", ["scaled"], ["shares"], "softmax", axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"], "mixed"),
        helper.make_node("MatMul", ["mixed", "out"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@cache
def originals() -> Path:
    """A folder with the whole files."""
    import atexit
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder) if os.getpid() == owner else None)
    export_onnx(open_model("paper/cnn?width=2"), folder / "cnn.onnx")
    onnx.save_model(attention(), folder / "attention.onnx")
    onnx.save_model(
        onnx.load(folder / "cnn.onnx"),
        folder / "outside.onnx",
        save_as_external_data=True,
        location="outside.data",
        size_threshold=100,
    )
    return folder


def damaged_bytes(_: onnx.ModelProto, path: Path, draw: random.Random) -> None:
    path.write_bytes(flipped(path.read_bytes(), draw))


def damaged_nodes(model: onnx.ModelProto, path: Path, draw: random.Random) -> None:
    """Inputs, outputs, operators and attributes of nodes: gone, twice, exchanged."""
    for _ in range(draw.choice((1, 1, 2))):
        node, other = draw.choice(model.graph.node), draw.choice(model.graph.node)
        match draw.randrange(8):
            case 0 if node.input:
                del node.input[draw.randrange(len(node.input))]
            case 1 if node.output:
                del node.output[draw.randrange(len(node.output))]
            case 2:
                node.op_type = draw.choice((other.op_type, "Relu", "Foo", "", "Loop", "Cast", "Conv", "Gather"))
            case 3 if node.input:
                node.input[draw.randrange(len(node.input))] = draw.choice((*other.output, "", "nowhere"))
            case 4:
                node.input.extend(other.input)
            case 5 if node.attribute:
                del node.attribute[draw.randrange(len(node.attribute))]
            case 6 if node.attribute:
                _damage_attribute(draw.choice(node.attribute), draw)
            case _:
                model.graph.node.insert(draw.randrange(len(model.graph.node)), other)
    _store(model, path)


def _damage_attribute(attribute: onnx.AttributeProto, draw: random.Random) -> None:
    numbers = (0, -1, 1, 2, 7, 2**31, -(2**63), 2**63 - 1)
    match draw.randrange(4):
        case 0:
            attribute.type = draw.randrange(15)
        case 1:
            attribute.name = draw.choice(("axis", "perm", "pads", "x"))
        case 2 if attribute.ints:
            attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice(numbers)
        case 3 if attribute.ints:
            attribute.ints.append(draw.choice(numbers))
        case _:
            attribute.i = draw.choice(numbers)
            attribute.f = draw.choice((0.0, float("nan"), -1e38))


def damaged_weights(model: onnx.ModelProto, path: Path, draw: random.Random) -> None:
    """Shapes, types and bytes of weights that do not go together, or not with the graph."""
    tensor = draw.choice(model.graph.initializer)
    match draw.randrange(8):
        case 0:
            tensor.dims.append(draw.choice((0, 1, 2, -1, 2**40, 2**62)))
        case 1 if tensor.dims:
            at = draw.randrange(len(tensor.dims))
            tensor.dims[at] = draw.choice((0, 1, -1, -(2**62), tensor.dims[at] + 1, 2**33, 2**62))
        case 2:
            tensor.data_type = draw.choice((0, 1, 2, 5, 7, 9, 10, 11, 14, 16, 17, 22, 99))
        case 3 if tensor.raw_data:
            tensor.raw_data = tensor.raw_data[: draw.randrange(len(tensor.raw_data))]
        case 4:
            tensor.ClearField("raw_data")
        case 5:
            model.graph.initializer.remove(tensor)
        case 6:
            model.graph.initializer.append(tensor)
        case _:
            tensor.float_data.extend([1.0, 2.0])
    _store(model, path)


def damaged_ends(model: onnx.ModelProto, path: Path, draw: random.Random) -> None:
    """Inputs, outputs, versions."""
    value = draw.choice((*model.graph.input, *model.graph.output))
    tensor = value.type.tensor_type
    match draw.randrange(10):
        case 0:
            tensor.elem_type = draw.choice((0, 5, 7, 8, 9, 10, 11, 14, 15, 16, 17, 23, 99))
        case 1:
            tensor.shape.dim[draw.randrange(len(tensor.shape.dim))].dim_value = draw.choice((0, -1, 1, 2**40, 2**62))
        case 2:
            del tensor.shape.dim[:]
        case 3:
            tensor.ClearField("shape")
        case 4:
            value.type.Clear()
        case 5:
            del model.graph.input[:]
        case 6:
            del model.graph.output[:]
        case 7:
            model.opset_import[0].version = draw.choice((0, -1, 1, 8, 9, 12, 30, 999))
        case 8:
            model.ir_version = draw.choice((0, -1, 2, 99))
        case _:
            model.graph.input.append(value)
    _store(model, path)


def hostile_names(model: onnx.ModelProto, path: Path, draw: random.Random) -> None:
    """Names that would repaint a screen, wherever there are names."""
    bad = draw.choice(HOSTILE)
    mapping: dict[str, str] = {}
    for number, name in enumerate(sorted({name for node in model.graph.node for name in (*node.input, *node.output)})):
        if name and draw.random() < 0.5:
            mapping[name] = f"{bad}{number}"
    for node in model.graph.node:
        node.input[:] = [mapping.get(name, name) for name in node.input]
        node.output[:] = [mapping.get(name, name) for name in node.output]
        node.name = f"{bad}{node.name}"
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.name = mapping.get(value.name, value.name)
    if draw.random() < 0.3:
        draw.choice(model.graph.node).op_type = bad
    _store(model, path)


def places_outside(model: onnx.ModelProto, path: Path, draw: random.Random) -> None:
    """Weights that lie where they must not, or at no place."""
    secret = path.parent.parent / f"{path.parent.name}.secret"
    secret.write_bytes(bytes(2**20))
    tensor = draw.choice(model.graph.initializer)
    link = path.parent / "link.data"
    link.symlink_to(draw.choice((secret, Path("/dev/zero"), path.parent)))
    places = {entry.key: entry for entry in tensor.external_data}
    location = draw.choice(
        (f"../{secret.name}", str(secret), "link.data", "", ".", "missing", "/dev/zero", "a/../../x", "..\\x", "a\0b")
    )
    key = draw.choice(("location", "location", "location", "offset", "length"))
    if not places:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    elif key == "location":
        places[key].value = location
    else:
        places[key].value = draw.choice(("-1", "-8", "x", "1e3", "99999999999999", "3", ""))
    _store(model, path)


def anything(model: onnx.ModelProto, path: Path, draw: random.Random) -> None:
    """Any field of any message: cleared, of another value, or twice."""
    for _ in range(draw.choice((1, 1, 2, 5))):
        message = draw.choice(list(_messages(model)))
        fields = message.ListFields()
        if not fields:
            continue
        field, value = draw.choice(fields)
        if draw.random() < 0.4:
            message.ClearField(field.name)
        elif isinstance(value, int | float | str | bytes):
            ways = {int: (0, 1, -1, 99, 2**31 - 1), float: (0.0, float("nan")), str: ("", "x"), bytes: (b"", b"\0\xff")}
            try:
                setattr(message, field.name, draw.choice(ways[type(value)]))
            except ValueError:  # of an enumeration, or unsigned
                message.ClearField(field.name)
        elif hasattr(value, "append") and len(value):
            value.append(draw.choice(value)) if draw.random() < 0.5 else value.pop(draw.randrange(len(value)))
    _store(model, path)


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for _, value in message.ListFields():
        parts = value if hasattr(value, "append") or hasattr(value, "add") else [value]
        for part in parts:
            if hasattr(part, "ListFields"):
                yield from _messages(part)


def _store(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


KINDS: Mapping[str, Callable[[onnx.ModelProto, Path, random.Random], None]] = {
    "bytes": damaged_bytes,
    "nodes": damaged_nodes,
    "weights": damaged_weights,
    "inputs, outputs, versions": damaged_ends,
    "names": hostile_names,
    "places of weights": places_outside,
    "any field": anything,
}


def examine(kind: str, seed: int, folder: Path) -> Found:
    """Damage one file, open it, and say what became of it."""
    name = NAMES[seed % len(NAMES)]
    draw = random.Random(f"{kind} {seed}")
    inner = folder / "inner"
    inner.mkdir()
    for file in originals().iterdir():
        (inner / file.name).write_bytes(file.read_bytes())
    path = inner / name
    model = onnx.load(path, load_external_data=False)
    before = model.SerializeToString(deterministic=True)
    KINDS[kind](model, path, draw)
    compared = outcome_of(lambda: _compared(originals() / name, path))
    if compared.outcome not in (SAME, REFUSED):
        return Found(compared.outcome, f"diff: {compared.words}")
    return outcome_of(lambda: _opened(path, before))


def _compared(whole: Path, path: Path) -> Found:
    compare_onnx(whole, path)
    return Found(SAME)


def _opened(path: Path, before: bytes) -> Found:
    """Import a file, run it, and have ONNX Runtime do the same."""

    imported = import_onnx(path)
    graph = imported.graph
    assert cost(graph).parameters >= 0
    inputs = graph.example_inputs(imported.batch or 2)
    graph.module.eval()
    try:
        expected = _in_runtime(path, inputs)
    except Exception as cause:  # ONNX Runtime's errors have no public base class
        return Found(WRONG, f"ONNX Runtime refuses it: {cause}")
    try:
        with torch.no_grad():
            found = graph.module(*inputs)
    except UnsupportedError:
        raise
    tensors = list(found.values()) if isinstance(found, dict) else [found]
    alike = len(tensors) == len(expected) and all(
        a.shape == b.shape and np.allclose(a.numpy(), b, rtol=_ALLOWED, atol=_ALLOWED, equal_nan=True)
        for a, b in zip(tensors, expected, strict=True)
    )
    if not alike:
        return Found(WRONG, "gives other numbers than ONNX Runtime")
    now = onnx.load(path, load_external_data=False).SerializeToString(deterministic=True)
    return Found(SAME if now == before else OTHER)


def _in_runtime(path: Path, inputs: tuple[torch.Tensor, ...]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    names = [value.name for value in session.get_inputs()]
    found: list[Any] = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    return found


def main() -> int:
    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)
    for name in NAMES:
        assert _opened(originals() / name, b"").outcome == OTHER
    return campaign(__doc__ or "", list(KINDS), examine)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
