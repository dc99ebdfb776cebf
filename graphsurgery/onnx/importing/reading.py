"""An `.onnx` file as a list of operators and constants, with every problem in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import numpy_helper

from graphsurgery.errors import CheckpointError, SurgeryError, UnsupportedError, one_line
from graphsurgery.onnx.dequantizing import dequantise
from graphsurgery.onnx.files.axes import has_free_sizes
from graphsurgery.onnx.files.model_file import bodies, read_apart, read_outside
from graphsurgery.onnx.files.precision import in_single
from graphsurgery.onnx.files.storage import Weights
from graphsurgery.onnx.files.texts import take_off
from graphsurgery.onnx.importing.program import OnnxProgram, Operator
from graphsurgery.onnx.importing.whole_operators import foldable, folded

OLDEST_OPSET = 9
_STANDARD = ("", "ai.onnx")
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
_SEQUENCES = frozenset({
    "ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
    "SequenceLength", "SequenceMap", "SplitToSequence",
})  # fmt: skip
"""What makes or reads a sequence; a `ReverseSequence` is of tensors."""
_SLIDING = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")


def read_program(path: Path | str) -> OnnxProgram:
    """Read a file with its weights, also those beside it.

    Raises:
        CheckpointError: the file is missing, is no ONNX model, is damaged, or its weights are not beside it.
        UnsupportedError: it is quantised in another way than is known, has sequences, or operators of before opset 9
            that cannot be converted.
    """
    path = Path(path)
    model, weights = _parsed(path)
    try:
        texts = take_off(model, str(path))
        quantised = dequantise(model, weights, str(path))
        precision = in_single(model, weights)
        found = program_of(model, weights, path)
        return replace(found, precision=precision, quantised=quantised, texts=texts)
    except SurgeryError:
        raise
    except Exception as cause:  # a node may lack its inputs, its outputs, its attributes
        raise CheckpointError(f"{path}: is damaged ({type(cause).__name__}: {one_line(cause)})") from cause


def program_of(model: onnx.ModelProto, weights: Weights, path: Path) -> OnnxProgram:
    """The same of a model that is in memory, with its large weights.

    Args:
        model: local functions are written out in it.
        weights: what it is without.
        path: what errors name.

    Raises:
        CheckpointError, UnsupportedError: as `read_program`.
    """
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = max((versions[domain] for domain in _STANDARD if domain in versions), default=OLDEST_OPSET)
    constants = {i.name: _array(i, path, weights) for i in model.graph.initializer}
    aliases: dict[str, str] = {}
    free = has_free_sizes([value for value in model.graph.input if value.name not in constants], path)
    operators = []
    for index, node in enumerate(model.graph.node):
        kind = node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"
        _refuse(kind, node, path)
        if kind == "Constant":
            constants[node.output[0]] = _constant(node, path)
        elif kind == "Identity":
            aliases[node.output[0]] = node.input[0]
        else:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            name = node.name or node.output[0]
            read = (*node.input, *read_outside(node))
            operators.append(Operator(name, kind, read, tuple(node.output), attributes, opset, index, free=free))
    for operator in operators:
        _check_settings(operator, constants, path)
    _check_order(model, path)
    return _without_constant(OnnxProgram(path, model, tuple(operators), constants, aliases, weights))


def _without_constant(file: OnnxProgram) -> OnnxProgram:
    """With the results of the operators that only read constants in their place."""
    constant = foldable(file)
    inside = {operator.index for operator in constant}
    left = tuple(operator for operator in file.operators if operator.index not in inside)
    needed = {file.name(value) for operator in left for value in operator.inputs if value}
    found = folded(file, constant, needed)
    return replace(file, operators=left, constants={**file.constants, **found}) if found else file


def _parsed(path: Path) -> tuple[onnx.ModelProto, Weights]:
    file, weights = read_apart(path)
    if not file.model.graph.node:
        raise CheckpointError(f"{path}: has no operators")
    model = file.model
    opset = max((entry.version for entry in model.opset_import if entry.domain in _STANDARD), default=OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        model, weights = _converted(path, opset), Weights()
    _make_dense(model, path)
    return model, weights


def _converted(path: Path, opset: int) -> onnx.ModelProto:
    """A model of an older opset in the oldest that is read, by ONNX's own converter; nodes keep their names."""
    model = onnx.load(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if any(node.op_type == "Scan" for node in model.graph.node):
        # The converter leaves it as it is, and it has lost its batch in opset 9.
        raise UnsupportedError(f"{path}: has a Scan of opset {opset}, which is not converted; export it again")
    try:
        found = onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as cause:  # of an operator that it has no adapter for
        raise UnsupportedError(
            f"{path}: opset {opset} is older than {OLDEST_OPSET}, and is not converted: {one_line(cause)}"
        ) from cause
    found.metadata_props.extend(entry for entry in model.metadata_props if entry not in found.metadata_props)
    names = {node.output[0]: node.name for node in model.graph.node if node.output}
    for node in found.graph.node:
        if not node.name and node.output:
            node.name = names.get(node.output[0], "")
    return found


def _make_dense(model: onnx.ModelProto, path: Path) -> None:
    """Put ordinary weights in the place of sparse ones."""
    for sparse in model.graph.sparse_initializer:
        values, indices = (_array(tensor, path) for tensor in (sparse.values, sparse.indices))
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        model.graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    model.graph.ClearField("sparse_initializer")


def _refuse(kind: str, node: onnx.NodeProto, path: Path) -> None:
    name = node.name or (node.output[0] if node.output else "")
    if kind in _QUANTISED or "QLinear" in kind:
        raise UnsupportedError(f"{path}: {name} is a quantised operator ({kind}); give the file before quantisation")
    if kind in _SEQUENCES:
        raise UnsupportedError(f"{path}: {name} makes or reads a sequence ({kind}), which is not followed")
    if any(inner.op_type in _QUANTISED or inner.op_type in _SEQUENCES for body in bodies(node) for inner in body.node):
        raise UnsupportedError(f"{path}: {name} is control flow ({kind}) with operators that are not followed")


def _array(tensor: onnx.TensorProto, path: Path, weights: Weights | None = None) -> np.ndarray[Any, Any]:
    if weights is not None and tensor.name in weights.arrays:
        return weights.arrays[tensor.name]
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as cause:  # whatever a damaged tensor raises
        raise CheckpointError(f"{path}: tensor {tensor.name} is damaged: {one_line(cause)}") from cause
    if array.dtype.type.__module__ != "numpy":
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        raise UnsupportedError(f"{path}: {tensor.name} is of {kind}, which torch does not compute with")
    return array


def _constant(node: onnx.NodeProto, path: Path) -> np.ndarray[Any, Any]:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return _array(value, path)
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if attribute.name not in kinds:
        raise UnsupportedError(f"{path}: constant {node.output[0]} is of kind {attribute.name}")
    return np.asarray(value, dtype=kinds[attribute.name])


def _check_settings(operator: Operator, constants: Mapping[str, np.ndarray[Any, Any]], path: Path) -> None:
    """Attributes that say again what is known otherwise say the same; ONNX Runtime only looks when it runs them."""
    given = operator.attributes
    if operator.kind == "Split" and given.get("num_outputs", len(operator.outputs)) != len(operator.outputs):
        raise CheckpointError(f"{path}: {operator.name} has {len(operator.outputs)} outputs, not what it says")
    if operator.kind == "Dropout":
        _check_dropout(operator, constants, path)
    if operator.kind not in _SLIDING:
        return
    weight = constants.get(operator.inputs[1]) if "Conv" in operator.kind and len(operator.inputs) > 1 else None
    kernel = list(given.get("kernel_shape", () if weight is None else weight.shape[2:]))
    if weight is not None and kernel != list(weight.shape[2:]):
        raise CheckpointError(f"{path}: {operator.name} has a kernel of {kernel} and a weight of {weight.shape}")
    for name, each in (("strides", 1), ("dilations", 1), ("pads", 2)):
        if kernel and len(given.get(name, kernel * each)) != each * len(kernel):
            raise CheckpointError(
                f"{path}: {operator.name} has {name} {list(given[name])}, expected {each * len(kernel)} numbers"
            )


def _check_dropout(operator: Operator, constants: Mapping[str, np.ndarray[Any, Any]], path: Path) -> None:
    """It does nothing, as in a network that is not trained; where it acts, or may, what a file gives is by chance."""
    mode = operator.inputs[2] if len(operator.inputs) > 2 else ""
    if mode and (mode not in constants or constants[mode].any()):
        raise UnsupportedError(f"{path}: {operator.name} is a dropout that acts as in training; export it to evaluate")


def _check_order(model: onnx.ModelProto, path: Path) -> None:
    """Every value is computed before it is read, which a cycle makes impossible."""
    known = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    for node in model.graph.node:
        for name in node.input:
            if name not in known:
                raise CheckpointError(
                    f"{path}: {node.name or node.op_type} reads {name}, which is not computed before it"
                )
        known.update(node.output)
    for value in model.graph.output:
        if value.name not in known:
            raise CheckpointError(f"{path}: output {value.name} is not computed")
