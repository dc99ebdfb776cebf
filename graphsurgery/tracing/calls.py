"""How a model is called: inputs by name, nested inputs, constants beside them, and which of its outputs count.

A graph takes tensors one after the other. A model that is called in another way is followed as one of the same parts
whose forward takes them so, and makes that call.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graphsurgery.errors import SurgeryError, TraceError, near_names
from graphsurgery.network.copying import is_compiled
from graphsurgery.network.outputs.naming import field_names

_CONSTANTS = (type(None), bool, int, float, str)
_INPUT = "input"


@dataclass(frozen=True)
class Call:
    """A call of a model.

    Attributes:
        args: positional arguments; `{"input": name}` stands for each tensor, and `{"dict": …}` for each dict.
        kwargs: arguments by name, in the same way.
        outputs: the outputs that count, by their place (`logits`, `0`, `1.aux`): one, several, or None for all.
    """

    args: list[Any]
    kwargs: dict[str, Any]
    outputs: str | list[str] | None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Call:
        """The call that a lineage tells of."""
        return cls(list(record["args"]), dict(record["kwargs"]), record["outputs"])

    def as_record(self) -> dict[str, Any]:
        """The same, JSON-like."""
        return {"args": self.args, "kwargs": self.kwargs, "outputs": self.outputs}

    @property
    def inputs(self) -> list[str]:
        """The names of the tensors, in the order in which the graph takes them."""
        return [*_names(self.args), *(name for part in self.kwargs.values() for name in _names(part))]

    def adapted(self, model: nn.Module) -> nn.Module:
        """A module of the same parts, whose forward takes the tensors one after the other and makes this call."""
        kind = type(model)
        if model._forward_hooks or model._forward_pre_hooks:
            raise TraceError(f"{kind.__name__}: has hooks, which see its arguments by name; remove them, or wrap it")
        new = kind.__new__(kind)
        new.__dict__ = dict(model.__dict__)
        given = new.__dict__.pop("forward", None)
        own = given is None or is_compiled(given)
        forward = _forward(self, kind.forward if own else _unbound(given, model))
        new.__class__ = type(
            kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "_called": kind}
        )
        return new


def restored(module: nn.Module) -> nn.Module:
    """A module of the class that was adapted, in place."""
    kind = getattr(type(module), "_called", None)
    if kind is not None:
        module.__class__ = kind
    return module


def call_of(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: str | Sequence[str] | None
) -> tuple[Call, tuple[Tensor, ...]]:
    """A call in writing, and the tensors in it, in order.

    Raises:
        SurgeryError: something in it is neither a tensor nor a constant.
    """
    tensors: list[Tensor] = []
    names: list[str] = []
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]

    def written(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            name = "".join(c if c.isalnum() else "_" for c in name)
            name = name if name.isidentifier() else f"input_{name}"
            while name in names:
                name += "_"
            names.append(name)
            tensors.append(value)
            return {_INPUT: name}
        if type(value) in (tuple, list):
            return {type(value).__name__: [written(part, f"{name}_{i}") for i, part in enumerate(value)]}
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {"dict": {key: written(part, f"{name}_{key}") for key, part in value.items()}}
        if isinstance(value, _CONSTANTS):
            return value
        raise SurgeryError(
            f"trace: the example for {name} holds a {type(value).__name__}, expected tensors, numbers, texts and None, "
            "in tuples, lists and dicts"
        )

    places = [positional[i] if i < len(positional) else f"input_{i}" for i in range(len(args))]
    positioned = [written(value, place) for value, place in zip(args, places, strict=True)]
    named = {name: written(value, name) for name, value in kwargs.items()}
    chosen = outputs if outputs is None or isinstance(outputs, str) else list(outputs)
    return Call(positioned, named, chosen), tuple(tensors)


def is_plain(args: Any, kwargs: Mapping[str, Any] | None, outputs: Any) -> bool:
    """Whether a model is called with tensors one after the other, and None in between."""
    return not kwargs and outputs is None and all(isinstance(value, Tensor | None) for value in args)


def _names(written: Any) -> Iterator[str]:
    if isinstance(written, Mapping):
        if _INPUT in written:
            yield written[_INPUT]
        for part in written.values():
            yield from _names(part)
    elif isinstance(written, list):
        for part in written:
            yield from _names(part)


def _read(written: Any, inputs: Mapping[str, Any]) -> Any:
    """What a call in writing says, with these tensors."""
    if not isinstance(written, Mapping):
        return written
    ((kind, content),) = written.items()
    if kind == _INPUT:
        return inputs[content]
    if kind == "dict":
        return {key: _read(part, inputs) for key, part in content.items()}
    parts = [_read(part, inputs) for part in content]
    return tuple(parts) if kind == "tuple" else parts


def _forward(call: Call, forward: Callable[..., Any]) -> Callable[..., Any]:
    names = call.inputs

    def adapted(self: nn.Module, *tensors: Any) -> Any:
        inputs = dict(zip(names, tensors, strict=True))
        args = [_read(part, inputs) for part in call.args]
        output = forward(self, *args, **{name: _read(part, inputs) for name, part in call.kwargs.items()})
        return _chosen(output, call.outputs)

    places = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    adapted.__signature__ = inspect.Signature(places)  # type: ignore[attr-defined]
    return adapted


def _unbound(given: Any, model: nn.Module) -> Callable[..., Any]:
    """A forward that somebody has put on an instance."""
    if isinstance(given, types.MethodType) and given.__self__ is model:
        return given.__func__
    raise TraceError(
        f"{type(model).__name__}: its forward has been replaced on the instance; it can only be traced with tensors one"
        " after the other"
    )


def _chosen(output: Any, outputs: str | list[str] | None) -> Any:
    if outputs is None:
        return output
    if isinstance(outputs, str):
        return _at(output, outputs)
    return {name: _at(output, name) for name in outputs}


def _at(output: Any, place: str) -> Any:
    """What lies at a place of an output, such as `logits` or `1.aux`."""
    found = output
    for key in place.split("."):
        names = field_names(found)
        if key not in names:
            raise TraceError(f"the model has no output {place}; it gives {', '.join(names)}; {near_names(key, names)}")
        found = names[key]
    return found
