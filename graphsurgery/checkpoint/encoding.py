"""The values in a stored graph: arguments of calls, as JSON that says the type of everything JSON does not have.

`None`, booleans, integers, finite floats and strings stand for themselves and a list for a list; everything else is an
object of one key, its type: `{"tuple": […]}`, `{"node": "conv1"}`, `{"dtype": "float32"}`, `{"float": "inf"}`, …
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from graphsurgery.errors import SurgeryError

_NAMED_KINDS = (torch.dtype, torch.memory_format, torch.layout)


def encode(value: Any, node: Callable[[fx.Node], Any]) -> Any:
    """The JSON form of an argument.

    Args:
        value: made of numbers, strings, lists, tuples, dicts, sets, slices, torch's dtypes, devices, sizes, and nodes.
        node: gives the JSON form of a reference to another node.

    Raises:
        SurgeryError: the value holds something else; the message names its type.
    """

    def inner(part: Any) -> Any:
        return encode(part, node)

    match value:
        case None | bool() | str():
            return value
        case int() if type(value) is int:
            return value
        case float():
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        case complex():
            return {"complex": [inner(value.real), inner(value.imag)]}
        case fx.Node():
            return node(value)
        case torch.Size():
            return {"size": list(value)}
        case tuple():
            return {"tuple": [inner(part) for part in value]}
        case list():
            return [inner(part) for part in value]
        case dict():
            return {"dict": [[inner(key), inner(part)] for key, part in value.items()]}
        case frozenset():
            return {"frozenset": sorted((inner(part) for part in value), key=repr)}
        case slice():
            return {"slice": [inner(value.start), inner(value.stop), inner(value.step)]}
        case torch.device():
            return {"device": str(value)}
        case _ if value is ...:
            return {"ellipsis": None}
    for kind in _NAMED_KINDS:
        if isinstance(value, kind):
            return {kind.__name__: str(value).removeprefix("torch.")}
    raise SurgeryError(
        f"a value of type {type(value).__name__} cannot be stored; pass numbers, strings or tensors' names"
    )


def decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """The argument of a JSON form that `encode` gave.

    Args:
        value: the JSON form.
        nodes: the nodes that it may refer to, by name.

    Raises:
        SurgeryError: it is not such a form, or refers to a node that is not there (yet).
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [decode(part, nodes) for part in value]
        case dict() if len(value) == 1:
            ((kind, content),) = value.items()
            decoder = _DECODERS.get(kind)
            if decoder is not None:
                return decoder(content, nodes)
    raise SurgeryError(f"a value is stored as {_shown(value)}, which no version of the format has")


def _decode_node(name: Any, nodes: Mapping[str, fx.Node]) -> fx.Node:
    if not isinstance(name, str) or name not in nodes:
        raise SurgeryError(f"node {_shown(name)} is used before it is made")
    return nodes[name]


def _decode_parts(content: Any, nodes: Mapping[str, fx.Node]) -> tuple[Any, ...]:
    if not isinstance(content, list):
        raise SurgeryError(f"a sequence is stored as {_shown(content)}, expected a list")
    return tuple(decode(part, nodes) for part in content)


def _decode_dict(content: Any, nodes: Mapping[str, fx.Node]) -> dict[Any, Any]:
    pairs: list[Any] = [_decode_parts(pair, nodes) for pair in content] if isinstance(content, list) else [()]
    if any(len(pair) != 2 or not isinstance(pair[0], str | int | float | bool | tuple | None) for pair in pairs):
        raise SurgeryError(f"a dict is stored as {_shown(content)}, expected a list of key and value")
    return dict(pairs)


def _decode_set(content: Any, nodes: Mapping[str, fx.Node]) -> frozenset[Any]:
    parts = _decode_parts(content, nodes)
    if not all(isinstance(part, str | int | float | bool | None) for part in parts):
        raise SurgeryError(f"a set is stored as {_shown(content)}, expected numbers and texts")
    return frozenset(parts)


def _decode_slice(content: Any, nodes: Mapping[str, fx.Node]) -> slice:
    parts = _decode_parts(content, nodes)
    if len(parts) != 3:
        raise SurgeryError(f"a slice is stored as {_shown(content)}, expected start, stop and step")
    return slice(*parts)


def _decode_size(content: Any, _: Mapping[str, fx.Node]) -> torch.Size:
    if not isinstance(content, list) or not all(type(part) is int for part in content):
        raise SurgeryError(f"a size is stored as {_shown(content)}, expected integers")
    return torch.Size(content)


def _decode_float(content: Any, _: Mapping[str, fx.Node]) -> float:
    if content not in ("inf", "-inf", "nan"):
        raise SurgeryError(f"a float is stored as {_shown(content)}, expected inf, -inf or nan")
    return float(content)


def _decode_complex(content: Any, nodes: Mapping[str, fx.Node]) -> complex:
    parts = _decode_parts(content, nodes)
    if len(parts) != 2 or not all(isinstance(part, float) for part in parts):
        raise SurgeryError(f"a complex number is stored as {_shown(content)}, expected two floats")
    return complex(*parts)


def _decode_device(content: Any, _: Mapping[str, fx.Node]) -> torch.device:
    try:
        return torch.device(content)
    except (RuntimeError, TypeError) as cause:
        raise SurgeryError(f"a device is stored as {_shown(content)}, which torch does not know") from cause


def _decode_named(kind: type) -> Callable[[Any, Mapping[str, fx.Node]], Any]:
    """A decoder of what torch has under a name, such as `float32` or `channels_last`."""

    def decode_named(content: Any, _: Mapping[str, fx.Node]) -> Any:
        found = getattr(torch, content, None) if isinstance(content, str) else None
        if not isinstance(found, kind):
            raise SurgeryError(f"a {kind.__name__} is stored as {_shown(content)}, which torch does not have")
        return found

    return decode_named


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


_DECODERS: Mapping[str, Callable[[Any, Mapping[str, fx.Node]], Any]] = {
    "node": _decode_node,
    "tuple": _decode_parts,
    "dict": _decode_dict,
    "frozenset": _decode_set,
    "slice": _decode_slice,
    "size": _decode_size,
    "float": _decode_float,
    "complex": _decode_complex,
    "device": _decode_device,
    "ellipsis": lambda _content, _nodes: ...,
    **{kind.__name__: _decode_named(kind) for kind in _NAMED_KINDS},
}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def named_dtype(name: Any) -> torch.dtype:
    """`torch.float32` for `float32`.

    Raises:
        SurgeryError: torch has no dtype of this name.
    """
    dtype: torch.dtype = _DECODERS["dtype"](name, {})
    return dtype
