"""Weights that a module computes from others before each call, made plain: weight norm, spectral norm, masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from graphsurgery.network.copying import deep_copy, detach_attributes
from graphsurgery.network.paths import modules_of

_OLD = (WeightNorm, SpectralNorm, BasePruningMethod)


@torch.no_grad()
def with_plain_weights(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A model whose weights are parameters with the values that they have in evaluation, and what computed each.

    The model is not modified, and is returned itself where it computes none; else a copy that shares all other tensors.
    Parametrizations are known, the older hooks of `torch.nn.utils`, and masks of `torch.nn.utils.prune` that are not
    removed: what they mask is 0, and trains from then on where it is not trained under a `MaskSet`.
    """
    if not any(map(_computes, modules_of(model).values())):
        return model, []
    found = {path: part for path, part in model.named_modules() if _computes(part)}
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for part in found.values():
        # Last results stay in plain attributes, or in the lists of recurrent layers, and such tensors refuse a copy.
        lists = (value if isinstance(value, list) else [value] for value in vars(part).values())
        shared |= {id(value): value for values in lists for value in values if isinstance(value, Tensor)}
    detach_attributes(model, shared)
    plain = deep_copy(model, shared)
    ties: dict[Any, Tensor] = {}
    lines: dict[str, list[str]] = {}
    for path in reversed(found):  # the parts of a parametrization may be computed themselves
        part = plain.get_submodule(path)
        weights = {**_parametrized(part, ties), **_hooked(part)}
        lines[path] = [f"{f'{path}.{name}'.lstrip('.')} ({kind})" for name, (_, kind) in weights.items()]
        rest = dict(part._parameters)
        part._parameters.clear()  # the weights come first, as in layers that were made with them
        for name, (value, _) in weights.items():
            vars(part).pop(name, None)
            if isinstance(value, nn.Parameter):
                setattr(part, name, value)  # recurrent layers keep a list of their weights
            else:
                part.register_buffer(name, value)
        part._parameters.update(rest)
    return plain, [line for path in found for line in lines[path]]


def _computes(module: nn.Module) -> bool:
    if "parametrizations" in module._modules and parametrize.is_parametrized(module):
        return True
    hooks = module._forward_pre_hooks
    return bool(hooks) and any(isinstance(hook, _OLD) for hook in hooks.values())


def _parametrized(module: nn.Module, ties: dict[Any, Tensor]) -> dict[str, tuple[Tensor, str]]:
    """The weights that parametrizations of a module compute, which go from it; by their names, with what did so."""
    if not parametrize.is_parametrized(module):
        return {}
    lists: Any = module.parametrizations
    found = {}
    for name, steps in lists.items():
        for step in steps.modules():
            step.training = False
        # Tied weights have their parametrizations in common.
        if steps not in ties:
            ties[steps] = _plain(getattr(module, name), list(steps.parameters(recurse=False)))
        found[name] = (ties[steps], ", ".join(type(step).__name__.lstrip("_") for step in steps))
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    return found


def _hooked(module: nn.Module) -> dict[str, tuple[Tensor, str]]:
    """The same for the older hooks; a mask comes first, as it may be over a part of another weight."""
    found: dict[str, tuple[Tensor, str]] = {}
    hooks = [(key, hook) for key, hook in module._forward_pre_hooks.items() if isinstance(hook, _OLD)]
    for key, hook in sorted(hooks, key=lambda item: not isinstance(item[1], BasePruningMethod)):
        name, value = _computed(module, hook)
        own = [f"{name}{end}" for end in ("_g", "_v", "_orig", "_u", "_mask")]
        sources: list[Any] = [module._parameters.pop(part) for part in own if part in module._parameters]
        for part in own:
            module._buffers.pop(part, None)
            if part in found:
                sources.append(found.pop(part)[0])
                del vars(module)[part]
        del module._forward_pre_hooks[key]
        found[name] = (_plain(value, [source for source in sources if source is not None]), type(hook).__name__)
        vars(module)[name] = found[name][0]  # where the next hook looks for it
    return found


def _computed(module: nn.Module, hook: Any) -> tuple[str, Tensor]:
    """The name of the weight that a hook computes, and its value in evaluation."""
    if isinstance(hook, BasePruningMethod):
        return hook._tensor_name, hook.apply_mask(module)
    options = () if isinstance(hook, WeightNorm) else (False,)  # not in training
    return hook.name, hook.compute_weight(module, *options)


def _plain(value: Tensor, sources: list[nn.Parameter]) -> Tensor:
    """A parameter that is trained if what it was computed from is; a buffer where that were buffers."""
    value = value.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(value, requires_grad=any(s.requires_grad for s in sources)) if sources else value
