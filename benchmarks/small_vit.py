"""A vision transformer small enough to train on two cores: 2 layers of 4 heads over 16 patches of 7x7 pixels."""

from __future__ import annotations

from torch import nn
from torchvision.models import VisionTransformer

INPUT_SHAPE = (1, 28, 28)


def small_vit(width: int = 64) -> nn.Module:
    """`[batch, 1, 28, 28]` to the logits of ten classes, `[batch, 10]`."""
    network = VisionTransformer(28, 7, num_layers=2, num_heads=4, hidden_dim=width, mlp_dim=2 * width, num_classes=10)
    network.conv_proj = nn.Conv2d(1, width, 7, 7)
    return network
