"""NumPy asked with sizes: `np.sqrt(n)`, `np.ceil(n / 7)`, `np.prod(x.shape[1:])` are numbers computed from them.

What has a twin among Python's functions of numbers is recorded as that. All else is computed of the sizes as they are,
which are decided then.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import fx

_TWINS: Mapping[str, Callable[..., Any]] = {
    "sqrt": math.sqrt, "exp": math.exp, "log": math.log, "log2": math.log2, "log10": math.log10, "ceil": math.ceil,
    "floor": math.floor, "trunc": math.trunc, "add": operator.add, "subtract": operator.sub, "multiply": operator.mul,
    "divide": operator.truediv, "true_divide": operator.truediv, "floor_divide": operator.floordiv,
    "remainder": operator.mod, "power": operator.pow, "float_power": operator.pow, "negative": operator.neg,
    "absolute": abs, "maximum": max, "minimum": min,
}  # fmt: skip
"""What of Python's a universal function of NumPy is for numbers; it is looked up here before a trace wraps `math`."""

_OF_SEQUENCES: Mapping[str, Callable[..., Any]] = {
    "prod": operator.mul, "sum": operator.add, "max": max, "amax": max, "min": min, "amin": min,
}  # fmt: skip
"""What joins two numbers of a sequence in a function that reduces it."""

_ROUNDED = ("round", "around", "round_")


def of_numbers(
    ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: Mapping[str, Any], held: Callable[[Any], Any]
) -> Any:
    """What a universal function of NumPy gives for sizes.

    Args:
        ufunc: the function.
        method: how it is called; `__call__`, as functions are.
        inputs: numbers, of which some are proxies.
        options: what it is given by name.
        held: gives the number of a proxy, and holds it.
    """
    twin = _TWINS.get(ufunc.__name__)
    numbers = [x.item() if isinstance(x, np.generic) else x for x in inputs]
    plain = all(_is_number(x) for x in numbers)
    if twin is not None and method == "__call__" and not options and plain:
        return _recorded(twin, numbers)
    return getattr(ufunc, method)(*_each(inputs, held), **options)


def of_sequences(function: Any, args: tuple[Any, ...], options: Mapping[str, Any], held: Callable[[Any], Any]) -> Any:
    """What another function of NumPy gives for sizes, or for a shape; the arguments are those of `of_numbers`."""
    name = getattr(function, "__name__", "")
    if not options and len(args) == 1 and name in _OF_SEQUENCES and isinstance(_value(args[0]), (tuple, list)):
        total, *others = args[0]
        for other in others:
            total = _recorded(_OF_SEQUENCES[name], [total, other])
        return total
    if not options and len(args) == 1 and name in _ROUNDED and _is_number(args[0]):
        return round(args[0])
    return function(*_each(args, held), **{key: _plain(value, held) for key, value in options.items()})


def python_number(value: Any) -> Any:
    """A scalar of NumPy as the number that it is."""
    return value.item() if isinstance(value, np.generic) else value


def _each(values: tuple[Any, ...], held: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Arguments in which proxies are numbers."""
    return tuple(_plain(value, held) for value in values)


def _plain(value: Any, held: Callable[[Any], Any]) -> Any:
    if issubclass(type(value), fx.Proxy):
        return tuple(_plain(v, held) for v in value) if isinstance(_value(value), (tuple, list)) else held(value)
    return type(value)([_plain(v, held) for v in value]) if type(value) in (tuple, list) else value


def _recorded(twin: Callable[..., Any], numbers: list[Any]) -> Any:
    tracer = next((x.tracer for x in numbers if issubclass(type(x), fx.Proxy)), None)
    return twin(*numbers) if tracer is None else tracer.create_proxy("call_function", twin, tuple(numbers), {})


def _value(value: Any) -> Any:
    return value.node.meta["value"] if issubclass(type(value), fx.Proxy) else value


def _is_number(value: Any) -> bool:
    found = _value(value)
    return isinstance(found, (bool, int, float))
