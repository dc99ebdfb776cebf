"""The layers and parameters of the module that an `.onnx` file becomes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphsurgery.errors import one_line
from graphsurgery.network.copying import meta_of
from graphsurgery.network.values.shapes import ByFormula
from graphsurgery.onnx.files.axes import has_free_sizes
from graphsurgery.onnx.importing import operators
from graphsurgery.onnx.importing.inputs import FileInputs
from graphsurgery.onnx.importing.layers import layer_of
from graphsurgery.onnx.importing.program import OnnxProgram, Operator
from graphsurgery.onnx.importing.recurrent import RECURRENT
from graphsurgery.onnx.importing.running import FEW, OnnxNetwork, Runner, RunPlan, Watched, on_sizes, outputs_of
from graphsurgery.onnx.importing.sources import Source
from graphsurgery.onnx.importing.whole_operators import alone, is_matrix
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator

_SMALLEST_MASK = -1e4
_FOLDED = 2**22
"""Numbers in the largest array that is computed once instead of in every run."""
_PART = re.compile(r"[^A-Za-z0-9_]+")


def network_of(file: OnnxProgram, inputs: FileInputs, *, weights: bool = True) -> OnnxNetwork:
    """The module of a file, with its weights, in evaluation mode.

    A first run, with the batch of the file or with one of its own, finds the shapes, and which sizes are the same for
    every batch, where that can be of use; a second one, with the batch of the examples, makes the layers.

    Args:
        file: the file.
        inputs: what it is run with.
        weights: whether it gets them; else they stay on meta.

    Raises:
        TraceError: an operator cannot be run.
    """
    joined = _with_biases(file)
    plan = RunPlan(file, joined, inputs.batch)
    if inputs.batch is not None or not has_free_sizes(file.inputs, file.path):
        rehearsal = _Rehearsal(OnnxNetwork(RunPlan(file, joined, None)))
        rehearsal.build(inputs.again)
        plan.shapes, plan.seen = rehearsal.shapes, rehearsal.seen if not has_free_sizes(file.inputs, file.path) else {}
    network = OnnxNetwork(plan)
    builder = _Builder(network)
    builder.build(list(inputs.examples.values()))
    builder.fill(weights=weights)
    return network


def computed_sizes(file: OnnxProgram, examples: Sequence[Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """The sizes that a file computes from the shapes of these inputs, and what it computes from them, by name.

    Raises:
        TraceError: an operator cannot be run.
    """
    rehearsal = _Rehearsal(OnnxNetwork(RunPlan(file, _with_biases(file), None)))
    rehearsal.build(examples)
    return rehearsal.seen


class _Builder(Runner):
    """A run on meta tensors that makes the layers and parameters which it meets."""

    def build(self, examples: Sequence[Tensor]) -> None:
        self.paths = _Paths()
        self.shared: dict[Source, Tensor] = {}
        self.computed: dict[str, Tensor] = {}
        self.uses = _uses(self.plan)
        with torch.no_grad(), torch.device("meta"), ByFormula():
            self.run(examples)

    def _note(self, operator: Operator, found: Sequence[Any]) -> None:
        arrays = {n: value for n, value in zip(operator.outputs, found, strict=False) if isinstance(value, np.ndarray)}
        self.plan.lengths.update({name: array.size for name, array in arrays.items()})
        self.plan.fixed.update({name: array for name, array in arrays.items() if array.dtype != object})

    def results(self, operator: Operator) -> tuple[Any, ...]:
        if self._constant(operator):
            return self._folded(operator)
        self._make_layer(operator)
        places = operators.SIZES_AT.get(operator.kind, ())
        for at, name in enumerate(operator.inputs if operator.index not in self.plan.layers else ()):
            if name and at not in places:
                self._make_tensor(operator, at, self.plan.file.name(name))
        known = operator.kind in operators.OPERATORS or self._all_sizes(operator)
        if operator.index in self.plan.layers or known:
            try:
                return super().results(operator)
            except (operators.UnlikeTorchError, NotImplementedError) as cause:
                return self._whole(operator, f"{operator.name} is {one_line(cause)}, which torch does not have")
        return self._whole(operator, f"{operator.name} is a {operator.kind}, which is not translated")

    def _constant(self, operator: Operator) -> bool:
        """Whether an operator on tensors only reads what is the same for every batch, and none of it is learnt."""
        known = [self._array(name) for name in operator.inputs if name]
        arrays = [array for array in known if array is not None and array.dtype != object]
        if not 0 < len(arrays) == len(known) or operator.kind.startswith("Random") or self._all_sizes(operator):
            return False
        learnt = any(a.dtype.kind == "f" and a.size > FEW and id(a) in self.plan.weights for a in arrays)
        small = all(array.size <= _FOLDED for array in arrays)
        return small and (operator.kind not in operators.OPERATORS or (bool(self.plan.seen) and not learnt))

    def _array(self, name: str) -> np.ndarray[Any, Any] | None:
        """A constant, or sizes; none of a tensor."""
        name = self.plan.file.name(name)
        value = self.plan.file.constants.get(name)
        value = self.values.get(name) if value is None else value
        return self.plan.settled(name, value) if isinstance(value, np.ndarray) else None

    def _folded(self, operator: Operator) -> tuple[np.ndarray[Any, Any] | None, ...]:
        """What an operator gives, as numbers."""
        found = self._by_itself(operator, {}, f"{operator.name} ({operator.kind})")()
        values = outputs_of(operator, found)
        self.plan.folded[operator.index] = tuple(None if value is None else value.numpy() for value in values)
        return self.plan.folded[operator.index]

    def _by_itself(self, operator: Operator, data: Mapping[str, Tensor], reason: str) -> OnnxOperator:
        """An operator that reads these data, and numbers that are known."""
        names = [self.plan.file.name(name) for name in operator.inputs if name]
        known = {name: self._array(name) for name in names if name not in data}
        constants = {name: array for name, array in known.items() if array is not None}
        outputs = [name for name in operator.outputs if name]
        return OnnxOperator(alone(self.plan.file, [operator.index], constants, data, outputs), reason)

    def _whole(self, operator: Operator, reason: str) -> tuple[Any, ...]:
        """Keep an operator as it is."""
        data = self.data(operator)
        path = self.paths.new(_path(operator, ""))
        _place(self.network, path, self._by_itself(operator, data, reason))
        self.plan.opaque[operator.index] = path
        found = self.part(path)(*data.values())
        return tuple(None if value is None else meta_of(value) for value in outputs_of(operator, found))

    def _make_layer(self, operator: Operator) -> None:
        file, first = self.plan.file, operator.inputs[0] if operator.inputs else ""
        x = self.value(first) if first and file.name(first) not in file.constants else None
        if not isinstance(x, Tensor):
            return
        plain = replace(operator, inputs=tuple(file.name(name) if name else "" for name in operator.inputs))
        read = Watched(plain.attributes)
        layer = layer_of(replace(plain, attributes=read), file.constants, x.dim())
        if layer is None or (operator.kind not in RECURRENT and self.plan.needed & {*operator.outputs[1:]}):
            return
        try:
            self.plan.require_known(operator, read)
        except operators.UnlikeTorchError:
            return
        if any(self._read_otherwise(source) for source in layer.sources.values()):
            return
        names = [source.constant for source in layer.sources.values()]
        path = self.paths.new(_path(operator, next(filter(_is_of_layer, names), names[0] if names else "")))
        _place(self.network, path, layer.module)
        self.plan.layers[operator.index] = path
        for name, source in layer.sources.items():
            self._register(layer.module, name, source)
            self.plan.sources[f"{path}.{name}"] = source
            self.plan.readers[f"{path}.{name}"] = operator.index
        for at in self.starts(operator) if operator.kind in RECURRENT else ():
            if isinstance(self.value(operator.inputs[at]), np.ndarray):
                self._make_tensor(operator, at, file.name(operator.inputs[at]))

    def _read_otherwise(self, source: Source) -> bool:
        """Whether a matrix that a layer reads transposed is read as it stands elsewhere."""
        return source.layout == "transposed" and not self.uses[source.constant] <= {"MatMul", "Gemm"}

    def _make_tensor(self, operator: Operator, at: int, name: str) -> None:
        """A parameter or buffer for a constant that is data."""
        constants = self.plan.file.constants
        if name in self.plan.tensors or (name in self.values and not isinstance(self.values[name], np.ndarray)):
            return
        array = constants[name] if name in constants else self.plan.settled(name, self.values[name])
        if array.ndim == 0 or array.dtype == object:
            return
        if array.dtype.kind != "f" and self._all_sizes(operator):
            return
        path = self.paths.new(_path(operator, name if name in constants else ""))
        dtype = torch.float32 if array.dtype.kind == "f" else torch.from_numpy(np.zeros(0, array.dtype)).dtype
        tensor: Tensor = torch.empty(array.shape, dtype=dtype, device="meta")
        prefix, _, last = path.rpartition(".")
        owner = _owner(self.network, prefix)
        if name in constants:
            if is_matrix(array.shape):
                self.plan.tensors[name] = path
            else:
                self.plan.made[operator.index, at] = path
            self.plan.sources[path] = Source(name)
            self.plan.readers[path] = operator.index
            if array.dtype.kind == "f" and not _is_mask(array):
                owner.register_parameter(last, nn.Parameter(tensor))
            else:
                owner.register_buffer(last, tensor)
            self._register(owner, last, Source(name))
        else:
            self.plan.made[operator.index, at] = path
            owner.register_buffer(last, tensor)
            self.computed[path] = torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else array.dtype))

    def _all_sizes(self, operator: Operator) -> bool:
        """Whether an operator only computes sizes from sizes."""
        return on_sizes(self.plan, operator, self._given(operator))

    def _register(self, owner: nn.Module, name: str, source: Source) -> None:
        """One tensor for all who read a matrix in the same way.

        Exporters store equal vectors, such as biases that are still 0, once; that does not tie the layers.
        """
        tensor = getattr(owner, name)
        if is_matrix(tensor.shape):
            tensor = self.shared.setdefault(source, tensor)
        kept: dict[str, Any] = owner._parameters if name in owner._parameters else owner._buffers
        kept[name] = tensor

    def fill(self, *, weights: bool) -> None:
        """Give the layers their weights."""
        real: dict[int, Tensor] = {}
        alive: list[Tensor] = []
        for path, source in self.plan.sources.items() if weights else ():
            prefix, _, name = path.rpartition(".")
            owner = _owner(self.network, prefix)
            kept: dict[str, Any] = owner._parameters if name in owner._parameters else owner._buffers
            meta = kept[name]
            if id(meta) not in real:
                tensor = source.read(self.plan.file.constants[source.constant])
                real[id(meta)] = nn.Parameter(tensor) if name in owner._parameters else tensor
                alive.append(meta)
                self.plan.file.weights.release()
            kept[name] = real[id(meta)]
        for path, tensor in self.computed.items():
            prefix, _, name = path.rpartition(".")
            _owner(self.network, prefix)._buffers[name] = tensor
        for module in self.network.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_meta:  # the counter of a batch norm
                    module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
        self.network.eval()


class _Rehearsal(_Builder):
    """A run whose sizes are plain numbers, for the shapes."""

    def build(self, examples: Sequence[Tensor]) -> None:
        self.seen: dict[str, np.ndarray[Any, Any]] = {}
        names = [value.name for value in self.plan.file.inputs]
        self.shapes = {name: tuple(x.shape) for name, x in zip(names, examples, strict=True)}
        super().build(examples)

    def results(self, operator: Operator) -> tuple[Any, ...]:
        return tuple(_plain(value) for value in super().results(operator))

    def _note(self, operator: Operator, found: Sequence[Any]) -> None:
        for name, value in zip(operator.outputs, found, strict=False):
            if isinstance(value, np.ndarray):
                self.seen[name] = value
            elif value is not None:
                self.shapes[name] = tuple(value.shape)


def _plain(value: Any) -> Any:
    """Sizes as plain numbers; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype != object:
        return value
    whole = all(isinstance(entry, (int, np.integer)) for entry in value.reshape(-1))
    return value.astype(np.int64 if whole else np.float64)


class _Paths:
    """Paths of layers and parameters, no two alike and none below another."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.above: set[str] = set()

    def new(self, wanted: str) -> str:
        """The path that is wanted; with another name where it is taken, and beside a layer, not below it."""
        for prefix in _prefixes(wanted):
            if prefix in self.taken:
                wanted = f"{prefix}_{wanted[len(prefix) + 1 :]}"
        path, count = wanted, 1
        while path in self.taken or path in self.above:
            count += 1
            path = f"{wanted}_{count}"
        self.taken.add(path)
        self.above.update(_prefixes(path))
        return path


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _path(operator: Operator, constant: str) -> str:
    """Where a layer or parameter goes: the name that its weight has in the file, else its operator's."""
    if _is_of_layer(constant) and operator.kind in _LAYERS:
        return _clean(constant.rpartition(".")[0])
    if constant and operator.kind not in _LAYERS:
        return _clean(constant)
    return _clean(_scope(operator.name)) or f"{operator.kind.rpartition('.')[2].lower()}_{operator.index}"


def _is_of_layer(constant: str) -> bool:
    """Whether a constant has the name of a layer's parameter, such as `layer1.0.conv1.weight`."""
    stem, _, last = constant.rpartition(".")
    return bool(stem) and last in ("weight", "bias", "running_mean", "running_var")


_LAYERS = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization", "PRelu", *RECURRENT)
)


def _scope(name: str) -> str:
    """The module path in a node's name, such as `layer1.0.conv1` in `/layer1/layer1.0/conv1/Conv`."""
    parts = [part for part in name.split("/") if part][:-1]
    kept: list[str] = []
    for part in parts:
        if kept and part.startswith(f"{kept[-1]}."):
            kept.pop()
        kept.append(part)
    return ".".join(kept)


def _clean(path: str) -> str:
    """A path of names that modules can have."""
    parts = [_PART.sub("_", part).strip("_") for part in path.split(".")]
    reserved = set(dir(OnnxNetwork)) | {"plan", "training"}
    return ".".join(f"{part}_" if part in reserved else part for part in parts if part)


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    prefix, _, name = path.rpartition(".")
    _owner(root, prefix).add_module(name, module)


def _owner(root: nn.Module, prefix: str) -> nn.Module:
    """The module at a path; new, empty ones where there are none yet."""
    for name in prefix.split(".") if prefix else ():
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root


def _is_mask(array: np.ndarray[Any, Any]) -> bool:
    """Whether numbers only say what an attention must not look at."""
    return bool(array.size) and float(array.min()) <= _SMALLEST_MASK


def _uses(plan: RunPlan) -> dict[str, set[str]]:
    """The kinds of operators that read each constant, with `Gemm` only where it reads a matrix `[in, out]`."""
    found: dict[str, set[str]] = {}
    for operator in plan.operators:
        for at, name in enumerate(operator.inputs):
            transposed = operator.kind == "Gemm" and operator.attributes.get("transB")
            known = operator.kind in ("MatMul", "Gemm") and at == 1 and not transposed
            found.setdefault(plan.file.name(name), set()).add(operator.kind if known else "other")
    return found


def _with_biases(file: OnnxProgram) -> tuple[Operator, ...]:
    """The operators, where a product with a constant matrix and the sum with a constant vector are one."""
    readers = Counter(file.name(name) for operator in file.operators for name in operator.inputs if name)
    readers.update(file.name(name) for name in file.outputs)
    products = {
        o.outputs[0]: o for o in file.operators if o.kind == "MatMul" and _matrix(file, o.inputs[1]) is not None
    }
    joined: dict[int, Operator] = {}
    gone: set[int] = set()
    for operator in file.operators:
        if operator.kind != "Add":
            continue
        for at, (value, other) in enumerate((operator.inputs[::-1], operator.inputs)):
            product, bias = products.get(file.name(value)), file.constants.get(file.name(other))
            if product is None or bias is None or readers[file.name(value)] > 1:
                continue
            width = file.constants[file.name(product.inputs[1])].shape[1]
            if bias.size == width == bias.shape[-1] and bias.dtype.kind == "f":
                joined[operator.index] = replace(
                    product,
                    inputs=(*product.inputs, other),
                    outputs=operator.outputs,
                    index=operator.index,
                    moved={0: (product.index, 0), 1: (product.index, 1), 2: (operator.index, at)},
                )
                gone.add(product.index)
    return tuple(joined.get(o.index, o) for o in file.operators if o.index not in gone)


def _matrix(file: OnnxProgram, name: str) -> np.ndarray[Any, Any] | None:
    array = file.constants.get(file.name(name))
    return array if array is not None and array.ndim == 2 and array.dtype.kind == "f" else None
