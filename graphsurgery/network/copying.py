"""Copies of modules with other tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from graphsurgery.network.paths import OF_EVERY_MODULE, modules_of

M = TypeVar("M", bound=nn.Module)

_NEW_HOOKS = tuple((name, type(value)) for name, value in nn.Module().__dict__.items() if "_hooks" in name)


def meta_of(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape and dtype."""
    return torch.empty_like(tensor, device="meta")


def is_parameter(tensor: Tensor) -> bool:
    """As `isinstance(tensor, nn.Parameter)`, which asks a plain tensor in Python whether it is one in disguise."""
    return type(tensor) is not Tensor and isinstance(tensor, nn.Parameter)


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
        found = self._made.get(id(tensor))
        if found is None:
            new = tensor.detach().clone() if self._copy else tensor.detach()
            if is_parameter(tensor):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            found = self._made[id(tensor)] = Twin(new, tensor)
        return found.new

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
            if is_parameter(tensor):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = new
            twins[id(new)] = Twin(new, tensor)
        return memo[id(tensor)]

    return _deep_copy(model, memo, replaced)


def _deep_copy(model: nn.Module, memo: dict[int, Any], replaced: Callable[[Tensor], Tensor]) -> nn.Module:
    """What `copy.deepcopy` gives, with other parameters and buffers, and without its walk through what is empty."""
    parts = list({id(part): part for part in modules_of(model).values()}.values())
    asked = {kind for kind in set(map(type, parts)) if _copies_itself(kind)}
    below = {id(p) for part in parts if type(part) in asked for p in part.modules()} if asked else ()
    own = [part for part in parts if id(part) not in below]
    memo.update({id(part): type(part).__new__(type(part)) for part in own})
    for part in parts:
        if id(part) not in memo:
            for tensor in (*part._parameters.values(), *part._buffers.values()):
                if isinstance(tensor, Tensor):
                    replaced(tensor)
    rest = [item for part in own for item in _filled(memo[id(part)].__dict__, part.__dict__, memo, replaced)]
    # Plain attributes keep their values: what the forward computes from them alone is a constant.
    for _, _, value in rest:
        _detach(value, memo, _NESTED)
    if len(own) < len(parts):
        detach_attributes(model, memo)
    for state, name, value in reversed(rest):
        state[name] = copy.deepcopy(value, memo)
    return copy.deepcopy(model, memo)


def whole_copy(model: M) -> M:
    """What `copy.deepcopy` gives, without its walk through what is empty in every layer: half of the time."""
    memo: dict[int, Any] = {}
    parts = list({id(part): part for part in modules_of(model).values()}.values())[1:]
    asked = [part for part in parts if _copies_itself(type(part))]
    left = {id(below) for part in asked for below in part.modules()}
    own = [part for part in parts if id(part) not in left]
    memo.update({id(part): type(part).__new__(type(part)) for part in own})
    rest = [
        item
        for part in own
        for item in _filled(memo[id(part)].__dict__, part.__dict__, memo, lambda tensor: copy.deepcopy(tensor, memo))
    ]
    for state, name, value in reversed(rest):
        state[name] = copy.deepcopy(value, memo)
    return copy.deepcopy(model, memo)


def _filled(
    state: dict[str, Any], old: dict[str, Any], memo: dict[int, Any], replaced: Callable[[Tensor], Tensor]
) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Give a new module what the old one has, but for what has to be copied deeply: that is handed out."""
    state.update(old)
    for name, value in old.items():
        kind = type(value)
        if kind in _CONSTANTS or (kind is tuple and all(type(item) in _CONSTANTS for item in value)):
            continue
        if name in OF_EVERY_MODULE and kind in _CONTAINERS and not value:
            state[name] = kind()
        elif name in ("_parameters", "_buffers"):
            state[name] = {k: None if v is None else replaced(v) for k, v in value.items()}
        elif name == "_modules" and all(id(v) in memo for v in value.values()):
            state[name] = {k: memo[id(v)] for k, v in value.items()}
        elif name == "_compiled_call_impl":
            state[name] = None
        else:
            yield state, name, value


_CONTAINERS = frozenset({dict, OrderedDict, list, set})
_CONSTANTS = frozenset({bool, int, float, str, type(None), torch.dtype})


def _copies_itself(kind: type[nn.Module]) -> bool:
    """Whether a class of modules has a say in how its instances are copied."""
    if hasattr(kind, "__deepcopy__") or any(vars(base).get("__slots__") for base in kind.__mro__):
        return True
    usual = ("__reduce__", "__reduce_ex__", "__getstate__")
    if any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in usual):
        return True
    home = str(kind.__setstate__.__module__)  # torch's layers add what older files lack; recurrent ones do more
    return not home.startswith("torch.nn.modules.") or home == nn.RNNBase.__module__


def alias_copy(model: nn.Module) -> tuple[nn.Module, dict[int, Any]]:
    """A deep copy whose parameters have the memory of the model's, and which has buffers of its own.

    Returns:
        The copy, and what stands in it for each tensor of the model, by the id of that.
    """
    memo: dict[int, Any] = {}

    def replaced(tensor: Tensor) -> Tensor:
        if id(tensor) not in memo:
            new = tensor.detach()
            memo[id(tensor)] = (
                nn.Parameter(new, requires_grad=tensor.requires_grad) if is_parameter(tensor) else new.clone()
            )
        return memo[id(tensor)]

    return _deep_copy(model, memo, replaced), memo


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
