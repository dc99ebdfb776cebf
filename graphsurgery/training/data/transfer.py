"""The examples that a student sees with its teachers' answers: labelled or not, augmented or not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from graphsurgery.errors import SurgeryError
from graphsurgery.training.data.batches import SeededExamples, mixed_seed
from graphsurgery.training.data.dataset import no_label

SHIFT, NOISE = 2, 0.1


class Unlabelled(Dataset[Any]):
    """The inputs of a data set, each with the label that stands for none."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, label = self.dataset[index][:2]
        return torch.as_tensor(x), no_label(torch.as_tensor(label))

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


class Answered(Dataset[Any]):
    """Examples `(x, label)` with what the teachers say about each: `(x, label, logits)`.

    Of examples that are augmented these are the ones that the teachers saw, in every epoch.
    """

    def __init__(self, dataset: Dataset[Any], logits: Tensor) -> None:
        self.dataset, self.logits = SeededExamples(dataset), logits

    def __getitem__(self, index: int) -> tuple[Any, Any, Tensor]:
        x, label = self.dataset[index][:2]
        return x, label, self.logits[index]

    def __len__(self) -> int:
        return len(self.logits)


def answered(dataset: Dataset[Any], logits: Tensor) -> Dataset[Any]:
    """Examples with their teachers' answers; of tensors in memory a TensorDataset."""
    if type(dataset) is TensorDataset:
        return TensorDataset(dataset.tensors[0], dataset.tensors[1], logits)
    return Answered(dataset, logits)


def unlabelled(dataset: Dataset[Any]) -> Dataset[Any]:
    """Examples without their labels."""
    if type(dataset) is TensorDataset:
        x, labels = dataset.tensors[:2]
        return TensorDataset(x, no_label(labels))
    return Unlabelled(dataset)


def augmented(dataset: Dataset[Any], copies: int, seed: int = 0) -> Dataset[Any]:
    """Examples in memory, and copies of them that are shifted and noisy, which only teachers can label.

    Args:
        dataset: tensors in memory; images `[channel, height, width]` are shifted by up to two pixels.
        copies: how many of each example; each has its own shift, and noise of a tenth of the inputs' deviation.
        seed: draws them.

    Raises:
        SurgeryError: the examples are not in memory, or `copies` is negative.
    """
    if copies < 0:
        raise SurgeryError(f"transfer: {copies} copies, expected 0 or more")
    if copies == 0:
        return dataset
    if type(dataset) is not TensorDataset:
        raise SurgeryError("transfer: only data in memory can be augmented here; give a data set that augments itself")
    x, labels = dataset.tensors[:2]
    parts = [_altered(x, mixed_seed(seed, copy)) for copy in range(copies)]
    return TensorDataset(torch.cat([x, *parts]), torch.cat([labels, *[no_label(labels)] * copies]))


def _altered(x: Tensor, seed: int) -> Tensor:
    """Shifted and noisy examples."""
    generator = torch.Generator().manual_seed(seed)
    noisy = x + NOISE * x.std() * torch.randn(x.shape, generator=generator)
    if x.dim() != 4:
        return noisy
    shifts = torch.randint(-SHIFT, SHIFT + 1, (len(x), 2), generator=generator)
    padded = F.pad(noisy, [SHIFT] * 4, value=float(x.min()))
    height, width = x.shape[2:]
    result = torch.empty_like(noisy)
    for down, right in torch.cartesian_prod(torch.arange(-SHIFT, SHIFT + 1), torch.arange(-SHIFT, SHIFT + 1)).tolist():
        chosen = (shifts == torch.tensor([down, right])).all(1)
        top, left = SHIFT + down, SHIFT + right
        result[chosen] = padded[chosen, :, top : top + height, left : left + width]
    return result
