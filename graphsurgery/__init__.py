"""Surgery on trained neural networks: trace, retype, rewrite, export, prove.

Importing this package is cheap; torch is imported when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphsurgery.errors import CheckFailedError, CheckpointError, SpecError, SurgeryError, TraceError, UnsupportedError

if TYPE_CHECKING:
    from graphsurgery.checkpoint.files import load, save
    from graphsurgery.graph import ModelGraph, Space
    from graphsurgery.onnx.exporting.checking import check_onnx
    from graphsurgery.onnx.exporting.exporter import export_onnx
    from graphsurgery.tracing.trace import trace
    from graphsurgery.training.loop.optimizer_state import remap_optimizer

__version__ = "0.1.0"

__all__ = [
    "CheckFailedError",
    "CheckpointError",
    "ModelGraph",
    "Space",
    "SpecError",
    "SurgeryError",
    "TraceError",
    "UnsupportedError",
    "check_onnx",
    "export_onnx",
    "load",
    "remap_optimizer",
    "save",
    "trace",
]

_HOMES = {
    "ModelGraph": "graph",
    "Space": "graph",
    "check_onnx": "onnx.exporting.checking",
    "export_onnx": "onnx.exporting.exporter",
    "load": "checkpoint.files",
    "remap_optimizer": "training.loop.optimizer_state",
    "save": "checkpoint.files",
    "trace": "tracing.trace",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
