"""Random numbers that follow a seed, and leave those of the caller as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed inside the block; behind it the caller's random numbers on the CPU go on where they were."""
    with torch.random.fork_rng(devices=[]):
        seed_all(seed)
        yield


def seed_all(seed: int) -> None:
    """`torch.manual_seed`, which notes a whole call stack for every kind of device that has not been used yet.

    That takes a millisecond, as long as a small network runs. Where there is but the CPU, only that is seeded.
    """
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()
