"""Random networks of convolutions, linears, norms, sums, concats, splits, reshapes and groups, for property tests."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn


class RandomNetwork(nn.Module):
    """A chain of random steps on `[batch, channels, 4, 4]`, then a flatten and a linear layer."""

    def __init__(self, seed: int, steps: int = 5) -> None:
        super().__init__()
        self.plan: list[tuple[str, int]] = []
        self.layers = nn.ModuleList()
        choose = random.Random(seed)
        channels = choose.choice([4, 8, 12])
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        for _ in range(steps):
            kind = choose.choice(list(STEPS))
            layers, produced, detail = STEPS[kind](channels, choose)
            if layers is None:
                continue
            self.plan.append((kind, detail))
            self.layers.append(nn.ModuleList(layers))
            channels = produced
        self.head = nn.Linear(channels * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for (kind, detail), layers in zip(self.plan, self.layers, strict=True):
            x = FORWARD[kind](x, layers, detail)
        return self.head(torch.flatten(torch.relu(x), 1))


def _conv(channels, choose):
    new = choose.choice([4, 6, 8, 12])
    return [nn.Conv2d(channels, new, 3, padding=1, bias=choose.random() < 0.5), nn.BatchNorm2d(new)], new, 0


def _grouped(channels, choose):
    groups = choose.choice([g for g in (2, 4, channels) if channels % g == 0])
    new = channels * choose.choice([1, 2])
    return [nn.Conv2d(channels, new, 3, padding=1, groups=groups)], new, 0


def _residual(channels, choose):
    inner = choose.choice([3, 5, 8])
    return [nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner), nn.Conv2d(inner, channels, 1)], channels, 0


def _branches(channels, choose):
    a, b = choose.choice([2, 4]), choose.choice([4, 6])
    return [nn.Conv2d(channels, a, 1), nn.Conv2d(channels, b, 3, padding=1)], a + b, 0


def _dense(channels, choose):
    growth = choose.choice([2, 4])
    return [nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 1)], channels + growth, 0


def _split(channels, _):
    if channels % 2:
        return None, channels, 0
    half = channels // 2
    return [nn.Conv2d(half, half, 1)], channels, half


def _excite(channels, choose):
    squeezed = choose.choice([2, 3])
    return [nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)], channels, 0


def _reshape(channels, _):
    if channels % 4:
        return None, channels, 0
    return [], channels, 4


STEPS = {
    "conv": _conv, "grouped": _grouped, "residual": _residual, "branches": _branches, "dense": _dense,
    "split": _split, "excite": _excite, "reshape": _reshape,
}  # fmt: skip
FORWARD = {
    "conv": lambda x, layers, _: torch.relu(layers[1](layers[0](x))),
    "grouped": lambda x, layers, _: layers[0](x),
    "residual": lambda x, layers, _: torch.relu(x + layers[2](torch.relu(layers[1](layers[0](x))))),
    "branches": lambda x, layers, _: torch.cat([layers[0](x), torch.tanh(layers[1](x))], 1),
    "dense": lambda x, layers, _: torch.cat([x, layers[1](torch.relu(layers[0](x)))], 1),
    "split": lambda x, layers, half: torch.cat([layers[0](x[:, :half]), x.split(half, 1)[1]], 1),
    "excite": lambda x, layers, _: x * torch.sigmoid(layers[1](torch.relu(layers[0](x.mean((2, 3), keepdim=True))))),
    "reshape": lambda x, _, groups: x.view(x.shape[0], groups, -1, 4, 4).flatten(1, 2),
}
