"""Integers in the attributes of modules: `self.heads`, `self.sizes[1]`, `self.config.width`."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.network.paths import OF_EVERY_MODULE, modules_of
from graphsurgery.surgery.installing.followed import Followed, IntegerPlace
from graphsurgery.tracing.leaves import is_leaf

_DEEPEST = 4
_FOREIGN = ("torch", "builtins", "numpy", "functools", "collections", "typing", "logging", "threading", "weakref")
"""Packages whose objects have no sizes of a model in their attributes."""


def follow_attributes(model: nn.Module) -> dict[IntegerPlace, int]:
    """Let every integer in the attributes of a model know its place, in place.

    Those of layers that a trace keeps whole are left out but for `nn.MultiheadAttention`, which it takes apart.

    Returns:
        The integer at each place. What several modules hold, such as a configuration, has one place.
    """
    found: dict[IntegerPlace, int] = {}

    def followed(place: IntegerPlace, value: int) -> Followed:
        found[place] = value
        return Followed.at(place, value)

    seen: set[int] = set()
    for path, module in modules_of(model).items():
        if id(module) in seen or (is_leaf(module) and not isinstance(module, nn.MultiheadAttention)):
            continue
        seen.add(id(module))
        _replace(module, IntegerPlace(path, ()), followed, seen)
    return found


def put_numbers(model: nn.Module, numbers: dict[IntegerPlace, int]) -> None:
    """Write integers to their places in a model, in place."""
    seen: set[int] = set()
    for path, module in modules_of(model).items():
        if id(module) not in seen:
            seen.add(id(module))
            _replace(module, IntegerPlace(path, ()), lambda place, value: numbers.get(place, value), seen)


def follow_object(holder: Any, name: str) -> dict[IntegerPlace, int]:
    """The same for the attributes of one object, such as a configuration."""
    found: dict[IntegerPlace, int] = {}

    def followed(place: IntegerPlace, value: int) -> Followed:
        found[place] = value
        return Followed.at(place, value)

    _replace(holder, IntegerPlace(name, ()), followed, set())
    return found


def put_in_object(holder: Any, name: str, numbers: dict[IntegerPlace, int]) -> None:
    """Write integers to their places in one object, in place."""
    _replace(holder, IntegerPlace(name, ()), lambda place, value: numbers.get(place, value), set())


def _replace(holder: Any, place: IntegerPlace, new: Callable[[IntegerPlace, int], int], seen: set[int]) -> None:
    for name, value in list(vars(holder).items()):
        if isinstance(holder, nn.Module) and name in OF_EVERY_MODULE:
            continue
        changed = _replaced(value, IntegerPlace(place.path, (*place.keys, name)), new, seen)
        if changed is not value:
            vars(holder)[name] = changed


def _replaced(value: Any, place: IntegerPlace, new: Callable[[IntegerPlace, int], int], seen: set[int]) -> Any:
    """A value with other integers in it; lists, dicts and objects are changed in place."""
    if type(value) in (int, Followed):
        return new(place, int(value))
    if len(place.keys) > _DEEPEST or isinstance(value, Tensor | nn.Module | type | Enum | torch.Size):
        return value
    if type(value) is tuple:
        parts = tuple(part for _, part in _parts(value, place, new, seen))
        return parts if any(a is not b for a, b in zip(parts, value, strict=True)) else value
    if id(value) in seen:
        return value
    if type(value) in (list, dict):
        seen.add(id(value))
        for key, part in list(_parts(value, place, new, seen)):
            if part is not value[key]:
                value[key] = part
    elif _is_plain_object(value):
        seen.add(id(value))
        _replace(value, place, new, seen)
    return value


def _parts(
    value: Any, place: IntegerPlace, new: Callable[[IntegerPlace, int], int], seen: set[int]
) -> Iterator[tuple[Any, Any]]:
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield key, _replaced(part, IntegerPlace(place.path, (*place.keys, key)), new, seen)


def _is_plain_object(value: Any) -> bool:
    """Whether something is an object of the model's own, with attributes in a dictionary."""
    if isinstance(value, types.FunctionType | types.MethodType | types.ModuleType | str) or callable(value):
        return False
    package = type(value).__module__.partition(".")[0]
    return package not in _FOREIGN and isinstance(getattr(value, "__dict__", None), dict)
