"""Where modules and tensors stand in a network: their names, and what holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""The names of what every module has of its own, whatever its class."""


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    """A module and all below it, by path, shared ones under each of their paths.

    `named_modules(remove_duplicate=False)` gives the same, each one through a generator of every level above it.
    """
    found: dict[str, nn.Module] = {}
    _find_modules(module, "", found)
    return found


def _find_modules(part: nn.Module, path: str, found: dict[str, nn.Module]) -> None:
    """Not a function inside the other: one that calls itself is a cycle, which would keep the modules it has seen."""
    found[path] = part
    before = f"{path}." if path else ""
    for name, below in part._modules.items():
        if below is None:
            continue
        if below._modules:
            _find_modules(below, before + name, found)
        else:
            found[before + name] = below


def layer_at(module: nn.Module, path: str) -> nn.Module:
    """The module at a path, as `get_submodule` finds it with three looks for each name."""
    for name in path.split("."):
        module = module._modules[name]  # type: ignore[assignment]
    return module


def put(owner: nn.Module, name: str, part: Any) -> None:
    """Put a module, parameter, buffer or anything else under a name, as what it is."""
    if isinstance(part, nn.Module) and not (hasattr(type(owner), name) or name in vars(owner)):
        owner._modules[name] = part  # `add_module` looks for the name in all that a module has
    elif isinstance(part, nn.Module):
        owner.add_module(name, part)
    elif isinstance(part, nn.Parameter):
        owner.register_parameter(name, part)
    elif isinstance(part, Tensor):
        owner.register_buffer(name, part)
    else:
        setattr(owner, name, part)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names; the parameters come first."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for path, part in modules_of(module).items():
        for found, slots in ((parameters, part._parameters), (buffers, part._buffers)):
            for name, tensor in slots.items():
                if tensor is not None:
                    found[f"{path}.{name}" if path else name] = tensor
    return parameters | buffers


def place_of(node: fx.Node) -> str:
    """How a node is called in messages and tables: the path of its module, or its own name."""
    return str(node.target) if node.op == "call_module" else node.name


def has_tensors(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return any(has_tensors(v) for v in value)
    return isinstance(value, Mapping) and any(has_tensors(v) for v in value.values())


def map_values(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply `function` to every tensor of a nested value."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return tuple(map_values(v, function) for v in value)
    if isinstance(value, Mapping):
        return {key: map_values(v, function) for key, v in value.items()}
    return value


def owner_of(owners: dict[str, nn.Module], path: str) -> nn.Module:
    """The module at a path; new, empty ones where there are none yet."""
    if path not in owners:
        prefix, _, name = path.rpartition(".")
        parent = owner_of(owners, prefix)
        if name not in parent._modules:
            put(parent, name, nn.Module())
        owners[path] = layer_at(parent, name)
    return owners[path]
