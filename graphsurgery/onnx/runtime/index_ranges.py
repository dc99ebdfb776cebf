"""Which random numbers a network takes where an input is no noise: indices, flags, and sizes of what is computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphsurgery.graph import InputSpec, ModelGraph
from graphsurgery.network.outputs.naming import tensors_of
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator

_INDICES = ((0, 999), (0, 99), (0, 9), (0, 1), (1, 4), (1, 2), (1, 1))
"""Ranges of random indices that are tried; tables have as many rows or more, and lengths are not 0."""
_SIZES = ((1, 2), (1, 1), (0, 1))
"""Ranges of random sizes that are tried: what they say the size of is no larger than it has to be."""
_NUMBERS_OF_SIZES = 16
"""No floating input of more numbers says how large anything is."""
_BOUNDED: tuple[Any, ...] = ("size", "dim", "argmax", "argmin", getattr, F.embedding, torch.argmax, torch.argmin)
"""What gives sizes or data in which the numbers of its input no longer are."""
_CASTS = frozenset({"to", "type", "long", "int", "short", "char", "byte"})
"""Methods that make other numbers of numbers."""


@dataclass(frozen=True)
class Ranges:
    """What is drawn for the inputs of a network that are no noise.

    Attributes:
        indices: the smallest and the largest of what is an index.
        sizes: the same of what says how large others become.
        sized: the numbers of the inputs that do.
        cast: the numbers of the floating inputs of which indices are made.
    """

    indices: tuple[int, int] = (0, 0)
    sizes: tuple[int, int] = (0, 0)
    sized: frozenset[int] = frozenset()
    cast: frozenset[int] = frozenset()

    def of(self, number: int, spec: InputSpec) -> tuple[int, int] | None:
        """The smallest and the largest number of an input; None where it is noise."""
        if number in self.sized:
            return self.sizes
        if spec.dtype.is_floating_point and number not in self.cast:
            return None
        if spec.dtype == torch.bool:
            return 0, 1
        return (0, 255) if spec.dtype == torch.uint8 and self.indices[1] > 0 else self.indices

    def at_end(self, end: int) -> Ranges:
        """Where only the smallest (0) or the largest (1) number is drawn."""
        index, size = self.indices[end], self.sizes[end]
        return replace(self, indices=(index, index), sizes=(size, size))


def drawn(network: ModelGraph, size: int, seed: int, ranges: Ranges) -> tuple[Tensor, ...]:
    """Normal noise in a batch of this size; of inputs that are none, random numbers of their ranges."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, (spec, x) in enumerate(zip(network.inputs, network.example_inputs(size, seed=seed), strict=True)):
        limits = ranges.of(number, spec)
        if limits is not None:
            x = torch.randint(limits[0], limits[1] + 1, x.shape, generator=generator).to(x.dtype)
        found.append(x)
    return tuple(found)


def ranges_of(network: ModelGraph, size: int) -> Ranges:
    """The widest ranges that the network takes, of sizes the smallest; 0 where it takes no others."""
    sized, cast = frozenset(_sized_inputs(network)), frozenset(_cast_inputs(network))
    if not sized and not cast and all(spec.dtype.is_floating_point for spec in network.inputs):
        return Ranges()
    if not sized:
        sized = _seen_to_grow(network, size)
    found = Ranges(sized=sized, cast=cast)
    ends = [(sizes, indices) for sizes in _SIZES for indices in ((0, 0), (1, 1))] if sized else []
    tried = [replace(found, sizes=sizes, indices=indices) for sizes, indices in ends]
    found = next((ranges for ranges in tried if _takes(network, size, ranges)), found)
    if all(number in sized or found.of(number, spec) is None for number, spec in enumerate(network.inputs)):
        return found
    tried = [replace(found, indices=indices) for indices in _INDICES]
    return next((ranges for ranges in tried if _takes(network, size, ranges)), found)


def _takes(network: ModelGraph, size: int, ranges: Ranges) -> bool:
    """Whether a network runs on numbers of these ranges, and on both ends, which few draws meet."""
    try:
        with torch.no_grad():
            for each in (ranges, ranges.at_end(0), ranges.at_end(1)):
                network.module.forward(*drawn(network, size, 0, each))  # a call would print what fails
    except Exception:  # an index out of range, in whatever way the operator says so
        return False
    return True


def _sized_inputs(network: ModelGraph) -> Iterator[int]:
    """The inputs from which a size is computed that an operator which is kept whole is asked for."""
    placeholders = [node for node in network.module.graph.nodes if node.op == "placeholder"]
    left = [node.args[at] for node, part in _kept(network) for at in part.sized_by if at < len(node.args)]
    seen: set[Any] = set()
    while left:
        node = left.pop()
        if isinstance(node, fx.Node) and node not in seen and not _is_bounded(network, node):
            seen.add(node)
            left.extend(node.all_input_nodes)
    for number, (node, spec) in enumerate(zip(placeholders, network.inputs, strict=False)):
        few = math.prod(spec.shape) <= _NUMBERS_OF_SIZES
        if node in seen and spec.dtype != torch.bool and (few or not spec.dtype.is_floating_point):
            yield number


def _cast_inputs(network: ModelGraph) -> Iterator[int]:
    """The floating inputs whose numbers are made whole as they are."""
    placeholders = [node for node in network.module.graph.nodes if node.op == "placeholder"]
    for number, (node, spec) in enumerate(zip(placeholders, network.inputs, strict=False)):
        values = [reader.meta["value"] for reader in node.users if reader.target in _CASTS]
        if spec.dtype.is_floating_point and any(_is_whole(value) for value in values):
            yield number


def _is_whole(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool


def _kept(network: ModelGraph) -> Iterator[tuple[fx.Node, OnnxOperator]]:
    for node in network.module.graph.nodes:
        part = network.module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(part, OnnxOperator):
            yield node, part


def _is_bounded(network: ModelGraph, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(network.module.get_submodule(str(node.target)), nn.Embedding)
    return node.target in _BOUNDED


def _seen_to_grow(network: ModelGraph, size: int) -> frozenset[int]:
    """The inputs that are indices, where what an operator of another maker gives grows with them."""
    if all(part.is_known for _, part in _kept(network)):
        return frozenset()
    numbers = [_largest(network, drawn(network, size, 0, Ranges((value, value)))) for value in (1, 2)]
    if numbers[0] is None or numbers[1] is None or numbers[0] == numbers[1]:
        return frozenset()
    specs = enumerate(network.inputs)
    return frozenset(n for n, spec in specs if not spec.dtype.is_floating_point and spec.dtype != torch.bool)


def _largest(network: ModelGraph, inputs: Sequence[Tensor]) -> int | None:
    """How many numbers the largest result of an operator that is kept whole has; None where it does not run."""
    try:
        with torch.no_grad(), _counted(network) as found:
            network.module.forward(*inputs)
    except Exception:  # in whatever way the operator says so
        return None
    return max(found.values(), default=0)


@contextmanager
def _counted(network: ModelGraph) -> Iterator[Mapping[str, int]]:
    """While this lasts, how many numbers the largest result of each operator that is kept whole has."""
    found: dict[str, int] = {}

    def count(name: str) -> Any:
        def note(_: nn.Module, __: Any, given: Any) -> None:
            found[name] = max(found.get(name, 0), *(tensor.numel() for tensor in tensors_of(given)))

        return note

    hooks = [part.register_forward_hook(count(str(node.target))) for node, part in _kept(network)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
