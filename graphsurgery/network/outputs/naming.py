"""What a module gives, as tensors with names, and with random numbers that are the same in every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphsurgery.errors import SpecError
from graphsurgery.network.outputs.randomness import seeded
from graphsurgery.network.outputs.strips import ConvolutionsInStrips


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors of an output by their place in it: `0`, `out`, `1.aux`.

    Tuples, named tuples and lists count their items, mappings and dataclasses name them. Numbers are tensors of no
    axes; what is neither, such as None or a text, is left out.
    """
    return {place: torch.as_tensor(found) for place, found in _named(output, "")}


def tensors_of(output: Any, *, numbers: bool = True) -> list[Tensor]:
    """The same without names; without numbers, too, if asked for."""
    found = [value for _, value in _named(output, "")]
    return [torch.as_tensor(value) for value in found if numbers or isinstance(value, Tensor)]


def one_output(output: Any, where: str) -> Tensor:
    """The tensor that an output is, or the one that is in it.

    Raises:
        SpecError: there are several, which are named, or none.
    """
    if isinstance(output, Tensor):
        return output
    named = named_outputs(output)
    if len(named) != 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in named.items()) or "none"
        raise SpecError(f"{where}: gives several outputs ({shapes}), expected one; choose it with --answer NAME")
    return next(iter(named.values()))


def field_names(output: Any) -> dict[str, Any]:
    """What an output holds, by the names that it has there; nothing where it is no structure."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return {str(index): value for index, value in enumerate(output)} if isinstance(output, (tuple, list)) else {}


def _named(output: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The tensors and numbers of an output."""
    if isinstance(output, Tensor | Number | np.ndarray | np.number | np.bool_):
        yield place or "0", output
        return
    for key, value in field_names(output).items():
        yield from _named(value, f"{place}.{key}" if place else key)


def run(module: Callable[..., Any], inputs: Sequence[Tensor], seed: int) -> dict[str, Tensor]:
    """What a module gives, with the same random numbers in every call, and the same elements dropped.

    It computes as it trains: torch's transformers have another path for evaluation without gradients, which gives
    zeros for tokens that are padding.
    """
    with seeded(seed), torch.no_grad(), dropout_by_index(), _one_path(), ConvolutionsInStrips():
        return named_outputs(module(*inputs))


@contextmanager
def _one_path() -> Iterator[None]:
    usual = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(usual)


@contextmanager
def dropout_by_index() -> Iterator[None]:
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
