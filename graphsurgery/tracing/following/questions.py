"""Questions that Python answers without asking: `isinstance(x, Tensor)`, `type(x)`, `int(n)`, and cached results.

During a trace they are answered of the value that a proxy stands for, wherever a model or a library that it uses asks.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import sys
import weakref
from collections.abc import Collection, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graphsurgery.tracing.following.proxies import converted, is_callable, is_instance, length_of, type_of

_MISSING: Any = object()
_CACHED = functools._lru_cache_wrapper
_OTHERS = sys.stdlib_module_names | {
    "torch", "torchgen", "functorch", "graphsurgery", "numpy", "scipy", "sympy", "mpmath", "sklearn", "pandas",
    "matplotlib", "PIL", "networkx", "onnx", "onnxruntime", "onnxscript", "google", "rich", "pygments", "cyclopts",
    "pytest", "_pytest", "pluggy", "hypothesis", "xdist", "execnet", "iniconfig", "sortedcontainers",
    "triton", "cuda", "narwhals", "joblib", "threadpoolctl", "cloudpickle", "yaml", "dateutil", "packaging", "tqdm",
    "pyparsing", "psutil", "mpl_toolkits", "fontTools", "kiwisolver", "cycler", "safetensors", "typing_extensions",
    "anyio", "platformdirs", "accelerate", "onnx_ir", "onnx_graphsurgeon", "jinja2", "markupsafe", "attr", "attrs",
    "lightning_utilities", "ml_dtypes", "torchmetrics", "charset_normalizer", "colorama",
}  # fmt: skip
"""Packages that are no part of models: torch's code asks about proxies as proxies, the others never meet one."""
_DATA = ("torchvision.datasets", "torchvision.io")
"""Parts of the others that only read files."""
_FOREIGN: set[str] = set()
"""Names of their modules that were met. Of several thousand modules nearly all are theirs, in every trace."""
_NAMES: tuple[tuple[int, str], set[str]] = (0, ""), set()
"""How many modules there were in the last trace, the last of them, and the names of those that are not foreign."""
_CHANGES: weakref.WeakKeyDictionary[ModuleType, tuple[int, dict[str, Any], dict[str, Any]]]
_CHANGES = weakref.WeakKeyDictionary()
"""How many names a module had when it was looked at, and what of them changes: as it was (or missing), and answers."""


class _AnswersTruly(type):
    """The class of `TypeOf`: `type` itself to `isinstance` and `issubclass`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return type_of(args[0]) if len(args) == 1 and not kwargs else type(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, type)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, type)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is type

    def __hash__(cls) -> int:
        return hash(type)


class TypeOf(metaclass=_AnswersTruly):
    """Stands for `type`: of a proxy it gives the type of its value."""


_ANSWERS = {"isinstance": is_instance, "type": TypeOf, "callable": is_callable}
_IS_TENSOR = torch.is_tensor
"""As files have it that import it by its name; `Recorder.patched` replaces it in torch."""


def is_tensor(candidate: Any) -> bool:
    """As `torch.is_tensor`, of what a proxy stands for."""
    return is_instance(candidate, Tensor)


class _Converts(type):
    """The class of what stands for `int` and `float`: those types to `isinstance`; calls follow sizes."""

    kind: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.kind(*args, **kwargs) if kwargs else converted(cls.kind, *args)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.kind)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.kind)


class IntOf(metaclass=_Converts):
    """Stands for `int`: of a size it gives a size."""

    kind = int


class FloatOf(metaclass=_Converts):
    """Stands for `float`: of a size it gives a number that follows it."""

    kind = float


_CONVERSIONS = {"int": IntOf, "float": FloatOf, "len": length_of}


def may_stand_in(module: str, name: str) -> bool:
    """Whether a file of the model uses `int`, `float` or `len` only in ways in which something else may stand for it.

    That is to call it, and to ask with `isinstance`: as a dtype only the type itself will do.
    """
    home = sys.modules.get(module)
    if home is None or name in vars(home) or module.partition(".")[0] in _OTHERS:
        return False
    try:
        tree = ast.parse(inspect.getsource(home))
    except (OSError, TypeError, SyntaxError):
        return False
    harmless: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            harmless.add(id(node.func))
            if isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass", "map"):
                harmless |= {
                    id(below) for given in node.args for below in ast.walk(given) if isinstance(below, ast.Name)
                }
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(hint, ast.AST):
                harmless |= {id(below) for below in ast.walk(hint)}
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    return all(id(node) in harmless for node in uses)


@contextlib.contextmanager
def truthful(symbolic: Collection[tuple[str, str]] = ()) -> Iterator[None]:
    """Answer `isinstance`, `type` and `callable` of proxies by their values, and call cached functions anew.

    A cache would keep proxies beyond the trace, and give those of another one.

    Args:
        symbolic: modules, and `int`, `float` or `len`: where these give what is computed from a size, or a size.
    """
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in _modules():
        before, answers = _changes(module)
        changed.append((vars(module), before))
        vars(module).update(answers)
    for home, name in symbolic:
        changed.append((vars(sys.modules[home]), {name: _MISSING}))
        vars(sys.modules[home])[name] = _CONVERSIONS[name]
    try:
        yield
    finally:
        for namespace, before in changed:
            for name, value in before.items():
                if value is _MISSING:
                    del namespace[name]
                else:
                    namespace[name] = value


def _changes(module: ModuleType) -> tuple[dict[str, Any], dict[str, Any]]:
    """What changes in a module, as it is and as it answers: of nearly all that is three names, which they lack.

    One of as many names as when it was looked at, of which those that change are as they were, is not looked at again.
    """
    namespace = vars(module)
    count, before, answers = _CHANGES.get(module, (-1, {}, {}))
    if count == len(namespace) and (answers is _ANSWERS or _still_has(namespace, before)):
        return before, answers
    answers = {name: answer for name, answer in _ANSWERS.items() if name not in namespace}
    for name, value in namespace.items():
        if type(value) is _CACHED:
            answers[name] = value.__wrapped__
        elif value is _IS_TENSOR:
            answers[name] = is_tensor
    if answers == _ANSWERS:
        answers = _ANSWERS
    before = {name: namespace.get(name, _MISSING) for name in answers}
    _CHANGES[module] = len(namespace), before, answers
    return before, answers


def _still_has(namespace: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return all(namespace.get(name, _MISSING) is value for name, value in before.items())


def _modules() -> list[ModuleType]:
    """All files that may be part of a model."""
    global _NAMES
    # A file that is imported comes last.
    now = (len(sys.modules), next(reversed(sys.modules)))
    if now != _NAMES[0] or not sys.modules.keys() >= _NAMES[1]:
        for name in sys.modules.keys() - _FOREIGN:
            if name != "__main__" and (name.partition(".")[0] in _OTHERS or name.startswith(_DATA)):
                _FOREIGN.add(name)
        _NAMES = now, sys.modules.keys() - _FOREIGN
    found = [sys.modules[name] for name in _NAMES[1]]
    return [module for module in found if type(module) is ModuleType]
