"""Examples: where they come from, how they are cut into batches, and how statistics are taken from them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphsurgery.training.data.dataset import Data, split
    from graphsurgery.training.data.loading import check_fits, load_data

__all__ = [
    "Data",
    "check_fits",
    "load_data",
    "split",
]


def __getattr__(name: str) -> Any:
    """Looked up when it is asked for: the table of data is read before torch is imported."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    home = "loading" if name in ("check_fits", "load_data") else "dataset"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
