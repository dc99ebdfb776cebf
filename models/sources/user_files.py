"""Python files of the user: which functions they have, running them, and the line at which one went wrong."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from graphsurgery.errors import SpecError, near_names, one_line

_PREFIX = "_graphsurgery_spec_"
_module_numbers = itertools.count()
_IN_TEXT = re.compile(r'File "([^"\n]+)", line (\d+), in (\S+)')
"""A frame in the text of an error that another process has sent."""


def require_function(spec: str) -> None:
    """Refuse a Python file without the function in it that is meant.

    Raises:
        SpecError: it names the functions that the file has; or there is no such file.
    """
    name = spec.partition("?")[0].removesuffix(":")
    if not name.endswith(".py"):
        return
    _require(Path(name))
    found = [f"{name}:{function}" for function in functions_in(Path(name))]
    advice = f"give {' or '.join(found[:3])}" if found else f"it defines none; give {name}:FUNCTION when it does"
    raise SpecError(f"{spec}: names a Python file, and which function of it is missing; {advice}")


def require_file_of(name: str) -> bool:
    """Whether a spec names a function of a Python file, which is there.

    Raises:
        SpecError: it is not.
    """
    from graphsurgery.models.spec_text import is_function_spec

    if not is_function_spec(name):
        return False
    _require(Path(name.rpartition(":")[0]))
    return True


def _require(path: Path) -> None:
    if not path.is_file():
        raise SpecError(f"{path}: no such file; expected a Python file")


def functions_in(path: Path) -> list[str]:
    """The public functions and classes that a Python file defines at its top, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = {kind: [n.name for n in tree.body if isinstance(n, kind) and n.name[0] != "_"] for kind in kinds}
    return [name for kind in kinds for name in names[kind]]


def load_function(name: str) -> tuple[Callable[..., Any], ModuleType]:
    """Execute the Python file of `path/file.py:function`; the function and the file's module.

    Its folder is looked up for what it imports, after everything else.

    Raises:
        SpecError: there is no such file, it fails when executed, or has no such function.
    """
    require_function(name)
    path_text, _, function = name.rpartition(":")
    path = Path(path_text)
    _require(path)
    module = _execute(path)
    found = getattr(module, function, None)
    if not callable(found):
        raise SpecError(f"{name}: {path_text} has no function {function!r}; {near_names(function, functions_in(path))}")
    return found, module


def _execute(path: Path) -> ModuleType:
    # A number in the name keeps two files of one name apart, and lets an edited file be loaded again.
    module_name = f"{_PREFIX}{path.stem}_{next(_module_numbers)}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise SpecError(f"{path}: cannot be loaded as Python; give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name.
    sys.modules[module_name] = module
    folder = os.path.abspath(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        del sys.modules[module_name]
        raise SpecError(
            f"{path}: ends the program when executed; put what shall run only as a program under "
            "if __name__ == '__main__':"
        ) from error
    except Exception as error:
        del sys.modules[module_name]
        raise SpecError(f"{path}: fails when executed: {told(error)}; repair the file") from error
    return module


def told(error: BaseException) -> str:
    """What went wrong, with file, line and function where a file of the user raised it: `nets.py:9 in small: …`."""
    words = f"{type(error).__name__}: {one_line(error)}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno}: {type(error).__name__}: {error.msg}"
    place = place_of(error)
    return words if place is None else f"{place}: {words}"


def _is_mode(frame: FrameType) -> bool:
    """Whether torch has called a mode, as it does for each function while the mode lasts."""
    if frame.f_code.co_name != "__torch_function__":
        return False
    from torch.overrides import TorchFunctionMode

    return isinstance(frame.f_locals.get("self"), TorchFunctionMode)


def place_of(error: BaseException) -> str | None:
    """File, line and function where code of the user raised an error, or called what did.

    None where no such code is on the way, or where the package went wrong after it; where a mode of torch
    stands between that code and torch, it was that code.
    """
    found, between = None, False
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", ""))
        between = between or _is_mode(frame)
        if name.partition(".")[0] == "graphsurgery":
            found = found if between else None
        elif name.startswith(_PREFIX) or _beside(frame.f_code.co_filename):
            found, between = f"{_shown(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name}", False
    if found is None:  # another process has raised it, of which there is the text
        for path, line, function in _IN_TEXT.findall(str(error)):
            if os.path.realpath(path) in _user_files() or _beside(path):
                found = f"{_shown(path)}:{line} in {function}"
    return found


def _user_files() -> dict[str, str]:
    """The files of the user that were executed, and their folders."""
    modules = (module for name, module in list(sys.modules.items()) if name.startswith(_PREFIX))
    files = (os.path.realpath(str(module.__file__)) for module in modules)
    return {file: os.path.dirname(file) for file in files}


def _beside(path: str) -> bool:
    """Whether a file lies with one of the user that was executed, and so is his too."""
    real = os.path.realpath(path)
    return "site-packages" not in real and os.path.dirname(real) in _user_files().values()


def _shown(path: str) -> str:
    """A path as the user would write it: from the current folder where it lies in it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
