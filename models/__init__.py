"""Networks by name: model specs, and the small networks of the papers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphsurgery.models.sources.names import available
    from graphsurgery.models.specs import build, input_shape

__all__ = ["available", "build", "input_shape"]


def __getattr__(name: str) -> Any:
    """Looked up when it is asked for: a command reads specs before it imports torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    home = "sources.names" if name == "available" else "specs"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
