"""The text of model and data specs: `name?option=value&option=value`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from graphsurgery.errors import SpecError

Value = int | float | bool | str | None

_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}


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
