"""Random numbers that follow a seed, and leave those of the caller as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed inside the block; behind it the caller's random numbers on the CPU go on where they were."""
    with torch.random.fork_rng(devices=[]):
        seed_all(seed)
        yield


def seed_all(seed: int) -> None:
    """`torch.manual_seed`, which notes a whole call stack for every kind of device that has not been used yet.

    That takes a millisecond, as long as a small network runs. Where nothing has used a GPU, only the CPU is seeded.
    """
    kind = torch.accelerator.current_accelerator()
    if kind is None or (kind.type in ("cuda", "xpu") and not torch.get_device_module(kind).is_initialized()):
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
