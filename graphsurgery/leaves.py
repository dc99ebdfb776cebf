"""Which modules a trace keeps whole, and as what."""

from __future__ import annotations

import torchvision
from torch import nn

from graphsurgery import layers

_CONTAINERS = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
_OWN_LEAVES = (torchvision.ops.StochasticDepth, torchvision.ops.FrozenBatchNorm2d)


def plain(module: nn.Module) -> nn.Module:
    """A subclass that only has another constructor becomes the torch.nn layer that it is."""
    base = torch_layer(type(module))
    if base is not None and type(module) is not base:
        module.__class__ = base
    return module


def torch_layer(kind: type) -> type | None:
    """The torch.nn class whose forward this class has, if any."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.modules") and base is not nn.Module:
            return base if getattr(kind, "forward", None) is getattr(base, "forward", None) else None
    return None


def is_leaf(module: nn.Module) -> bool:
    """Whether a trace keeps a module whole: torch's own layers, drop-path, and our own."""
    if isinstance(module, _CONTAINERS):
        return False
    if isinstance(module, _OWN_LEAVES) or type(module).__module__ == layers.__name__:
        return True
    return torch_layer(type(module)) is not None
