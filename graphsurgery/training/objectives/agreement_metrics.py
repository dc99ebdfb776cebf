"""Metrics of two networks' outputs; apart from `agreement`, since torchmetrics takes a second to import."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric


class SameClass(MeanMetric):
    """The share of examples for which the largest of both outputs `[batch, classes]` is the same."""

    def update(self, output: Tensor, target: Tensor) -> None:  # type: ignore[override]
        super().update((output.argmax(1) == target.argmax(1)).float())


class Deviation(Metric):
    """The root of the mean squared difference, over the same of the target around the mean of each output."""

    squares: Tensor
    total: Tensor
    total_squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("squares", "total", "total_squares", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        # Two large sums are subtracted in the end: single precision would leave nothing of the spread around a mean.
        wide = torch.float32 if target.device.type == "mps" else torch.float64
        output, target = output.detach().to(wide), target.detach().to(wide)
        self.squares = self.squares + (output - target).square().sum()
        if self.total.dim() == 0:
            self.total = self.total + torch.zeros_like(target[0])
        self.total = self.total + target.sum(0)
        self.total_squares = self.total_squares + target.square().sum()
        self.count += len(target)

    def compute(self) -> Tensor:
        around = self.total_squares - self.total.square().sum() / self.count
        return (self.squares / around.clamp_min(1e-30)).sqrt()
