"""Masks that are learned: parametrizations whose scores get the gradient that the mask would have got."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class BernoulliMask(nn.Module):
    """A weight times a mask that is drawn anew in every training step, with probability `sigmoid(scores)`.

    In evaluation the mask is 1 where the probability is above a half, unless `sampling` asks for draws there too. The
    scores start at 0.

    Args:
        weight: what is masked; it is not trained.
        rescaled: multiply by how many weights there are of each that lives (dynamic weight rescaling).
        through_factor: whether the gradient also goes through that factor; it adds one number to the gradients of all.

    Source: Zhou et al., "Deconstructing lottery tickets", arXiv:1905.01067, section 5; straight-through gradients:
    Bengio et al., arXiv:1308.3432.
    """

    def __init__(self, weight: Tensor, *, rescaled: bool = True, through_factor: bool = False) -> None:
        super().__init__()
        self.rescaled, self.through_factor, self.sampling = rescaled, through_factor, False
        self.scores = nn.Parameter(torch.zeros_like(weight.detach()))

    def forward(self, weight: Tensor) -> Tensor:
        probability = torch.sigmoid(self.scores)
        if self.training or self.sampling:
            mask = _passing(torch.bernoulli(probability.detach()), probability)
        else:
            mask = (probability > 0.5).to(weight)
        if not self.rescaled:
            return weight * mask
        living = mask.sum() if self.through_factor else mask.detach().sum()
        return weight * mask * (mask.numel() / living.clamp_min(1))

    def mask(self) -> Tensor:
        """Which weights live in evaluation, booleans."""
        return torch.sigmoid(self.scores.detach()) > 0.5


class TopKMask(nn.Module):
    """A weight times a mask of exactly the `count` largest scores by magnitude.

    Args:
        weight: what is masked; it is not trained.
        count: how many weights live.
        rescaled: multiply by how many weights there are of each that lives.

    Source: edge-popup of Ramanujan et al., "What's hidden in a randomly weighted neural network?", arXiv:1911.13299,
    section 3.
    """

    def __init__(self, weight: Tensor, count: int, *, rescaled: bool = True) -> None:
        super().__init__()
        self.count, self.rescaled, self.sampling = count, rescaled, False
        self.scores = nn.Parameter(torch.empty_like(weight.detach()))
        nn.init.kaiming_uniform_(self.scores, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        mask = _passing(self.mask().to(weight), self.scores.abs())
        return weight * mask * (mask.numel() / self.count if self.rescaled else 1.0)

    def mask(self) -> Tensor:
        """Which weights live, booleans."""
        size = self.scores.detach().abs().flatten()
        chosen = torch.zeros_like(size, dtype=torch.bool)
        chosen[size.topk(self.count, sorted=False).indices] = True
        return chosen.reshape(self.scores.shape)


def _passing(mask: Tensor, scores: Tensor) -> Tensor:
    """The mask as it is, to the last bit, whose gradient is that of the scores."""
    return mask + (scores - scores.detach())
