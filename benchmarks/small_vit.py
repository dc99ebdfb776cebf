"""A vision transformer small enough to train on two cores: 2 layers of 4 heads over 16 patches."""

from __future__ import annotations

from torch import nn
from torchvision.models import VisionTransformer

INPUT_SHAPE = (1, 28, 28)


def small_vit(width: int = 64, pixels: int = 28) -> nn.Module:
    """`[batch, 1, pixels, pixels]`, a multiple of 4, to the logits of ten classes, `[batch, 10]`."""
    patch, inner = pixels // 4, 2 * width
    network = VisionTransformer(
        pixels, patch, num_layers=2, num_heads=4, hidden_dim=width, mlp_dim=inner, num_classes=10
    )
    network.conv_proj = nn.Conv2d(1, width, patch, patch)
    return network
