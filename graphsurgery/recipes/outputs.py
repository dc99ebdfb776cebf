"""What a module gives, as tensors with names, and how far two modules' outputs lie apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphsurgery.recipes.contracts import UnlikeError
from graphsurgery.verify import deviation


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors of an output by their place in it: `0`, `out`, `1.aux`.

    Tuples, named tuples and lists count their items, mappings and dataclasses name them; what is None is left out.
    """
    return dict(_named(output, ""))


def _named(output: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if output is None:
        return
    if isinstance(output, Mapping):
        items = [(str(key), value) for key, value in output.items()]
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        items = [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    elif isinstance(output, (tuple, list)):
        items = [(str(index), value) for index, value in enumerate(output)]
    else:
        yield place or "0", torch.as_tensor(output)
        return
    for key, value in items:
        yield from _named(value, f"{place}.{key}" if place else key)


def run(module: Callable[..., Any], inputs: Sequence[Tensor], seed: int) -> dict[str, Tensor]:
    """What a module gives, with the same random numbers in every call, and the same elements dropped."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _dropout_by_index():
        torch.manual_seed(seed)
        return named_outputs(module(*inputs))


@contextmanager
def _dropout_by_index() -> Iterator[None]:
    """Dropout draws in the order of the indices; torch's own draws in that of the memory, which is nobody's promise."""
    usual = F.dropout

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not 0 < p < 1:
            return usual(input, p, training, inplace)
        kept = torch.empty(input.shape, dtype=input.dtype, device=input.device).bernoulli_(1 - p).div_(1 - p)
        return input.mul_(kept) if inplace else input * kept

    F.dropout = dropout
    try:
        yield
    finally:
        F.dropout = usual


def apart(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, over: Callable[[list[float]], float] = max
) -> float:
    """The relative deviation of the outputs, each in proportion to its own largest value: the largest, or another.

    Raises:
        UnlikeError: they are not the same outputs, or not of the same shapes.
    """
    missing = [name for name in expected if name not in found]
    added = [name for name in found if name not in expected]
    if missing or added:
        differences = [f"{word} {', '.join(names)}" for word, names in (("lacks", missing), ("adds", added)) if names]
        raise UnlikeError(
            f"it gives {len(found)} outputs where {len(expected)} are expected: {' and '.join(differences)}"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise UnlikeError(f"output {name} has the shape {list(found[name].shape)}, expected {list(tensor.shape)}")
    return over([deviation(found[name], tensor) for name, tensor in expected.items()] or [0.0])
