"""An `.onnx` file as a module whose forward runs its operators."""

from __future__ import annotations

import inspect
import keyword
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import onnx
from torch import Tensor, fx, nn

from graphsurgery.errors import SurgeryError, TraceError, UnsupportedError, one_line
from graphsurgery.onnx.importing import operators, sizes
from graphsurgery.onnx.importing.operators.unpooling import PLACES_AT, only_lead_back
from graphsurgery.onnx.importing.program import OnnxProgram, Operator
from graphsurgery.onnx.importing.recurrent import LENGTHS_AT, RECURRENT, STATES_AT, is_start, run_recurrent
from graphsurgery.onnx.importing.sources import FileRecorder, Source, placed_attribute

FEW = 8
"""Up to so many floating numbers of a constant may be the factors of a resize."""


@dataclass
class RunPlan:
    """How a file is run: what its operators are in the module. One plan serves all copies of the module.

    Attributes:
        file: the file.
        operators: what is run, in order.
        batch: the batch that the file fixes, else None.
        sources: where each parameter and buffer stands in the file, by path.
        layers: the path of an operator's layer, by the number of its node.
        tensors: the path of a constant that is data, by its name.
        made: the path of a constant that was computed, by operator and input.
        opaque: the path of an operator that is kept whole, by the number of its node.
        readers: the number of the first node that reads a parameter or buffer, by its path.
        lengths: how many sizes the file computes under a name.
        fixed: those of them that are the same for every input.
        shapes: of the values in the file, by name, where it fixes the batch.
        seen: sizes that the file computes with another batch, by name; empty where it leaves more than the batch free.
        folded: what operators give that only read sizes which are the same for every batch, by the number of the node.
        recorded: whether the nodes of a trace note what of the file they are, for `origins_of`.
    """

    file: OnnxProgram
    operators: tuple[Operator, ...]
    batch: int | None
    sources: dict[str, Source] = field(default_factory=dict)
    layers: dict[int, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    made: dict[tuple[int, int], str] = field(default_factory=dict)
    opaque: dict[int, str] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    fixed: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    seen: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    folded: dict[int, tuple[np.ndarray[Any, Any] | None, ...]] = field(default_factory=dict)
    recorded: bool = False

    @cached_property
    def weights(self) -> set[int]:
        """The identities of the constants of the file."""
        return {id(array) for array in self.file.constants.values()}

    @cached_property
    def needed(self) -> set[str]:
        """The values that an operator reads or the file gives."""
        names = [name for operator in self.operators for name in operator.inputs]
        return {self.file.name(name) for name in (*names, *self.file.outputs) if name}

    def require_known(self, operator: Operator, read: Watched) -> None:
        """Every attribute was read, or says what is so by default, or nothing about the result.

        Raises:
            UnlikeTorchError: one was not.
        """
        defaults = defaults_of(operator.kind, operator.opset)
        for name in read.left:
            if name not in _WITHOUT_MEANING.get(operator.kind, ()) and defaults.get(name) != read.plain(name):
                raise operators.UnlikeTorchError(f"one with the attribute {name}")

    def settled(self, name: str, value: Any) -> Any:
        """Sizes without symbols, where they are the same for every batch."""
        seen = self.seen.get(self.file.name(name)) if isinstance(value, np.ndarray) and value.dtype == object else None
        if seen is None or seen.shape != value.shape:
            return value
        same = all(value_of(a) == b for a, b in zip(value.reshape(-1), seen.reshape(-1), strict=True))
        return seen if same else value

    def __deepcopy__(self, memo: Any) -> RunPlan:
        return self


_WITHOUT_MEANING: Mapping[str, Collection[str]] = {
    "Conv": ("kernel_shape", "auto_pad"), "ConvTranspose": ("kernel_shape", "auto_pad"), "Dropout": ("seed", "ratio"),
    "BatchNormalization": ("momentum", "spatial"), "LayerNormalization": ("stash_type",),
    "GroupNormalization": ("stash_type",), "RMSNormalization": ("stash_type",),
    "Resize": ("cubic_coeff_a", "nearest_mode", "extrapolation_value", "exclude_outside"),
    "Split": ("num_outputs",), "Cast": ("saturate",), "CastLike": ("saturate",),
}  # fmt: skip
"""Attributes that change no result, or not that of what is translated."""


class Watched(Mapping[str, Any]):
    """Attributes that know which of them were read; those of an operator's number know where it says them."""

    def __init__(self, attributes: Mapping[str, Any], operator: int | None = None) -> None:
        self.plain = attributes.__getitem__
        self.left = set(attributes)
        self._attributes = attributes
        self._operator = operator

    def __getitem__(self, name: str) -> Any:
        self.left.discard(name)
        found = self._attributes[name]
        return found if self._operator is None else placed_attribute(found, self._operator, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._attributes)

    def __len__(self) -> int:
        return len(self._attributes)


@cache
def defaults_of(kind: str, opset: int) -> Mapping[str, Any]:
    """What attributes are where an operator of the standard does not say."""
    try:
        schema = onnx.defs.get_schema(kind, opset, "")
    except onnx.defs.SchemaError:
        return {}
    given = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    return {name: onnx.helper.get_attribute_value(value) for name, value in given.items() if value.name}


class OnnxNetwork(nn.Module):
    """Runs the operators of a file.

    Args:
        plan: how.
    """

    def __new__(cls, plan: RunPlan) -> OnnxNetwork:
        """An instance of a class of its own, whose `forward` has the names of the file's inputs."""
        names = _identifiers(value.name for value in plan.file.inputs)
        scope: dict[str, Any] = {}
        exec(f"def forward(self, {', '.join(names)}):\n    return self.run([{', '.join(names)}])", scope)
        return super().__new__(type(cls.__name__, (cls,), {"forward": scope["forward"], "__new__": nn.Module.__new__}))

    def __init__(self, plan: RunPlan) -> None:
        super().__init__()
        self.plan = plan

    def run(self, inputs: Sequence[Any]) -> Any:
        """The outputs of the file for its inputs; a dict by name where there are several."""
        return Runner(self).run(inputs)


class Runner:
    """One run of a file's operators."""

    def __init__(self, network: OnnxNetwork) -> None:
        self.network = network
        self.plan = network.plan
        self.values: dict[str, Any] = {}
        self.inner: set[str] = set()
        """Values in which the fixed batch has become the inner part of an axis."""
        self.places: set[str] = set()
        """Places of pools that are counted as torch does."""

    def run(self, inputs: Sequence[Any]) -> Any:
        file = self.plan.file
        self.values = {value.name: x for value, x in zip(file.inputs, inputs, strict=True)}
        self.recorder = FileRecorder(inputs if self.plan.recorded else ())
        for operator in self.plan.operators:
            try:
                self._step(operator)
            except SurgeryError:
                raise
            except Exception as cause:
                raise TraceError(f"{operator.name} ({operator.kind}): {one_line(cause)}") from cause
        found = {name: self._output(name) for name in file.outputs}
        return found if len(found) > 1 else next(iter(found.values()))

    def _output(self, name: str) -> Any:
        value = self.value(name)
        if isinstance(value, np.ndarray):
            raise UnsupportedError(f"{self.plan.file.path}: output {name} does not depend on the inputs' values")
        return value

    def _step(self, operator: Operator) -> None:
        found = self.results(operator)
        self.recorder.note(operator.index, self._read(operator))
        if operator.kind != "Reshape" and any(self.plan.file.name(name) in self.inner for name in operator.inputs):
            self.inner.update(operator.outputs)
        self._note(operator, found)
        for name, value in zip(operator.outputs, found, strict=False):
            if name:
                self.values[name] = value
            if name and isinstance(value, fx.Proxy):
                value.node.meta["onnx"] = (*value.node.meta.get("onnx", ()), name)

    def _read(self, operator: Operator) -> Iterator[tuple[int, int, Any]]:
        """What an operator reads: the number of the node, that of its input, and the value there."""
        for at, name in enumerate(operator.inputs):
            made = self.plan.made.get((operator.index, at))
            value = self.part(made) if made else self.value(name) if name else None
            yield *operator.place(at), self.recorder.sizes.get(at, value)

    def _note(self, operator: Operator, found: Sequence[Any]) -> None:
        """Remember the shapes that values have in the file; the first run does."""

    def results(self, operator: Operator) -> tuple[Any, ...]:
        """What an operator gives."""
        plan = self.plan
        if operator.index in plan.layers:
            layer, x = self.part(plan.layers[operator.index]), self.value(operator.inputs[0])
            return self._recurrent(operator, layer, x) if operator.kind in RECURRENT else (layer(x),)
        if operator.index in plan.opaque:
            return outputs_of(operator, self.part(plan.opaque[operator.index])(*self.data(operator).values()))
        if operator.index in plan.folded:
            return plan.folded[operator.index]
        given = self._given(operator)
        if on_sizes(plan, operator, given):
            return sizes.compute(operator, self.recorder.placed(operator.index, given))
        places = operators.SIZES_AT.get(operator.kind, ())
        arguments = [
            self._size(operator, value, name) if at in places else self._operand(operator, at, value)
            for at, (name, value) in enumerate(zip(operator.inputs, given, strict=True))
        ]
        while arguments and arguments[-1] is None:
            arguments.pop()
        arguments = self._rebatched(operator, self.recorder.placed(operator.index, arguments, places))
        arguments = _from_the_end(plan.file, operator, arguments)
        self.recorder.sizes = {at: arguments[at] for at in places if at < len(arguments)}
        if operator.kind in ("MaxPool", "MaxUnpool"):
            operator = self._with_places(operator, arguments[0])
        read, rule = (
            Watched(operator.attributes, self.recorder.known(operator.index)),
            operators.OPERATORS[operator.kind],
        )
        if not _takes(rule, len(arguments)):
            raise operators.UnlikeTorchError(f"one with {len(arguments)} inputs")
        found = as_tuple(rule(replace(operator, attributes=read), *arguments))
        self.plan.require_known(operator, read)
        if any(name in self.plan.needed for name in operator.outputs[len(found) :]):
            raise operators.UnlikeTorchError(f"one with {len(operator.outputs)} results")
        self.places.update(operator.outputs[PLACES_AT:] if operator.kind == "MaxPool" else ())
        return tuple(None if value is None else _boxed(value) for value in found)

    def _with_places(self, operator: Operator, x: Any) -> Operator:
        """A pool without places that nobody reads, or whose places are those of torch to all that read them."""
        file = self.plan.file
        if operator.kind == "MaxUnpool":
            if file.name(operator.inputs[PLACES_AT]) not in self.places:
                raise operators.UnlikeTorchError("one with places that are not those of a pool of its shape")
        elif not self.plan.needed.intersection(operator.outputs[PLACES_AT:]):
            return replace(operator, outputs=operator.outputs[:PLACES_AT])
        elif not only_lead_back(file, operator, operators.shape_of(x)[2:]):
            raise operators.UnlikeTorchError("a pool whose places are read otherwise than to lead back to them")
        return operator

    def _recurrent(self, operator: Operator, layer: Any, x: Any) -> tuple[Any, ...]:
        lengths = self.sequence_lengths(operator)
        states = [self._operand(operator, at, self.value(operator.inputs[at])) for at in self.starts(operator)]
        return run_recurrent(operator, layer, x, lengths, states)

    def sequence_lengths(self, operator: Operator) -> Any:
        """The lengths of the sequences that a recurrent operator is given; None where they are whole."""
        name = operator.inputs[LENGTHS_AT] if len(operator.inputs) > LENGTHS_AT else ""
        return self._operand(operator, LENGTHS_AT, self.value(name)) if name else None

    def starts(self, operator: Operator) -> list[int]:
        """Which of its inputs are states that it starts with; constants of 0 are what it starts with anyway."""
        given = [at for at in STATES_AT if at < len(operator.inputs) and operator.inputs[at]]
        constants = self.plan.file.constants
        own = [constants.get(self.plan.file.name(operator.inputs[at])) for at in given]
        if not given or all(array is not None and is_start(array) for array in own):
            return []
        return given

    def _given(self, operator: Operator) -> list[Any]:
        """The inputs of an operator; the shape that sizes get has to be known."""
        given = [self.value(name) if name else None for name in operator.inputs]
        if any(value is not None and not isinstance(value, np.ndarray) for value in given):
            return given
        places = operators.SIZES_AT.get(operator.kind, ())
        return [
            self.plan.settled(name, value) if at in places or operator.kind == "Clip" else value
            for at, (name, value) in enumerate(zip(operator.inputs, given, strict=True))
        ]

    def value(self, name: str) -> Any:
        """A tensor, or an array of sizes; constants with several floating numbers are tensors."""
        name = self.plan.file.name(name)
        if name in self.values:
            return self.values[name]
        if name in self.plan.tensors:
            return self.part(self.plan.tensors[name])
        return self.plan.file.constants[name]

    def part(self, path: str) -> Any:
        """The layer, parameter or buffer at a path."""
        found: Any = self.network
        for name in path.split("."):
            found = getattr(found, name)
        return found

    def data(self, operator: Operator) -> dict[str, Any]:
        """The inputs of an operator that are neither constants of the file nor numbers that are known."""
        file = self.plan.file
        names = dict.fromkeys(file.name(name) for name in operator.inputs if name)
        given = {name: self.plan.settled(name, self.value(name)) for name in names if name not in file.constants}
        known = [name for name, value in given.items() if isinstance(value, np.ndarray) and value.dtype != object]
        return {name: self._data(name, value) for name, value in given.items() if name not in known}

    def _size(self, operator: Operator, value: Any, name: str) -> Any:
        """Sizes as numbers, also those of a constant that is data elsewhere."""
        name = self.plan.file.name(name) if name else ""
        if value is None or isinstance(value, np.ndarray):
            return value
        if name in self.plan.file.constants:
            return self.plan.file.constants[name]
        raise TraceError(
            f"{operator.name} ({operator.kind}): {name}, a size or an option, is computed from data; "
            "export it as a number"
        )

    def _operand(self, operator: Operator, at: int, value: Any) -> Any:
        """A tensor, or a number in its place."""
        if (operator.index, at) in self.plan.made and isinstance(value, np.ndarray) and value.ndim:
            return self.part(self.plan.made[operator.index, at])
        return self._data(operator.inputs[at], value)

    def _data(self, name: str, value: Any) -> Any:
        """A tensor; sizes as one, a single size as the number that it is."""
        if not isinstance(value, np.ndarray):
            return value
        if value.ndim == 0:
            return sizes.number(value)
        kind = self.plan.file.kinds.get(self.plan.file.name(name), onnx.TensorProto.INT64)
        return operators.tensor_of(value, operators.torch_dtype(kind))

    def _rebatched(self, operator: Operator, arguments: list[Any]) -> list[Any]:
        """Shapes that hold the batch of the file, with the batch of the input in its place."""
        fixed = self.plan.batch
        if fixed is None or operator.kind not in ("Reshape", "Concat") or not operators.rank(arguments[0]):
            return arguments
        if operator.kind == "Concat":
            return alongside(arguments, operator.attributes["axis"])
        name = self.plan.file.name(operator.inputs[0])
        if name not in self.plan.shapes:
            return arguments
        target, inner = freed(arguments[0], self.plan.shapes[name], name in self.inner, arguments[1], fixed)
        self.inner.update(operator.outputs if inner else ())
        return [arguments[0], target]


def _from_the_end(file: OnnxProgram, operator: Operator, arguments: list[Any]) -> list[Any]:
    """Indices along an inner axis that count from its end, as those that torch takes."""
    if operator.kind != "Gather" or operators.rank(arguments[1]) != 1:
        return arguments
    axis = operator.attributes.get("axis", 0) % operators.rank(arguments[0])
    known = file.constants.get(file.name(operator.inputs[1]))
    if axis == 0 or (known is not None and not (known < 0).any()):
        return arguments
    return [arguments[0], arguments[1] % operators.size_of(arguments[0], axis)]


@cache
def _takes(rule: Callable[..., Any], count: int) -> bool:
    """Whether a rule reads so many inputs."""
    try:
        inspect.signature(rule).bind(None, *[None] * count)
    except TypeError:
        return False
    return True


def on_sizes(plan: RunPlan, operator: Operator, given: Sequence[Any]) -> bool:
    """Whether an operator only computes sizes; what is as long as the batch, and weights, are tensors."""
    known = [value for value in given if value is not None]
    if operator.kind not in sizes.SIZE_OPERATORS or not all(isinstance(value, np.ndarray) for value in known):
        return False
    vectors = [value for value in known if value.dtype.kind == "f" and value.ndim]
    if any(id(value) in plan.weights and (value.size > FEW or operator.kind == "Expand") for value in vectors):
        return False
    places = operators.SIZES_AT.get(operator.kind, ())
    shapes = [value for at, value in enumerate(given) if at in places and value is not None]
    return all(value.dtype != object for value in shapes)


def value_of(size: Any) -> Any:
    """A size in this run, without its symbol."""
    return size.node.meta["value"] if isinstance(size, fx.Proxy) else size


def _identifiers(names: Iterable[str]) -> list[str]:
    """Argument names for the inputs."""
    found: list[str] = []
    for name in names:
        word = re.sub(r"\W", "_", name)
        taken = keyword.iskeyword(word) or word == "self" or word.startswith("__")
        word = f"input_{word}" if taken or not word.isidentifier() else word
        while word in found:
            word += "_"
        found.append(word)
    return found


def outputs_of(operator: Operator, found: Any) -> tuple[Any, ...]:
    """A value for each output of an operator that is kept whole; none for those that it leaves out."""
    given = [name for name in operator.outputs if name]
    values = iter([found] if len(given) == 1 else [found[at] for at in range(len(given))])
    return tuple(next(values) if name else None for name in operator.outputs)


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _boxed(value: Any) -> Any:
    """A number as an array of sizes; tensors as they are."""
    return value if isinstance(value, Tensor) or _is_tensor(value) else sizes.scalar(value)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Proxy) and isinstance(value.node.meta["value"], Tensor)


_SYMBOLS = (fx.Proxy, sizes.Size)


def freed(x: Any, before: Sequence[int], inner: bool, shape: sizes.Sizes, fixed: int) -> tuple[sizes.Sizes, bool]:
    """The target of a reshape for any batch, and whether the batch is the inner part of its axis there.

    A reshape keeps the order of the numbers, so the batch stays where as many numbers lie within one step of it.

    Args:
        x: what is reshaped.
        before: its shape in the file.
        inner: whether the batch is the inner part of its axis.
        shape: the target in the file, where the batch or a multiple of it is a literal.
        fixed: the batch of the file.
    """
    axis = next((i for i, (a, b) in enumerate(zip(operators.shape_of(x), before, strict=True)) if a != b), None)
    if axis is None:
        return shape, False
    entries = sizes.numbers(shape)
    target = [_value(n) for n in entries]
    symbolic = any(isinstance(n, _SYMBOLS) for n in entries)
    if symbolic and (-1 in target or math.prod(target) == math.prod(operators.shape_of(x))):
        return shape, False
    target = [before[i] if n == 0 and i < len(before) else n for i, n in enumerate(target)]
    if -1 in target:
        rest = math.prod(n for n in target if n != -1)
        target[target.index(-1)] = math.prod(before) // max(1, rest)
    step = math.prod(before[axis + 1 :]) if inner else math.prod(before[axis:]) // fixed
    fits = [i for i, size in enumerate(target) if size % fixed == 0]
    alone = [i for i in fits if target[i] == fixed and math.prod(target[i + 1 :]) == step]
    outer = [i for i in fits if math.prod(target[i:]) == step * fixed]
    within = [i for i in fits if math.prod(target[i + 1 :]) == step]
    # Features come last, and the batch is not among them.
    outer = [i for i in outer if i < len(target) - 1 or not within]
    places = alone or outer or within
    if not places:
        return shape, False
    new: list[Any] = [
        n if isinstance(n, _SYMBOLS) or n == size else size for n, size in zip(entries, target, strict=True)
    ]
    new[places[0]] = operators.size_of(x, axis) * target[places[0]] // before[axis]
    return sizes.sizes_of(new), not alone and not outer


def _value(size: Any) -> int:
    return int(size.node.meta["value"] if isinstance(size, fx.Proxy) else size)


def alongside(values: list[Any], axis: int) -> list[Any]:
    """Tensors that meet in one; a constant with the batch of one, such as a class token, is repeated."""
    rank = operators.rank(values[0])
    shapes = [operators.shape_of(value) for value in values]
    largest = max(range(len(values)), key=lambda i: math.prod(n for at, n in enumerate(shapes[i]) if at != axis % rank))
    lead, wanted = values[largest], shapes[largest]
    found = []
    for value, shape in zip(values, shapes, strict=True):
        short = [i for i in range(rank) if i != axis % rank and shape[i] == 1 != wanted[i]]
        sizes_ = [operators.size_of(lead, i) if i in short else -1 for i in range(rank)]
        found.append(value.expand(sizes_) if short else value)
    return found
