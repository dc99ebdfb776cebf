"""Questions that Python answers without asking: `isinstance(x, Tensor)`, `type(x)`, `callable(x)`, and cached results.

During a trace they are answered of the value that a proxy stands for, wherever a model or a library that it uses asks.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

from graphsurgery.tracing.following.proxies import is_callable, is_instance, type_of

_MISSING: Any = object()
_CACHED = functools._lru_cache_wrapper
_MODULE = type(sys)
_OTHERS = sys.stdlib_module_names | {
    "torch", "torchgen", "functorch", "graphsurgery", "numpy", "scipy", "sympy", "mpmath", "sklearn", "pandas",
    "matplotlib", "PIL", "networkx", "onnx", "onnxruntime", "onnxscript", "google", "rich", "pygments", "cyclopts",
    "pytest", "_pytest", "pluggy", "hypothesis", "xdist", "execnet", "iniconfig", "sortedcontainers",
    "triton", "cuda", "narwhals", "joblib", "threadpoolctl", "cloudpickle", "yaml", "dateutil", "packaging", "tqdm",
    "pyparsing", "psutil", "mpl_toolkits", "fontTools", "kiwisolver", "cycler", "safetensors", "typing_extensions",
}  # fmt: skip
"""Packages that are no part of models: torch's code asks about proxies as proxies, the others never meet one."""


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


@contextlib.contextmanager
def truthful() -> Iterator[None]:
    """Answer `isinstance`, `type` and `callable` of proxies by their values, and call cached functions anew.

    A cache would keep proxies beyond the trace, and give those of another one.
    """
    plain: list[dict[str, Any]] = []
    changed: list[tuple[dict[str, Any], str, Any]] = []
    for namespace in _namespaces():
        # There are a thousand namespaces: nearly all have neither a cached function nor a name like these.
        if _CACHED not in map(type, list(namespace.values())) and _ANSWERS.keys().isdisjoint(namespace):
            plain.append(namespace)
            namespace.update(_ANSWERS)
            continue
        cached = [name for name, value in list(namespace.items()) if type(value) is _CACHED]
        answers = {name: answer for name, answer in _ANSWERS.items() if name not in namespace}
        answers |= {name: namespace[name].__wrapped__ for name in cached}
        changed += [(namespace, name, namespace.get(name, _MISSING)) for name in answers]
        namespace.update(answers)
    try:
        yield
    finally:
        for namespace in plain:
            for name in _ANSWERS:
                del namespace[name]
        for namespace, name, before in changed:
            if before is _MISSING:
                del namespace[name]
            else:
                namespace[name] = before


def _namespaces() -> list[dict[str, Any]]:
    """The globals of all files that may be part of a model."""
    return [
        vars(module)
        for name, module in list(sys.modules.items())
        if type(module) is _MODULE and (name == "__main__" or name.partition(".")[0] not in _OTHERS)
    ]
