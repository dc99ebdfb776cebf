"""torch as a trace needs it: functions that record what they are given, and random draws that are seen."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace as fx_trace
from torch.overrides import get_overridable_functions

from graphsurgery.errors import TraceError
from graphsurgery.tracing.following import numpy_calls
from graphsurgery.tracing.following.proxies import held, value_of
from graphsurgery.tracing.following.questions import is_tensor
from graphsurgery.tracing.stand_ins import attention, shifted_windows

_MISSING: Any = object()
_FACTORIES = (
    "zeros", "ones", "full", "empty", "arange", "linspace", "logspace", "tensor", "as_tensor", "scalar_tensor", "eye",
    "tril_indices", "triu_indices", "finfo", "iinfo",
)  # fmt: skip
_LAYERS = str(Path(nn.modules.__file__).parent)
_RANDOM = ("rand", "randn", "randint", "randperm", "normal")
"""Factories that draw: recorded even where nothing that they are given comes from an input."""
_COPYING, _KEEPING = torch.tensor, torch.as_tensor
"""What a forward makes of an array, and what a graph makes of the constant that this becomes."""
_SIZED_METHODS = (
    "expand", "view", "reshape", "repeat", "tile", "narrow", "roll", "unflatten", "select", "split", "chunk", "unfold",
    "as_strided", "repeat_interleave", "broadcast_to", "new_zeros", "new_ones", "new_full", "new_empty",
)  # fmt: skip
"""Methods of tensors that take sizes: recorded of a tensor that the forward makes, where a size comes from an input.
Special methods are none of them: replacing one changes the class for good."""
_ARRAYS = ("arange", "linspace", "logspace", "geomspace", "zeros", "ones", "full", "empty", "eye", "tri", "indices")
"""Functions that make arrays of NumPy, which hold no sizes that follow an input: those that they are given are held."""


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
        scripted = torch.jit.isinstance
        asked = [
            (torch, "is_tensor", is_tensor),
            (torch.jit, "isinstance", lambda candidate, kinds: scripted(_plain(candidate), kinds)),
        ]
        # Distributions look at the values of their parameters, unless they are told not to, and at their sizes.
        distribution = torch.distributions.Distribution
        trusting = [(distribution, "_validate_args", False), (distribution, "_extended_shape", _extended_shape)]
        replacements = [*trusting, *factories, *draws, *asked, *attention.REPLACEMENTS, *shifted_windows.replacements()]
        methods = [(Tensor, name, self._recording_method(getattr(Tensor, name))) for name in _SIZED_METHODS]
        arrays = [(np, name, _held(getattr(np, name))) for name in _ARRAYS]
        replacements += [*methods, *arrays]
        originals = [(home, name, vars(home).get(name, _MISSING)) for home, name, _ in replacements]
        for home, name, function in replacements:
            setattr(home, name, function)
        apply = torch.autograd.Function.__dict__["apply"]
        torch.autograd.Function.apply = classmethod(self._applying(apply))
        try:
            yield
        finally:
            torch.autograd.Function.apply = apply
            for home, name, original in originals:
                if original is _MISSING:
                    delattr(home, name)
                else:
                    setattr(home, name, original)
            fx_trace._wrapped_fns_to_patch.update(wrapped)

    def _recording(self, original: Callable[..., Any], *, always: bool = False) -> Callable[..., Any]:
        def factory(*args: Any, **kwargs: Any) -> Any:
            if not self._asleep() and (always or _has_proxies(args, kwargs)):
                if _makes_a_layer(sys._getframe(1)):
                    return _without_values(original, args, kwargs)
                copies = original is _COPYING and bool(args) and isinstance(args[0], np.ndarray)
                return self._record(_KEEPING if copies else original, args, kwargs)
            return original(*args, **kwargs)

        return factory

    def _recording_method(self, original: Any) -> Callable[..., Any]:
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._asleep() and (args or kwargs) and _has_proxies(args, kwargs):
                return self._record_method(original.__name__, tensor, args, kwargs)
            return original(tensor, *args, **kwargs)

        return method

    def _record_method(self, name: str, tensor: Tensor, args: Any, kwargs: Any) -> Any:
        return self._record(name, (tensor, *args), kwargs)

    def _applying(self, original: Any) -> Callable[..., Any]:
        def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._asleep() and _has_proxies(args, kwargs):
                return self._follow(function, args, kwargs)
            return original.__get__(None, function)(*args, **kwargs)

        return apply


def as_written() -> contextlib.AbstractContextManager[Any]:
    """Parts that torch.compile has been put around run as Python meanwhile; a trace inside of them is refused else."""
    compiler = sys.modules.get("torch._dynamo.config")
    return contextlib.nullcontext() if compiler is None else compiler.patch(error_on_nested_fx_trace=False)


def _makes_a_layer(frame: FrameType) -> bool:
    """Whether a constructor of one of torch's layers asks, whose weights are judged when it is called."""
    return frame.f_code.co_name == "__init__" and frame.f_code.co_filename.startswith(_LAYERS)


def _without_values(factory: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What a factory makes, on the meta device."""
    return factory(*_plain(args), **{**_plain(kwargs), "device": "meta"})


def _plain(structure: Any) -> Any:
    """The same with the values of proxies."""
    return fx.node.map_aggregate(structure, lambda a: value_of(a) if isinstance(a, fx.Proxy) else a)


def _extended_shape(distribution: torch.distributions.Distribution, sample_shape: Any = ()) -> Any:
    """The shape of samples, as a tuple that may hold sizes which follow the input."""
    return (*sample_shape, *distribution._batch_shape, *distribution._event_shape)


def _held(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function of NumPy that is given numbers where it is given sizes; the sizes are decided."""

    def function(*args: Any, **kwargs: Any) -> Any:
        if not _has_proxies(args, kwargs):
            return original(*args, **kwargs)
        return numpy_calls.of_sequences(original, args, kwargs, held)

    return function


def _has_proxies(args: Any, kwargs: Any) -> bool:
    found: list[fx.Proxy] = []
    fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, fx.Proxy) else None)
    return bool(found)


class _Slots(dict[str, Any]):
    """The parameters or buffers of a module, each of which is answered for when a forward asks for it."""

    def __init__(self, tensors: Mapping[str, Any], answer: Callable[[Any], Any]) -> None:
        super().__init__(tensors)
        self.answer = answer

    def __getitem__(self, name: str) -> Any:
        return self.answer(super().__getitem__(name))


@contextlib.contextmanager
def asked_for(modules: Sequence[nn.Module], answer: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block an attribute of these modules that is a parameter or buffer is what `answer` makes of it."""
    every = ((vars(module), kind) for module in modules for kind in ("_parameters", "_buffers"))
    owned = [(state, kind, state[kind]) for state, kind in every if state[kind]]
    for state, kind, tensors in owned:
        state[kind] = _Slots(tensors, answer)
    try:
        yield
    finally:
        for state, kind, tensors in owned:
            found = state[kind]
            tensors.clear()
            tensors.update(found)
            state[kind] = tensors


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
