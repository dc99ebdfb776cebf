"""Layers that give what they are given, or zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
