"""ResNets of basic blocks: ResNet-20 for small images and ResNet-18."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of basic blocks that double the width and halve the image, global average pool, linear."""

    input_shape: tuple[int, ...]

    def __init__(self, stem: nn.Module, width: int, depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.stem = stem
        stages = []
        channels = width
        for number, depth in enumerate(depths):
            stage_width = width << number
            blocks = []
            for block in range(depth):
                stride = 2 if number > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, stage_width, stride))
                channels = stage_width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stages(self.stem(x)))
        return self.head(torch.flatten(x, 1))


def resnet20(in_channels: int = 3, classes: int = 10, width: int = 16) -> nn.Module:
    """ResNet-20 for small images, 16-32-64 channels by default; `[batch, in_channels, any, any]` to `[batch, classes]`.

    Shortcuts that change the shape are 1x1 convolutions with BatchNorm (0.27M parameters).

    Source: He et al., "Deep Residual Learning" (arXiv:1512.03385), section 4.2.
    """
    network = ResNet(_small_stem(in_channels, width), width, (3, 3, 3), classes)
    network.input_shape = (in_channels, 32, 32)
    return network


def resnet18(in_channels: int = 3, classes: int = 1000, width: int = 64, small_stem: bool = False) -> nn.Module:
    """ResNet-18; `[batch, in_channels, any, any]` to `[batch, classes]`.

    With `small_stem` the stem is one 3x3 convolution of stride 1, for images of some 32 pixels; otherwise it is a
    7x7 convolution of stride 2 and a pool, for images of some 224 pixels.

    Source: He et al., "Deep Residual Learning" (arXiv:1512.03385), table 1.
    """
    stem = _small_stem(in_channels, width) if small_stem else _large_stem(in_channels, width)
    network = ResNet(stem, width, (2, 2, 2, 2), classes)
    side = 32 if small_stem else 224
    network.input_shape = (in_channels, side, side)
    return network


def _small_stem(in_channels: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _large_stem(in_channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    )
