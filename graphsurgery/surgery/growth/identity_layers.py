"""Layers that give what they are given, or zeros, and new ones modelled on those of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.network.copying import deep_copy, is_laid_out, laid_out_like

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def can_be_identity(leaf: nn.Module) -> bool:
    """Whether there are weights with which a layer gives what it is given."""
    if isinstance(leaf, nn.Linear):
        return leaf.in_features == leaf.out_features
    if not isinstance(leaf, CONVOLUTIONS):
        return False
    odd = all(k % 2 for k in leaf.kernel_size)
    same = leaf.padding == "same" or all(
        2 * p == d * (k - 1) for p, d, k in zip(_each(leaf.padding, leaf), leaf.dilation, leaf.kernel_size, strict=True)
    )
    return odd and same and all(s == 1 for s in leaf.stride) and leaf.in_channels == leaf.out_channels


def _each(setting: Any, leaf: Any) -> tuple[int, ...]:
    return (0,) * len(leaf.kernel_size) if isinstance(setting, str) else tuple(setting)


def can_be_calibrated(leaf: nn.Module) -> bool:
    """Whether a norm can undo in evaluation what it does."""
    return isinstance(leaf, BATCH_NORMS) and leaf.affine and leaf.running_var is not None


def be_identity(layer: Any) -> None:
    """Give a linear layer or convolution the weights with which it gives what it is given, in place."""
    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(torch.eye(layer.in_features))
        else:
            nn.init.dirac_(layer.weight, layer.groups)
        if layer.bias is not None:
            layer.bias.zero_()


def be_zero(part: Any) -> None:
    """Let a layer or a parameter give zeros, in place."""
    tensors = [part] if isinstance(part, Tensor) else [part.weight, getattr(part, "bias", None)]
    for tensor in tensors:
        if tensor is not None:
            nn.init.zeros_(tensor)


def undo_norm(norm: Any, mean: Tensor | None = None, variance: Tensor | None = None) -> None:
    """Give a BatchNorm statistics, and the weights that undo them in evaluation mode, in place.

    Source: Chen, Goodfellow, Shlens, "Net2Net", arXiv:1511.05641, section 2 (deepening).
    """
    with torch.no_grad():
        norm.running_mean.copy_(torch.zeros_like(norm.running_mean) if mean is None else mean)
        norm.running_var.copy_(torch.ones_like(norm.running_var) if variance is None else variance)
        # What the norm multiplies with in evaluation, so that the product is 1 to the last bit or two.
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)


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
    make, norm = _layer(network, value, like), _norm(value, like)
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
    make = _layer(network, value, like)
    kinds = Counter(type(part) for part in network.modules() if is_activation(part))
    common = kinds.most_common(1)[0][0] if kinds else nn.ReLU
    model = next((part for part in network.modules() if type(part) is common), nn.ReLU())

    def layers() -> Layers:
        activation = deep_copy(model)
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


def _layer(network: nn.Module, value: Tensor, like: nn.Module) -> Callable[[], nn.Module]:
    """Makes a layer that takes and gives the shape of a value, its weights laid out in memory as those beside it."""
    if _is_image(value, like):
        assert isinstance(like, CONVOLUTIONS)
        kernel = tuple(k if k % 2 else 3 for k in like.kernel_size)
        make = CONVOLUTIONS[len(kernel) - 1]
        padding = tuple(k // 2 for k in kernel)
        model = _telling(like.weight, network)

        def convolution() -> nn.Module:
            made = make(value.shape[1], value.shape[1], kernel, padding=padding)  # type: ignore[arg-type]
            made.weight.data = laid_out_like(made.weight.data, model)
            return made

        return convolution
    return lambda: nn.Linear(value.shape[-1], value.shape[-1])


def _telling(weight: Tensor, network: nn.Module) -> Tensor:
    """A weight whose layout in memory shows: that of 1x1 kernels and of single channels is all layouts at once."""
    others = (p for p in network.parameters() if p.dim() == weight.dim())
    return next((each for each in (weight, *others) if is_laid_out(each)), weight)


def _norm(value: Tensor, like: nn.Module) -> type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d] | None:
    """The BatchNorm that takes a value, if one does."""
    if _is_image(value, like):
        return BATCH_NORMS[value.dim() - 3]
    return nn.BatchNorm1d if value.dim() == 2 else None


def _is_image(value: Tensor, like: nn.Module) -> bool:
    """Whether a value has its channels on axis 1, as the convolution takes them."""
    return isinstance(like, CONVOLUTIONS) and value.dim() == len(like.kernel_size) + 2
