"""TensorBoard as far as Accelerate uses it, so that tests need no such package: a writer that keeps what it is told."""

from __future__ import annotations

import sys
from collections import defaultdict
from types import ModuleType
from typing import Any, ClassVar

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType

from graphsurgery.training.loop import plan


class SummaryWriter:
    """What was told of one training; the last one of each folder is in `made`."""

    made: ClassVar[dict[str, SummaryWriter]] = {}

    def __init__(self, folder: str) -> None:
        self.scalars: dict[str, dict[int, float]] = defaultdict(dict)
        self.config: dict[str, Any] = {}
        self.closed = False
        self.made[folder] = self

    def add_hparams(self, values: dict[str, Any], metric_dict: dict[str, Any]) -> None:
        assert not metric_dict
        self.config = values

    def add_scalar(self, name: str, value: float, global_step: int) -> None:
        self.scalars[name][global_step] = value

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it in the place of TensorBoard, whether or not that is there."""
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("torch.utils.tensorboard", module, raising=False)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    monkeypatch.setitem(plan.TRACKERS, "tensorboard", ("torch",))
    SummaryWriter.made.clear()
