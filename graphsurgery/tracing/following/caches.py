"""What a forward keeps from one call to the next, such as the grid of a detector for the size of its last input.

A model that has been run asks whether it has a table for this size already, and goes another way where it has. Both
ways give the same; only the one that makes the table is right at every size. So a trace follows a model that forgot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.network.paths import OF_EVERY_MODULE, modules_of

Place = tuple[str, str]
"""The path of a module, and the name of its attribute."""


class Forgotten:
    """Stands for a size or a key that a forward has kept: it is equal to none."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __bool__(self) -> bool:
        return False

    __hash__ = object.__hash__


def kept_by(run: nn.Module, model: nn.Module) -> dict[Place, Any]:
    """The plain attributes that runs of a copy of a model have changed, with the values that the model has."""
    before = modules_of(model)
    found: dict[Place, Any] = {}
    for path, module in modules_of(run).items():
        for name, value in vars(before[path]).items() if path in before else ():
            if (
                name not in OF_EVERY_MODULE
                and not isinstance(value, nn.Module)
                and _differ(vars(module).get(name), value)
            ):
                found[path, name] = value
    return found


def changed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> bool:
    """Whether some attribute is another object than it was."""
    return before.keys() != after.keys() or any(after[place] is not value for place, value in before.items())


def attributes(model: nn.Module) -> dict[tuple[str, str], Any]:
    """What stands in the plain attributes of a module and its parts."""
    return {
        (path, name): value
        for path, part in modules_of(model).items()
        for name, value in vars(part).items()
        if not name.startswith("_") and name != "training"
    }


def forget(model: nn.Module, kept: Mapping[Place, Any], whole: Iterable[str]) -> None:
    """Take what a forward has kept out of a copy of a model, in place, but for modules that a trace keeps whole."""
    if not kept:
        return
    modules, whole = modules_of(model), list(whole)
    for (path, name), value in kept.items():
        if path in modules and not any(path == w or path.startswith(f"{w}.") for w in whole):
            vars(modules[path])[name] = _forgotten(value)


def numbers(kept: Mapping[Place, Any]) -> set[Place]:
    """Those that are numbers: a key, or perhaps a count of calls, which has to stay one."""
    return {place for place, value in kept.items() if isinstance(value, bool | int | float)}


def _forgotten(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().new_empty((0,) * value.dim())
    if isinstance(value, Mapping):
        return {}
    if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
        return type(value)([_forgotten(part) for part in value])
    return Forgotten()


def _differ(found: Any, value: Any) -> bool:
    """Whether two values are unlike; what cannot be compared counts as like."""
    if isinstance(found, Tensor) and isinstance(value, Tensor):
        return found.shape != value.shape or not torch.equal(found, value)
    if isinstance(found, list | tuple) and isinstance(value, list | tuple):
        return len(found) != len(value) or any(map(_differ, found, value))
    if isinstance(found, Mapping) and isinstance(value, Mapping):
        return found.keys() != value.keys()
    if type(found) is not type(value):
        return value is not None
    return isinstance(value, bool | int | float | str) and found != value
