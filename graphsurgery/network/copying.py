"""Copies of modules with other tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import (
    Tensor,
    empty,  # a name of our own, as tracing replaces `torch.empty`
    nn,
)

from graphsurgery.network.paths import OF_EVERY_MODULE, modules_of

M = TypeVar("M", bound=nn.Module)

_NEW_HOOKS = tuple((name, type(value)) for name, value in nn.Module().__dict__.items() if "_hooks" in name)


def meta_of(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape and dtype."""
    if tensor.layout is torch.strided and tensor.is_contiguous():
        return empty(tensor.shape, dtype=tensor.dtype, device="meta")  # `empty_like` would load torch's compiler
    return torch.empty_like(tensor, device="meta")


def is_parameter(tensor: Tensor) -> bool:
    """As `isinstance(tensor, nn.Parameter)`, which asks a plain tensor in Python whether it is one in disguise."""
    return type(tensor) is not Tensor and isinstance(tensor, nn.Parameter)


def is_compiled(forward: Any) -> bool:
    """Whether this is what torch.compile makes of the forward of a module: it stays with that module in every copy."""
    written = getattr(forward, "_torchdynamo_orig_callable", None)
    return isinstance(written, MethodType) and written.__func__ is getattr(type(written.__self__), "forward", None)


def copy_module(module: nn.Module, tensors: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a leaf module with every parameter and buffer replaced; hooks stay behind."""
    made: dict[int, Any] = {}
    new = _copied(module, tensors, made)
    if _may_hold(module):
        rebind(new, made)
    return new


def _copied(module: nn.Module, tensors: Callable[[Tensor], Tensor], made: dict[int, Any]) -> nn.Module:
    """The same; what was made of each module and tensor is in `made`, by the id of that."""
    new = made[id(module)] = module.__class__.__new__(module.__class__)
    state = new.__dict__
    state.update(module.__dict__)
    state.pop("_compiled_call_impl", None)
    if is_compiled(state.get("forward")):
        del state["forward"]
    for name, kind in _NEW_HOOKS:
        state[name] = kind()
    for slots in ("_parameters", "_buffers"):
        old: dict[str, Tensor | None] = getattr(module, slots)
        state[slots] = {k: None if v is None else tensors(v) for k, v in old.items()}
        made.update((id(v), state[slots][k]) for k, v in old.items() if v is not None)
    state["_modules"] = {k: None if v is None else _copied(v, tensors, made) for k, v in module._modules.items()}
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
    own = _begun(parts, memo)
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
    copied: nn.Module = copy.deepcopy(model, memo)
    for part in parts:
        if is_compiled(vars(part).get("forward")):
            del vars(memo[id(part)])["forward"]
    rebind(copied, memo)
    return copied


def whole_copy(model: M) -> M:
    """What `copy.deepcopy` gives, without its walk through what is empty in every layer: half of the time."""
    memo: dict[int, Any] = {}
    below = list({id(part): part for part in modules_of(model).values()}.values())[1:]
    rest = [
        item
        for part in _begun(below, memo)
        for item in _filled(memo[id(part)].__dict__, part.__dict__, memo, lambda tensor: copy.deepcopy(tensor, memo))
    ]
    for state, name, value in reversed(rest):
        state[name] = copy.deepcopy(value, memo)
    return copy.deepcopy(model, memo)


def _begun(parts: Sequence[nn.Module], memo: dict[int, Any]) -> list[nn.Module]:
    """The modules that have no say in how they are copied; the memo gets an empty one for each."""
    asked = {kind for kind in set(map(type, parts)) if _copies_itself(kind)}
    below = {id(p) for part in parts if type(part) in asked for p in part.modules()} if asked else ()
    own = [part for part in parts if id(part) not in below]
    memo.update({id(part): type(part).__new__(type(part)) for part in own})
    return own


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


_DEPTH = 6
"""How deep functions in functions and containers are looked for."""


def deep_copy(part: Any, memo: dict[int, Any] | None = None) -> Any:
    """As `copy.deepcopy`; functions that hold a module, such as a lambda in an attribute, hold the copy."""
    memo = {} if memo is None else memo
    copied = copy.deepcopy(part, memo)
    if isinstance(copied, nn.Module):
        rebind(copied, memo)
    return copied


def rebind(copied: nn.Module, made: Mapping[int, Any]) -> None:
    """Let the functions in the attributes of a copied module hold what was made of what they held, in place.

    `self.act = lambda x: x * self.scale` closes over the module that it was written in, and Python copies a function by
    taking the same one: it would go on with the weights and the mode of the original.
    """
    for part in copied.modules():
        if _may_hold(part):
            own = {name: value for name, value in vars(part).items() if name not in OF_EVERY_MODULE}
            vars(part).update({name: rebound(value, made) for name, value in own.items()})


def _may_hold(module: nn.Module) -> bool:
    """Whether functions in the attributes of a module may hold modules; those of torch's own layers do not."""
    return not type(module).__module__.startswith(("torch.", "graphsurgery.network."))


def rebound(value: Any, made: Mapping[int, Any], depth: int = _DEPTH) -> Any:
    """A value in which everything that was copied is its copy; the same value where nothing was.

    Args:
        value: a function, a method, or a list, tuple or dict that may hold one; anything else stays.
        made: what was made of modules and tensors, by the id of these.
        depth: how deep to look.
    """
    if id(value) in made:
        return made[id(value)]
    rebind = _KINDS.get(type(value)) if depth else None
    return value if rebind is None else rebind(value, made, depth - 1)


def _function(function: FunctionType, made: Mapping[int, Any], depth: int) -> Any:
    held = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    defaults, named = function.__defaults__ or (), function.__kwdefaults__ or {}
    new = _each([*held, *defaults, *named.values()], made, depth)
    if new is None:
        return function
    rest = iter(new)
    closure = tuple(cell if _is_empty(cell) else CellType(next(rest)) for cell in function.__closure__ or ())
    usual = tuple(next(rest) for _ in defaults)
    copied = FunctionType(function.__code__, function.__globals__, function.__name__, usual or None, closure)
    copied.__kwdefaults__ = dict(zip(named, rest, strict=True)) or None
    copied.__dict__.update(function.__dict__)
    copied.__qualname__, copied.__doc__ = function.__qualname__, function.__doc__
    return copied


def _is_empty(cell: CellType) -> bool:
    """Whether a variable that a function holds has no value yet; cells are compared by what is in them."""
    return cell == CellType()


def _method(method: MethodType, made: Mapping[int, Any], depth: int) -> Any:
    owner = rebound(method.__self__, made, depth)
    return method if owner is method.__self__ else MethodType(method.__func__, owner)


def _partial(call: Any, made: Mapping[int, Any], depth: int) -> Any:
    new = _each([call.func, *call.args, *call.keywords.values()], made, depth)
    if new is None:
        return call
    count = 1 + len(call.args)
    return partial(new[0], *new[1:count], **dict(zip(call.keywords, new[count:], strict=True)))


def _sequence(items: Any, made: Mapping[int, Any], depth: int) -> Any:
    new = _each(items, made, depth)
    return items if new is None else tuple(new) if type(items) is tuple else new


def _dict(items: dict[Any, Any], made: Mapping[int, Any], depth: int) -> Any:
    new = _each(items.values(), made, depth)
    return items if new is None else dict(zip(items, new, strict=True))


def _each(items: Any, made: Mapping[int, Any], depth: int) -> list[Any] | None:
    """All items rebound; None where all stay."""
    old = list(items)
    new = [rebound(item, made, depth) for item in old]
    return None if all(a is b for a, b in zip(old, new, strict=True)) else new


_KINDS: dict[type, Callable[[Any, Mapping[int, Any], int], Any]] = {
    FunctionType: _function,
    MethodType: _method,
    partial: _partial,
    list: _sequence,
    tuple: _sequence,
    dict: _dict,
}
