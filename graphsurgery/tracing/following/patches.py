"""torch as a trace needs it: functions that record what they are given, and random draws that are seen."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx import _symbolic_trace as fx_trace
from torch.overrides import get_overridable_functions

from graphsurgery.errors import TraceError
from graphsurgery.tracing import attention, shifted_windows
from graphsurgery.tracing.following.proxies import is_instance

_FACTORIES = (
    "zeros", "ones", "full", "empty", "arange", "linspace", "logspace", "tensor", "as_tensor", "scalar_tensor", "eye",
    "tril_indices", "triu_indices", "finfo", "iinfo",
)  # fmt: skip
_RANDOM = ("rand", "randn", "randint", "randperm", "normal")
"""Factories that draw: recorded even where nothing that they are given comes from an input."""


class Recorder:
    """Gives torch functions that record, for as long as a trace lasts.

    Args:
        record: makes a node of a call of a function.
        follow: makes what it takes of a call of a function with a backward of its own.
        asleep: whether a call is no part of the model: the trace computes a value.
    """

    def __init__(self, record: Callable[..., Any], follow: Callable[..., Any], asleep: Callable[[], bool]) -> None:
        self._record = record
        self._follow = follow
        self._asleep = asleep

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Record tensor factories that are given proxies, and follow functions that fx would keep whole.

        Some functions of torchvision that decide by sizes are followed in another form (`shifted_windows`), and torch's
        transformers in the one that training takes (`attention`).
        """
        get_overridable_functions()  # torch keeps the list that it makes at the first call: not one of the replacements
        wrapped = dict(fx_trace._wrapped_fns_to_patch)
        fx_trace._wrapped_fns_to_patch.clear()
        factories = [(torch, name, self._recording(getattr(torch, name))) for name in _FACTORIES]
        draws = [(torch, name, self._recording(getattr(torch, name), always=True)) for name in _RANDOM]
        asked = (torch, "is_tensor", lambda candidate: is_instance(candidate, Tensor))
        replacements = [*factories, *draws, asked, *attention.REPLACEMENTS, *shifted_windows.REPLACEMENTS]
        originals = [(home, name, getattr(home, name)) for home, name, _ in replacements]
        for home, name, function in replacements:
            setattr(home, name, function)
        apply = torch.autograd.Function.__dict__["apply"]
        torch.autograd.Function.apply = classmethod(self._applying(apply))
        try:
            yield
        finally:
            torch.autograd.Function.apply = apply
            for home, name, original in originals:
                setattr(home, name, original)
            fx_trace._wrapped_fns_to_patch.update(wrapped)

    def _recording(self, original: Callable[..., Any], *, always: bool = False) -> Callable[..., Any]:
        def factory(*args: Any, **kwargs: Any) -> Any:
            if not self._asleep() and (always or _has_proxies(args, kwargs)):
                return self._record(original, args, kwargs)
            return original(*args, **kwargs)

        return factory

    def _applying(self, original: Any) -> Callable[..., Any]:
        def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._asleep() and _has_proxies(args, kwargs):
                return self._follow(function, args, kwargs)
            return original.__get__(None, function)(*args, **kwargs)

        return apply


def _has_proxies(args: Any, kwargs: Any) -> bool:
    found: list[fx.Proxy] = []
    fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, fx.Proxy) else None)
    return bool(found)


@contextlib.contextmanager
def no_hidden_draws() -> Iterator[None]:
    """Refuse a forward that draws random numbers where the graph does not: it would keep those of the trace.

    Raises:
        TraceError: Python's, NumPy's or torch's generator has moved.
    """
    before = _generator_states()
    yield
    if not _same_states(before, _generator_states()):
        raise TraceError("draws random numbers outside the graph, which would keep those of the trace")


def _generator_states() -> tuple[Any, ...]:
    """The states of what Python, NumPy and torch draw from."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _same_states(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    python, (name, keys, *rest), own = before
    return (
        python == after[0]
        and (name, *rest) == (after[1][0], *after[1][2:])
        and bool((keys == after[1][1]).all())
        and torch.equal(own, after[2])
    )
