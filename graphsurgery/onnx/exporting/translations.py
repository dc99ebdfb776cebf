"""What torch's exporter knows of operators, kept from one file to the next."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

_MODULE, _TABLE, _MAKE = "torch.onnx._internal.exporter._registration", "ONNXRegistry", "from_torchlib"


@contextlib.contextmanager
def kept_translations() -> Iterator[None]:
    """Files that are exported meanwhile share one table of translations for each opset.

    The exporter makes a new one for every file, for which it reads and parses the source of some 500 functions: half a
    second, more than a small network takes. It writes into the table only what its caller brings, and we bring nothing.
    Where a version of torch has no such table, nothing is shared.
    """
    try:
        table = getattr(importlib.import_module(_MODULE), _TABLE)
        own = vars(table)[_MAKE]
    except (ImportError, AttributeError, KeyError):
        yield
        return
    setattr(table, _MAKE, staticmethod(_kept(getattr(table, _MAKE))))
    try:
        yield
    finally:
        setattr(table, _MAKE, own)


@cache
def _kept(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which makes a table once for each opset."""
    return cache(make)
