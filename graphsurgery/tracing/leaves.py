"""Which modules a trace keeps whole, and as what."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphsurgery.network import gated_layers, layers
from graphsurgery.network.operators import key_of, operators
from graphsurgery.network.training_only import InTraining

_CONTAINERS = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.modules.loss._Loss,
    nn.CosineSimilarity,
    nn.PairwiseDistance,
)
"""Layers of torch that are traced through: they call others, or are a function of tensors."""
_OWN_FILES = (layers.__name__, gated_layers.__name__)
_OWN_LEAVES = frozenset({InTraining, *(path for known in operators() for path in known.foreign_modules)})


_CONSTRUCTION = frozenset(
    {"__init__", "__doc__", "__module__", "__qualname__", "__annotations__", "__constants__", "__repr__", "extra_repr"}
    | {"reset_parameters", "_get_name", "__orig_bases__", "__parameters__", "__firstlineno__", "__static_attributes__"}
)
"""What a subclass may have of its own and still compute as its base."""


_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""The BatchNorm of inputs of so many axes."""


def plain(module: nn.Module, value: Any) -> nn.Module:
    """A subclass that only has another constructor becomes the torch.nn layer that it is, in place.

    An `nn.SyncBatchNorm` becomes the BatchNorm that it is outside of a process group.

    Args:
        module: a layer.
        value: what it gives, on meta tensors.
    """
    base = torch_layer(type(module))
    if base is nn.SyncBatchNorm and isinstance(value, Tensor) and value.dim() in _BATCH_NORMS:
        base = _BATCH_NORMS[value.dim()]
        module.__dict__.pop("process_group", None)
    if base is not None and type(module) is not base:
        module.__class__ = base
    return module


def torch_layer(kind: type) -> type | None:
    """The torch.nn class that this class behaves as, if any: it is one, or has but another constructor.

    A subclass that overrides anything else of its base (`forward`, `_conv_forward`, a property named `weight`) behaves
    in its own way.
    """
    own: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.modules") and base is not nn.Module:
            overridden = {name for name in own - _CONSTRUCTION if hasattr(base, name) or name in base.__annotations__}
            return None if overridden else base
        own |= set(vars(base))
    return None


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs before or behind the forward of a module."""
    state = module.__dict__
    return bool(state.get("_forward_hooks") or state.get("_forward_pre_hooks"))


def has_given_forward(module: nn.Module) -> bool:
    """Whether a module, or one below it, was given a forward, which goes on with other weights where it is copied."""
    given = ((part, vars(part).get("forward")) for part in module.modules())
    return any(forward is not None and getattr(forward, "__self__", None) is not part for part, forward in given)


def is_leaf(module: nn.Module) -> bool:
    """Whether a trace keeps a module whole: torch's own layers, drop-path, and our own."""
    if isinstance(module, _CONTAINERS) or "forward" in module.__dict__:
        return False
    if any(key_of(base) in _OWN_LEAVES for base in type(module).__mro__) or type(module).__module__ in _OWN_FILES:
        return True
    return torch_layer(type(module)) is not None
