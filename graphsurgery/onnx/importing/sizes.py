"""The operators of an `.onnx` file on sizes: small arrays of numbers, in which a size may still be symbolic.

A file computes shapes with the same operators as tensors. Here they run in numpy on arrays of objects, so that what
reaches a reshape is `(batch, 49, 96)` with the batch still free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
from torch import fx

from graphsurgery.onnx.importing.program import Operator

Sizes = np.ndarray[Any, Any]
"""Numbers: integers, truth values, floats, or objects that stand for sizes."""

_Rule = Callable[..., Any]
SIZE_OPERATORS: dict[str, _Rule] = {}


def sizes_of(values: Sequence[Any]) -> Sizes:
    """An array that holds these objects as they are."""
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array if any(type(value) is not int for value in values) else array.astype(np.int64)


def scalar(value: Any) -> Sizes:
    """An array of no axes that holds this object as it is."""
    if isinstance(value, np.ndarray):
        return value
    if type(value) in (bool, int, float) or isinstance(value, np.generic):
        return np.asarray(value)
    array = np.empty((), dtype=object)
    array[()] = value
    return array


class Size(int):
    """A size of a tensor without a trace; what is computed from it is a size too, as it would be in a trace."""


def _size_again(name: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        found = getattr(int, name)(self, other)
        return found if found is NotImplemented else Size(found)

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    for _side in ("", "r"):
        setattr(Size, f"__{_side}{_name}__", _size_again(f"__{_side}{_name}__"))


def numbers(array: Sizes) -> tuple[Any, ...]:
    """The entries of an array of at most one axis, as Python numbers."""
    return tuple(array.reshape(-1).tolist())


def number(array: Sizes) -> Any:
    """The only entry of an array."""
    return array.reshape(-1).tolist()[0]


def rule(*kinds: str) -> Callable[[_Rule], _Rule]:
    def add(function: _Rule) -> _Rule:
        SIZE_OPERATORS.update(dict.fromkeys(kinds, function))
        return function

    return add


def compute(operator: Operator, values: Sequence[Sizes | None]) -> tuple[Sizes, ...]:
    """What an operator makes of sizes."""
    found = SIZE_OPERATORS[operator.kind](operator, *values)
    return tuple(scalar(value) for value in (found if isinstance(found, tuple) else (found,)))


def axes_of(operator: Operator, given: Sizes | None) -> tuple[int, ...] | None:
    """The axes that an operator names: by attribute in older opsets, by input in newer ones."""
    if "axes" in operator.attributes:
        return tuple(operator.attributes["axes"])
    return None if given is None else numbers(given)


_ELEMENTWISE: dict[str, Any] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Max": np.maximum, "Min": np.minimum, "Equal": np.equal,
    "Greater": np.greater, "Less": np.less, "GreaterOrEqual": np.greater_equal, "LessOrEqual": np.less_equal,
    "And": np.logical_and, "Or": np.logical_or, "Neg": np.negative, "Not": np.logical_not, "Abs": np.abs,
}  # fmt: skip

for _kind, _function in _ELEMENTWISE.items():
    SIZE_OPERATORS[_kind] = lambda _, *values, _function=_function: (
        _function(*values) if len(values) < 3 else reduce(_function, values)
    )


@rule("Clip")
def _clip(operator: Operator, a: Sizes, low: Sizes | None = None, high: Sizes | None = None) -> Any:
    if a.dtype == object:
        raise NotImplementedError("a limit of a size that follows the batch")
    least = operator.attributes.get("min") if low is None else number(low)
    most = operator.attributes.get("max") if high is None else number(high)
    return np.clip(a, least, most) if (least, most) != (None, None) else a


@rule("Div")
def _div(_: Operator, a: Sizes, b: Sizes) -> Any:
    if not (a.dtype.kind in "iuO" and b.dtype.kind in "iuO") or _has_fractions(a, b):
        return np.true_divide(a, b)
    left, right = np.broadcast_arrays(a, b)
    pairs = zip(left.reshape(-1).tolist(), right.reshape(-1).tolist(), strict=True)
    found = np.empty(left.shape, dtype=object)
    found.reshape(-1)[:] = [_quotient(*pair) for pair in pairs]
    return found if object in (a.dtype, b.dtype) else found.astype(np.result_type(a, b))


def _quotient(a: Any, b: Any) -> Any:
    """Without its fraction, also below 0, where Python's is the next lower number; a size keeps its sign."""
    signs = [(n.node.meta["value"] if isinstance(n, fx.Proxy) else n) < 0 for n in (a, b)]
    return 0 - (0 - a) // b if signs[0] != signs[1] else a // b


def _has_fractions(*arrays: Sizes) -> bool:
    return any(isinstance(entry, float) for array in arrays for entry in array.reshape(-1).tolist())


@rule("Mod")
def _mod(operator: Operator, a: Sizes, b: Sizes) -> Any:
    if operator.attributes.get("fmod") and object in (a.dtype, b.dtype):
        raise NotImplementedError("a rest of a size that has its sign")
    return (np.fmod if operator.attributes.get("fmod") else np.mod)(a, b)


@rule("Pow")
def _pow(_: Operator, a: Sizes, b: Sizes) -> Any:
    return np.power(a, b)


@rule("Sqrt")
def _sqrt(_: Operator, a: Sizes) -> Any:
    return np.sqrt(a.astype(np.float64)).astype(a.dtype if a.dtype.kind == "f" else np.float64)


@rule("Reciprocal")
def _reciprocal(_: Operator, a: Sizes) -> Any:
    return np.true_divide(1.0, a)


@rule("Floor", "Ceil")
def _rounded(operator: Operator, a: Sizes) -> Any:
    function = math.floor if operator.kind == "Floor" else math.ceil
    whole = [function(float(entry)) for entry in a.reshape(-1).tolist()]
    return np.asarray(whole, dtype=np.float64).reshape(a.shape)


@rule("Cast")
def _cast(operator: Operator, a: Sizes) -> Any:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(operator.attributes["to"])
    if a.dtype != object:
        return a.astype(dtype)
    if dtype.kind in "iu" and _has_fractions(a):
        return np.asarray([int(entry) for entry in a.reshape(-1).tolist()], dtype=np.int64).reshape(a.shape)
    return a.astype(bool) if dtype.kind == "b" else a


@rule("CastLike")
def _cast_like(_: Operator, a: Sizes, like: Sizes) -> Any:
    return a if a.dtype == object or like.dtype == object else a.astype(like.dtype)


@rule("Where")
def _where(_: Operator, condition: Sizes, a: Sizes, b: Sizes) -> Any:
    return np.where(condition.astype(bool), a, b)


@rule("Concat")
def _concat(operator: Operator, *values: Sizes) -> Any:
    return np.concatenate(values, operator.attributes["axis"])


@rule("Gather")
def _gather(operator: Operator, a: Sizes, indices: Sizes) -> Any:
    places = np.arange(a.size).reshape(a.shape)
    chosen = np.asarray(np.take(places, indices.astype(np.int64), operator.attributes.get("axis", 0)))
    entries, found = a.reshape(-1), np.empty(chosen.size, dtype=a.dtype)
    for at, place in enumerate(chosen.reshape(-1)):
        found[at] = entries[place]
    return found.reshape(chosen.shape)


@rule("Slice")
def _slice(operator: Operator, a: Sizes, *given: Sizes | None) -> Any:
    return a[tuple(slices(operator, a.ndim, given).get(axis, slice(None)) for axis in range(a.ndim))]


def slices(operator: Operator, rank: int, given: Sequence[Sizes | None]) -> dict[int, slice]:
    """The slice of each axis that a `Slice` names."""
    starts: Any
    ends: Any
    axes: Any
    steps: Any
    if "starts" in operator.attributes:
        starts, ends = operator.attributes["starts"], operator.attributes["ends"]
        axes, steps = operator.attributes.get("axes"), None
    else:
        starts, ends, axes, steps = (None if part is None else numbers(part) for part in (*given, None, None)[:4])
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    found = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        past = isinstance(end, int) and abs(end) >= 2**31 - 1
        found[axis % rank] = slice(start, None if past else end, step)
    return found


@rule("Split")
def _split(operator: Operator, a: Sizes, given: Sizes | None = None) -> Any:
    axis = operator.attributes.get("axis", 0)
    lengths = operator.attributes.get("split") if given is None else numbers(given)
    if lengths is None:
        lengths = [math.ceil(a.shape[axis] / len(operator.outputs))] * len(operator.outputs)
    return tuple(np.split(a, np.cumsum(lengths)[:-1], axis))


@rule("Unsqueeze")
def _unsqueeze(operator: Operator, a: Sizes, given: Sizes | None = None) -> Any:
    return np.expand_dims(a, axes_of(operator, given) or ())


@rule("Squeeze")
def _squeeze(operator: Operator, a: Sizes, given: Sizes | None = None) -> Any:
    return np.squeeze(a, axes_of(operator, given))


@rule("Reshape")
def _reshape(_: Operator, a: Sizes, shape: Sizes) -> Any:
    return a.reshape(numbers(shape))


@rule("Transpose")
def _transpose(operator: Operator, a: Sizes) -> Any:
    return np.transpose(a, operator.attributes.get("perm"))


@rule("Expand")
def _expand(_: Operator, a: Sizes, shape: Sizes) -> Any:
    return a * np.ones(numbers(shape), dtype=a.dtype if a.dtype != object else np.int64)


@rule("Tile")
def _tile(_: Operator, a: Sizes, repeats: Sizes) -> Any:
    return np.tile(a, numbers(repeats))


@rule("ScatterND")
def _scatter(operator: Operator, a: Sizes, indices: Sizes, updates: Sizes) -> Any:
    if operator.attributes.get("reduction", b"none") != b"none":
        raise NotImplementedError("a scatter that adds up")
    new = a.copy()
    new[tuple(np.moveaxis(indices.astype(np.int64), -1, 0))] = updates
    return new


@rule("Range")
def _range(_: Operator, start: Sizes, limit: Sizes, step: Sizes) -> Any:
    return np.arange(number(start), number(limit), number(step))


@rule("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(operator: Operator, a: Sizes, given: Sizes | None = None) -> Any:
    functions: dict[str, Any] = {
        "ReduceProd": np.multiply,
        "ReduceSum": np.add,
        "ReduceMax": np.maximum,
        "ReduceMin": np.minimum,
    }
    axes, keep = axes_of(operator, given), bool(operator.attributes.get("keepdims", 1))
    return functions[operator.kind].reduce(a, axis=axes, keepdims=keep)


@rule("Shape")
def _shape(operator: Operator, a: Sizes) -> Any:
    first, last = operator.attributes.get("start", 0), operator.attributes.get("end")
    return np.asarray(a.shape[first:last], dtype=np.int64)


@rule("Size")
def _size(_: Operator, a: Sizes) -> Any:
    return np.asarray(a.size)


@rule("ConstantOfShape")
def _constant_of_shape(operator: Operator, shape: Sizes) -> Any:
    value = operator.attributes.get("value")
    filled = np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value)
    return np.full(numbers(shape), filled[0])
