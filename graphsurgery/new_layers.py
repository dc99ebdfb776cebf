"""New layers for a value, modelled on those of its network: an identity, or a residual pair whose second is zero."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from graphsurgery.identities import BATCH_NORMS, CONVOLUTIONS, be_identity, be_zero, undo_norm

Layers = dict[str, nn.Module]
_MIXING = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU, nn.MultiheadAttention, nn.PReLU)


def identity_layer(
    network: nn.Module, value: Tensor, like: nn.Module, activation: Callable[[], nn.Module]
) -> Callable[[], Layers]:
    """Makes an identity layer, its BatchNorm where the network has such, and an activation that was applied already.

    Args:
        network: where they go.
        value: of the shape that they take and give.
        like: the linear layer or convolution that the new one is modelled on.
        activation: makes the activation.
    """
    make, norm = _layer(value, like), _norm(value, like)
    normed = any(type(part) is norm for part in network.modules())

    def layers() -> Layers:
        found: Layers = {"layer": make()}
        be_identity(found["layer"])
        if normed and norm is not None:
            found["norm"] = norm(value.shape[1])
            undo_norm(found["norm"])
        return {**found, "activation": activation()}

    return layers


def residual_pair(network: nn.Module, value: Tensor, like: nn.Module) -> Callable[[], Layers]:
    """Makes two layers around the network's most frequent activation, of which the second gives zeros.

    Args:
        network, value, like: as for `identity_layer`.
    """
    make = _layer(value, like)
    kinds = Counter(type(part) for part in network.modules() if is_activation(part))
    common = kinds.most_common(1)[0][0] if kinds else nn.ReLU
    model = next((part for part in network.modules() if type(part) is common), nn.ReLU())

    def layers() -> Layers:
        activation = copy.deepcopy(model)
        if hasattr(activation, "inplace"):
            activation.__dict__["inplace"] = False
        second = make()
        be_zero(second)
        return {"first": make(), "activation": activation, "second": second}

    return layers


def is_activation(module: nn.Module) -> bool:
    """Whether a module acts on every element alone and has no weights."""
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, _MIXING)


def parameters_of(make: Callable[[], Layers]) -> int:
    """How many parameters layers have together; torch's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        return sum(p.numel() for layer in make().values() for p in layer.parameters())


def _layer(value: Tensor, like: nn.Module) -> Callable[[], nn.Module]:
    """Makes a layer that takes and gives the shape of a value."""
    if _is_image(value, like):
        assert isinstance(like, CONVOLUTIONS)
        kernel = tuple(k if k % 2 else 3 for k in like.kernel_size)
        make = CONVOLUTIONS[len(kernel) - 1]
        padding = tuple(k // 2 for k in kernel)
        return lambda: make(value.shape[1], value.shape[1], kernel, padding=padding)  # type: ignore[arg-type]
    return lambda: nn.Linear(value.shape[-1], value.shape[-1])


def _norm(value: Tensor, like: nn.Module) -> type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d] | None:
    """The BatchNorm that takes a value, if one does."""
    if _is_image(value, like):
        return BATCH_NORMS[value.dim() - 3]
    return nn.BatchNorm1d if value.dim() == 2 else None


def _is_image(value: Tensor, like: nn.Module) -> bool:
    """Whether a value has its channels on axis 1, as the convolution takes them."""
    return isinstance(like, CONVOLUTIONS) and value.dim() == len(like.kernel_size) + 2
