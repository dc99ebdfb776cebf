"""Copies of modules with other tensors."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_NEW_HOOKS = tuple((name, type(value)) for name, value in nn.Module().__dict__.items() if "_hooks" in name)


def meta_of(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape and dtype."""
    return torch.empty_like(tensor, device="meta")


def copy_module(module: nn.Module, tensors: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a leaf module with every parameter and buffer replaced; hooks stay behind."""
    new = module.__class__.__new__(module.__class__)
    state = new.__dict__
    state.update(module.__dict__)
    state.pop("_compiled_call_impl", None)
    for name, kind in _NEW_HOOKS:
        state[name] = kind()
    state["_parameters"] = {k: None if v is None else tensors(v) for k, v in module._parameters.items()}
    state["_buffers"] = {k: None if v is None else tensors(v) for k, v in module._buffers.items()}
    state["_modules"] = {k: None if v is None else copy_module(v, tensors) for k, v in module._modules.items()}
    state["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    return new


_NESTED = 4
"""How deep in lists and dicts of a module tensors are looked for."""


_LAST: Mapping[int, torch.memory_format] = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_laid_out(tensor: Tensor) -> bool:
    """Whether a tensor shows whether its channels lie last in memory."""
    form = _LAST.get(tensor.dim())
    return form is not None and tensor.is_contiguous() != tensor.is_contiguous(memory_format=form)


def laid_out_like(new: Tensor, old: Tensor) -> Tensor:
    """A tensor whose channels lie last in memory where those of the old one do, which convolutions are faster with."""
    form = _LAST.get(old.dim())
    if form is None or new.dim() != old.dim() or old.is_contiguous() or not old.is_contiguous(memory_format=form):
        return new
    return new.contiguous(memory_format=form)


class Twin(NamedTuple):
    """A tensor, and the one that it was made from; who finds it by the identity of one has to keep that alive."""

    new: Tensor
    real: Tensor


class Replicas:
    """Gives a new tensor for each, and the same one wherever the same tensor is met again.

    Args:
        copy: whether they are clones; else they share the memory, and only dtype, device and gradient are their own.
    """

    def __init__(self, *, copy: bool = True) -> None:
        self._copy = copy
        self._made: dict[int, Twin] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._made:
            new = tensor.detach().clone() if self._copy else tensor.detach()
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            self._made[id(tensor)] = Twin(new, tensor)
        return self._made[id(tensor)].new

    def made(self) -> dict[int, Tensor]:
        """The new tensor of each that was met, by the id of that; it stays alive as long as this does."""
        return {name: twin.new for name, twin in self._made.items()}


def own_tensors(module: nn.Module) -> None:
    """Give a module parameters and buffers of its own; ties stay ties."""
    cloned = Replicas()
    for part in module.modules():
        every: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for slots in every:
            slots.update({name: cloned(tensor) for name, tensor in slots.items() if tensor is not None})


def meta_copy(model: nn.Module, twins: dict[int, Twin]) -> nn.Module:
    """A deep copy whose parameters and buffers are meta tensors; `twins` gets the original of each, by its id."""
    memo: dict[int, Any] = {}

    def replaced(tensor: Tensor) -> Tensor:
        if id(tensor) not in memo:
            new: Tensor = meta_of(tensor)
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = new
            twins[id(new)] = Twin(new, tensor)
        return memo[id(tensor)]

    for module in model.modules():
        if _is_plain(module):
            memo[id(module)] = copy_module(module, replaced)
        else:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if isinstance(tensor, Tensor):
                    replaced(tensor)
    # Plain attributes keep their values: what the forward computes from them alone is a constant.
    detach_attributes(model, memo)
    return copy.deepcopy(model, memo)


_OWN = frozenset(nn.Module().__dict__)
_HOOKS = tuple(name for name, _ in _NEW_HOOKS)
_CONSTANTS = frozenset({bool, int, float, str, type(None), torch.dtype})


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a layer of torch that holds nothing but its tensors and constants."""
    state = module.__dict__
    if not type(module).__module__.startswith("torch.nn.modules.") or state["_modules"]:
        return False
    if any(state[name] for name in _HOOKS) or not state.keys() >= _OWN:
        return False
    return all(_is_constant(value) for name, value in state.items() if name not in _OWN)


def _is_constant(value: Any) -> bool:
    return type(value) in _CONSTANTS or (
        type(value) in (tuple, list) and all(type(item) in _CONSTANTS for item in value)
    )


def alias_copy(model: nn.Module) -> tuple[nn.Module, dict[int, Any]]:
    """A deep copy whose parameters have the memory of the model's, and which has buffers of its own.

    Returns:
        The copy, and what stands in it for each tensor of the model, by the id of that.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if isinstance(parameter, Tensor) and id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    detach_attributes(model, memo)
    return copy.deepcopy(model, memo), memo


def detach_attributes(model: nn.Module, memo: dict[int, Any]) -> None:
    """Put copies of buffers and of tensors in plain attributes into the memo, but for those that are there already.

    What a forward has kept of its results has a history, and `copy.deepcopy` refuses it.
    """
    for module in model.modules():
        if id(module) not in memo:
            for value in (module._buffers, *module.__dict__.values()):
                _detach(value, memo, _NESTED)


def _detach(value: Any, memo: dict[int, Any], depth: int) -> None:
    if isinstance(value, Tensor):
        if id(value) not in memo:
            memo[id(value)] = value.detach().clone()
    elif depth and isinstance(value, list | tuple | set | deque | Mapping):
        for item in list(value.values() if isinstance(value, Mapping) else value):
            _detach(item, memo, depth - 1)
