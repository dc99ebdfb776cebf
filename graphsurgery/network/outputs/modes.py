"""Modes of modules, for a while: in training or evaluation, and each part as it was in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def kept_modes(module: nn.Module) -> Iterator[None]:
    """After the block each submodule has its own mode back."""
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module is in evaluation inside the block; after it each submodule has its own mode back."""
    with kept_modes(module):
        module.eval()
        yield
