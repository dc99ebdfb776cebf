"""VGG-11 for small images, with and without BatchNorm and biases."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""How many times as wide as the first each convolution is."""


class VGG(nn.Module):
    """3x3 convolutions in five stages with a 2x2 pool after each, then one linear layer."""

    def __init__(self, in_channels: int, classes: int, image_size: int, width: int, *, norm: bool, bias: bool) -> None:
        super().__init__()
        self.input_shape: tuple[int, ...] = (in_channels, image_size, image_size)
        layers: list[nn.Module] = []
        channels, side = in_channels, image_size
        for stage in _STAGES:
            for times in stage:
                layers.append(nn.Conv2d(channels, times * width, 3, padding=1, bias=bias))
                channels = times * width
                layers += [nn.BatchNorm2d(channels), nn.ReLU()] if norm else [nn.ReLU()]
            if side > 1:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels * side * side, classes, bias=bias or norm)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.features(x), 1))


def vgg11(
    in_channels: int = 3, classes: int = 10, image_size: int = 32, bias: bool = False, width: int = 64
) -> nn.Module:
    """VGG-11 without BatchNorm; `[batch, in_channels, image_size, image_size]` to `[batch, classes]`.

    `width` is that of the first convolution, in channels; the others are 2, 4 and 8 times as wide.

    Without biases it is the network of the OTFusion checkpoints. A pool is left out where one pixel is left,
    so that images below 32 pixels work; on 8x8 digits it hardly learns in a few epochs, while `vgg11_bn` does.

    Source: Singh & Jaggi, "Model Fusion via Optimal Transport" (arXiv:1910.05653), VGG-11 of the CIFAR-10 experiment.
    """
    return VGG(in_channels, classes, image_size, width, norm=False, bias=bias)


def vgg11_bn(
    in_channels: int = 3, classes: int = 10, image_size: int = 32, bias: bool = False, width: int = 64
) -> nn.Module:
    """VGG-11 with a BatchNorm after each convolution; `bias` gives the convolutions one too. See `vgg11`."""
    return VGG(in_channels, classes, image_size, width, norm=True, bias=bias)
