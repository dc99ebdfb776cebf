"""The axes of a file's inputs, and the sizes that a person says of those that it leaves free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from graphsurgery.errors import SpecError, UnsupportedError

Given = Sequence[int] | Mapping[str, Sequence[int]]
"""The shape of one example of the only input, without the batch; or whole shapes of inputs, by name."""


@dataclass(frozen=True)
class Axis:
    """An axis of an input as the file states it.

    Attributes:
        size: None where it is free.
        name: what the file calls a free one; of the input and the place where it has no name.
        unnamed: whether it has none.
    """

    size: int | None
    name: str
    unnamed: bool = False

    @property
    def text(self) -> str:
        return "?" if self.size is None else str(self.size)


def axes_of(value: onnx.ValueInfoProto, path: Path) -> list[Axis]:
    """The axes of an input; a size below 0 is a free one, as older exporters wrote it.

    Raises:
        UnsupportedError: the file does not say how many they are.
    """
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise UnsupportedError(f"{path}: input {value.name} has a free number of axes")
    found = []
    for place, size in enumerate(kind.shape.dim):
        known = size.dim_value if size.HasField("dim_value") and size.dim_value >= 0 else None
        found.append(Axis(known, size.dim_param or f"{value.name}[{place}]", not size.dim_param))
    return found


def has_free_sizes(inputs: Iterable[onnx.ValueInfoProto], path: Path) -> bool:
    """Whether a file leaves sizes of its inputs free that are not their first."""
    return any(axis.size is None for value in inputs for axis in axes_of(value, path)[1:])


def example(name: str, own: Sequence[Axis]) -> str:
    """How the sizes of an input are said on a command line."""
    defaults = [1, 3, 224, 224] if len(own) == 4 else [1, *[128] * (len(own) - 1)]
    sizes = [n if axis.size is None else axis.size for axis, n in zip(own, defaults, strict=True)]
    return f"--input {name}={'x'.join(map(str, sizes))}"


def given_sizes(path: Path, axes: Mapping[str, Sequence[Axis]], given: Given | None) -> dict[str, int]:
    """The sizes of free axes that are given, by the names of the axes."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return _of_only_input(path, axes, given)
    found: dict[str, int] = {}
    for name, shape in given.items():
        if name not in axes:
            raise SpecError(f"{path}: has no input {name}; choose from {', '.join(axes)}")
        _fit(path, name, axes[name], shape)
        for axis, size in zip(axes[name], shape, strict=True):
            if axis.size is None and found.setdefault(axis.name, size) != size:
                raise SpecError(
                    f"{path}: axis {axis.name} of input {name} has the size {size}, and {found[axis.name]} elsewhere"
                )
    return found


def _of_only_input(path: Path, axes: Mapping[str, Sequence[Axis]], shape: Sequence[int]) -> dict[str, int]:
    """The sizes of one example, where there is one input; of several, those have to say whose they are."""
    if len(axes) > 1:
        if any(axis.size is None for own in axes.values() for axis in own[1:]):
            name, own = next((name, own) for name, own in axes.items() if any(a.size is None for a in own[1:]))
            names = ", ".join(axes)
            raise SpecError(f"{path}: has the inputs {names}; say whose shape it is, such as {example(name, own)}")
        return {}
    name, own = next(iter(axes.items()))
    _fit(path, name, own[1:], shape)
    return {axis.name: size for axis, size in zip(own[1:], shape, strict=True) if axis.size is None}


def _fit(path: Path, name: str, own: Sequence[Axis], shape: Sequence[int]) -> None:
    """Raise SpecError for a shape that the axes of an input cannot have."""
    if len(own) != len(shape) or any(axis.size not in (None, n) for axis, n in zip(own, shape, strict=True)):
        words, asked = "x".join(axis.text for axis in own), "x".join(map(str, shape))
        raise SpecError(f"{path}: input {name} is {words} in the file, not {asked}")
