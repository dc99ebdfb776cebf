"""The text of model and data specs: `name?option=value&option=value`, and near names for a typing slip."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from graphsurgery.errors import SpecError, near_names

Value = int | float | bool | str | None

_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}
_module_numbers = itertools.count()


@dataclass(frozen=True)
class Spec:
    """A parsed spec: the name before the `?`, and the options after it."""

    name: str
    options: dict[str, Value] = field(default_factory=dict)


def parse_spec(text: str) -> Spec:
    """Split `name?option=value&option=value`; values become int, float, bool, None or stay text.

    Raises:
        SpecError: the name is empty, an option has no `=`, or an option is given twice.
    """
    name, _, query = text.partition("?")
    if not name:
        raise SpecError(f"spec {text!r}: has no name; write NAME or NAME?option=value")
    options: dict[str, Value] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not all(name.isidentifier() for name in key.split(".")):
            raise SpecError(f"spec {text!r}: {part!r} is not an option; write option=value, joined by &")
        if key in options:
            raise SpecError(f"spec {text!r}: option {key} is given twice; give it once")
        options[key] = parse_value(value)
    return Spec(name, options)


def parse_value(text: str) -> Value:
    """The int, float, bool or None that `text` spells, else `text` itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def is_function_spec(name: str) -> bool:
    """Whether `name` has the form `path/file.py:function`."""
    return re.search(r"\.py:[^/\\]*$", name) is not None


def with_option(spec: str, key: str, value: str) -> str:
    """The spec with an option, in the place of the one of this name that it may have."""
    name, _, options = spec.partition("?")
    others = [part for part in options.split("&") if part and part.partition("=")[0] != key]
    return f"{name}?{'&'.join([*others, f'{key}={value}'])}"


def anchored(spec: str) -> str:
    """The same spec where it names a file or folder by a path from the current folder: by the whole path.

    `nets.py:small?width=3` becomes `/where/nets.py:small?width=3` and `imagefolder:DIR` `imagefolder:/where/DIR`, so
    that what is stored is found again from another folder; other specs stay as they are.
    """
    name, query, options = spec.partition("?")
    if is_function_spec(name):
        path, _, function = name.rpartition(":")
        return f"{os.path.abspath(path)}:{function}{query}{options}"
    source, colon, folder = name.partition(":")
    if not (folder and Path(folder).exists()):
        return spec
    return f"{source}{colon}{os.path.abspath(folder)}{query}{options}"


def load_function(name: str) -> tuple[Callable[..., Any], ModuleType]:
    """Execute the Python file of `path/file.py:function`; the function and the file's module.

    Raises:
        SpecError: the file is missing or fails when executed, or has no such function.
    """
    path_text, _, function = name.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise SpecError(f"{name}: there is no file {path_text}; give the path of a Python file")
    module = _execute(path)
    found = getattr(module, function, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SpecError(f"{name}: {path_text} has no function {function!r}; {near_names(function, functions)}")
    return found, module


def _execute(path: Path) -> ModuleType:
    # A number in the name keeps two files of one name apart, and lets an edited file be loaded again.
    module_name = f"_graphsurgery_spec_{path.stem}_{next(_module_numbers)}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise SpecError(f"{path}: cannot be loaded as Python; give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise SpecError(f"{path}: fails when executed ({type(error).__name__}: {error}); repair the file") from error
    return module
