"""The papers' small networks without residual connections: MLPs, LeNets, Conv-2/4/6, and a demo CNN."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from graphsurgery.errors import SpecError


class MLP(nn.Module):
    """Two linear layers with a ReLU between them; flattens `[batch, ...]` of `inputs` values to `[batch, outputs]`."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.input_shape: tuple[int, ...] = (inputs,)
        self.hidden = nn.Linear(inputs, hidden)
        self.relu = nn.ReLU()
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.hidden(x.flatten(1))))


def mlp(inputs: int = 1, hidden: int = 100, outputs: int = 1) -> nn.Module:
    """An MLP with one hidden layer, that of the sine task by default; `[batch, inputs]` to `[batch, outputs]`.

    Source: Pašen & Boža, "Merging of neural networks" (arXiv:2204.09973), sine task.
    """
    return MLP(inputs, hidden, outputs)


class LeNetFC(nn.Module):
    """Three linear layers; flattens `[batch, ...]` of `in_features` values to `[batch, classes]`."""

    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__()
        side = math.isqrt(in_features)
        self.input_shape: tuple[int, ...] = (1, side, side) if side * side == in_features else (in_features,)
        self.fc1 = nn.Linear(in_features, 300)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(300, 100)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        return self.fc3(self.relu2(self.fc2(self.relu1(self.fc1(x)))))


def lenet_300_100(in_features: int = 784, classes: int = 10) -> nn.Module:
    """LeNet-300-100; flattens `[batch, ...]` of `in_features` values to `[batch, classes]`.

    Source: Frankle & Carbin, "The Lottery Ticket Hypothesis" (arXiv:1803.03635), figure 2 (266K weights).
    """
    return _glorot(LeNetFC(in_features, classes))


class LeNet5(nn.Module):
    """Two padded or plain 5x5 convolutions with pools, then 120-84-classes."""

    def __init__(self, in_channels: int, classes: int, image_size: int) -> None:
        super().__init__()
        side = (image_size // 2 - 4) // 2
        if side < 1:
            raise SpecError(
                f"lenet5: image_size {image_size} leaves nothing after the second pool, expected 12 or more; "
                "use cnn, conv2 or resnet20 for smaller images"
            )
        self.input_shape: tuple[int, ...] = (in_channels, image_size, image_size)
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(120, 84)
        self.relu4 = nn.ReLU()
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = torch.flatten(x, 1)
        return self.fc3(self.relu4(self.fc2(self.relu3(self.fc1(x)))))


def lenet5(in_channels: int = 1, classes: int = 10, image_size: int = 28) -> nn.Module:
    """LeNet-5 with ReLU and max pooling; `[batch, in_channels, image_size, image_size]` to `[batch, classes]`.

    Raises:
        SpecError: `image_size` is below 12 pixels.

    Source: LeCun et al., "Gradient-based learning applied to document recognition" (1998), padded to take 28x28.
    """
    return LeNet5(in_channels, classes, image_size)


class PairedConvs(nn.Module):
    """Pairs of 3x3 convolutions, each pair followed by a 2x2 pool, then 256-256-classes."""

    def __init__(self, name: str, widths: tuple[int, ...], in_channels: int, classes: int, image_size: int) -> None:
        super().__init__()
        side = image_size >> len(widths)
        if side < 1:
            raise SpecError(
                f"{name}: image_size {image_size} leaves nothing after {len(widths)} pools, "
                f"expected {1 << len(widths)} or more; use a network with fewer pools"
            )
        self.input_shape: tuple[int, ...] = (in_channels, image_size, image_size)
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Linear(channels * side * side, 256)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(256, 256)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.features(x), 1)
        return self.fc3(self.relu2(self.fc2(self.relu1(self.fc1(x)))))


def conv2(in_channels: int = 3, classes: int = 10, image_size: int = 32) -> nn.Module:
    """Conv-2: 64-64-pool, then 256-256-classes; `[batch, in_channels, image_size, image_size]` to `[batch, classes]`.

    Raises:
        SpecError: `image_size` is below 2 pixels.

    Source: Frankle & Carbin, "The Lottery Ticket Hypothesis" (arXiv:1803.03635), figure 2 (4.3M weights).
    """
    return _glorot(PairedConvs("conv2", (64,), in_channels, classes, image_size))


def conv4(in_channels: int = 3, classes: int = 10, image_size: int = 32) -> nn.Module:
    """Conv-4: Conv-2 with a second pair of 128 channels (2.4M weights); at least 4 pixels. See `conv2`."""
    return _glorot(PairedConvs("conv4", (64, 128), in_channels, classes, image_size))


def conv6(in_channels: int = 3, classes: int = 10, image_size: int = 32) -> nn.Module:
    """Conv-6: Conv-4 with a third pair of 256 channels; at least 8 pixels. See `conv2`.

    These layer sizes give 2.26M weights, 1.14M of them in convolutions; the paper's table says 1.7M and 1.1M.
    """
    return _glorot(PairedConvs("conv6", (64, 128, 256), in_channels, classes, image_size))


class CNN(nn.Module):
    """Three conv-BN-ReLU layers of width, 2 width and 4 width channels, global average pool, linear."""

    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.input_shape: tuple[int, ...] = (in_channels, 28, 28)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(4 * width)
        self.relu3 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm1(self.conv1(x)))
        x = self.relu2(self.norm2(self.conv2(x)))
        x = self.relu3(self.norm3(self.conv3(x)))
        return self.head(torch.flatten(self.pool(x), 1))


def cnn(in_channels: int = 1, classes: int = 10, width: int = 8) -> nn.Module:
    """A small demo network, 8-16-32 channels by default; `[batch, in_channels, any, any]` to `[batch, classes]`."""
    return CNN(in_channels, classes, width)


def _glorot(module: nn.Module) -> nn.Module:
    """Gaussian Glorot weights and zero biases, as the lottery-ticket papers start."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
