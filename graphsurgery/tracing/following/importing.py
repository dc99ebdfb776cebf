"""Files that are imported while a model is traced, by its forward or by torch, get everything as it is.

What a file takes by its name (`from torch import finfo`) it keeps beyond the trace.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def left_to_import(patches: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter what patches gives, and leave it for as long as a file is imported."""
    finder = _Finder(patches)
    finder.enter()
    try:
        yield
    finally:
        finder.leave()


class _Finder:
    """Stands before the finders of Python, and leaves finding to them."""

    def __init__(self, patches: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._patches = patches
        self._entered = contextlib.ExitStack()
        self._thread = threading.get_ident()

    def enter(self) -> None:
        self._entered.enter_context(self._patches())
        sys.meta_path.insert(0, self)

    def leave(self) -> None:
        sys.meta_path.remove(self)
        self._entered.close()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        found = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
        is_of_the_trace = threading.get_ident() == self._thread  # another thread must not end what is patched
        if found is not None and is_of_the_trace and hasattr(found.loader, "exec_module"):
            found.loader = _Leaving(found.loader, self)
        return found


class _Leaving(Loader):
    """Loads a file once, as its own loader does, with nothing patched."""

    def __init__(self, own: Any, finder: _Finder) -> None:
        self._own = own
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._own.create_module(spec) if hasattr(self._own, "create_module") else None
        return made

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        self._finder.leave()
        try:
            self._own.exec_module(module)
        finally:
            self._finder.enter()
