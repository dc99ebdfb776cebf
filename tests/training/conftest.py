import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset


@pytest.fixture
def blobs():
    """Three classes of points [4], 100 examples."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 3
    centres = torch.randn(3, 4, generator=generator) * 2
    return TensorDataset(centres[labels] + torch.randn(100, 4, generator=generator), labels)


@pytest.fixture
def make_net():
    """A net with everything that has state: BatchNorm, dropout, weights and vectors."""

    def make():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))

    return make
