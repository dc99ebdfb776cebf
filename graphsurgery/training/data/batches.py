"""Which examples each step, each process and each forward pass sees."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from graphsurgery.errors import SurgeryError
from graphsurgery.network.outputs.randomness import seeded

# In-memory data sets up to this many bytes are kept on the training device.
_RESIDENT_BYTES = 2 << 30


class Examples:
    """A data set as batches of chosen indices on one device; classes are in 64 bits, as losses take them.

    Tensors in memory (`TensorDataset`) are indexed directly; any other map-style data set goes through a DataLoader,
    where each example's random augmentation is drawn from (seed, index) and so does not depend on workers.
    """

    def __init__(self, dataset: Dataset[Any], device: torch.device, *, workers: int = 0) -> None:
        self.dataset = dataset
        self.device = device
        self.workers = workers
        self.size = len(dataset)  # type: ignore[arg-type]
        if self.size == 0:
            raise SurgeryError("data set: has no examples; give at least one")
        self.tensors: tuple[Tensor, ...] | None = None
        if type(dataset) is TensorDataset:
            self.tensors = tuple(_with_classes(dataset.tensors))
            if sum(t.nbytes for t in self.tensors) <= _RESIDENT_BYTES:
                self.tensors = tuple(t.to(device) for t in self.tensors)

    def __len__(self) -> int:
        return self.size

    def batches(self, indices: Sequence[Tensor], seed: int = 0) -> Iterator[list[Tensor]]:
        """The examples of each index vector in turn, as tensors `[batch, ...]` on the device."""
        if self.tensors is not None:
            for chosen in indices:
                yield [t[chosen.to(t.device)].to(self.device) for t in self.tensors]
            return
        lists = [chosen.tolist() for chosen in indices]
        loader = DataLoader(
            SeededExamples(self.dataset, seed),
            batch_sampler=lists,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the global random state
        )
        batches = iter(loader)
        try:
            for batch in batches:
                yield [t.to(self.device, non_blocking=True) for t in _with_classes(batch)]
        finally:
            _end_workers(batches)


def _with_classes(example: Sequence[Tensor]) -> list[Tensor]:
    """Inputs, labels and what else there is; labels that are whole numbers of any kind are classes."""
    return [t.long() if place == 1 and not t.is_floating_point() else t for place, t in enumerate(example)]


def epoch_plan(
    size: int, batch_size: int, *, processes: int, accumulation: int, seed: int, epoch: int
) -> list[list[list[Tensor]]]:
    """The index vectors of an epoch: `plan[step][accumulation step][process]`.

    The order is a function of seed and epoch alone, and a step sees the same examples however they are shared. All
    examples are used, in as few batches as `batch_size` allows, of nearly equal size: there is no small last batch,
    which BatchNorm could not normalise.

    Raises:
        SurgeryError: a batch has fewer examples than shares.
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    order = torch.randperm(size, generator=generator)
    shares = processes * accumulation
    batches = evenly(order, batch_size)
    if len(batches[-1]) < shares:
        raise SurgeryError(
            f"batch of {len(batches[-1])} examples: cannot be shared by {processes} processes and {accumulation} "
            "accumulation steps; give a larger batch_size or fewer of them"
        )
    plan = []
    for batch in batches:
        parts = list(torch.tensor_split(batch, shares))
        plan.append([parts[start : start + processes] for start in range(0, shares, processes)])
    return plan


def evenly(order: Tensor, batch_size: int) -> list[Tensor]:
    """All indices, in as few batches as `batch_size` allows, of nearly equal size.

    So what is a mean over batches is one over examples, and none is left that BatchNorm could not normalise.
    """
    return list(torch.tensor_split(order, max(1, math.ceil(len(order) / batch_size))))


def in_order(size: int, batch_size: int, *, rank: int = 0, processes: int = 1) -> list[Tensor]:
    """Index vectors that go once through a data set, of which process `rank` gets every `processes`-th example."""
    return list(torch.arange(rank, size, processes).split(batch_size))


def grouped(items: Iterator[list[Tensor]], count: int) -> Iterator[list[list[Tensor]]]:
    """Lists of `count` items each."""
    while group := list(itertools.islice(items, count)):
        yield group


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers; near numbers give unrelated seeds."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = (mixed ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
        mixed = mixed * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 29
    return mixed >> 1


def _end_workers(batches: Any) -> None:
    """An error of a worker holds the loader in its traceback; as garbage, later, it would wait for them 5 seconds."""
    end = getattr(batches, "_shutdown_workers", None)
    if end is not None:
        end()


class SeededExamples(Dataset[Any]):
    """A data set whose random transforms (torch's) are a function of seed and index.

    With the usual seed its examples are those that `Examples.batches` gives without another: what was computed of them
    is of these.
    """

    def __init__(self, dataset: Dataset[Any], seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, index: int) -> Any:
        with seeded(mixed_seed(self.seed, index)):
            return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]
