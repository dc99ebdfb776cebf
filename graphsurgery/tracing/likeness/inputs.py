"""The inputs that a trace is compared with its module on: those of the examples, and others like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphsurgery.graph import have_batch

_ROWS = 4
"""How many rows of an example are taken."""


class Inputs:
    """Example inputs, and inputs of other sizes.

    Attributes:
        x: the examples, as they are compared on.

    Args:
        examples: what a module was traced with; None where an argument stays None.
        device: where the module is.
        dtype: its precision.
        generator: draws what is drawn.
        batched: which of the tensors have the batch; by default as their shapes say.
    """

    def __init__(
        self,
        examples: Sequence[Tensor | None],
        device: torch.device,
        dtype: torch.dtype,
        generator: torch.Generator,
        batched: Sequence[bool] | None = None,
    ) -> None:
        self.examples, self.device, self.dtype, self.generator = examples, device, dtype, generator
        given = [example for example in examples if example is not None]
        self.batched = have_batch([example.shape for example in given]) if batched is None else batched
        self.x = self._taken(_ROWS)

    def take_all_rows(self) -> None:
        """Compare on the whole examples: rows of one may be numbered in another, as edges of a graph number nodes."""
        self.x = self._taken(None)

    def _taken(self, rows: int | None) -> tuple[Tensor, ...]:
        given = (example for example in self.examples if example is not None)
        return tuple(self._realistic(x, rows if has else None, has) for x, has in zip(given, self.batched, strict=True))

    def placed(self, x: Sequence[Any]) -> list[Any]:
        """The arguments of the module: these, and None in between."""
        given = iter(x)
        return [None if example is None else next(given) for example in self.examples]

    def lengths(self) -> list[int]:
        """The sizes of the axes behind the batch."""
        pairs = zip(self.x, self.batched, strict=True)
        return list(dict.fromkeys(n for x, has in pairs for n in x.shape[has:]))

    def resized(self, changes: Mapping[int, int], *, more: int = 0) -> tuple[Tensor, ...]:
        """Inputs with so many examples more, and with other sizes on the axes behind that have one of these sizes."""
        shapes = zip(self.x, self.shapes(changes, more), self.batched, strict=True)
        return tuple(self._drawn(x, shape) if has else _stretched(x, shape) for x, shape, has in shapes)

    def shapes(self, changes: Mapping[int, int], more: int) -> list[list[int]]:
        """The shapes of `resized`."""
        first = [[x.shape[0] + more] if has else [] for x, has in zip(self.x, self.batched, strict=True)]
        return [[*own, *(changes.get(n, n) for n in x.shape[len(own) :])] for x, own in zip(self.x, first, strict=True)]

    def _realistic(self, example: Tensor, first: int | None, batched: bool) -> Tensor:
        """The first rows of an example; random numbers where it has none, or only one number over and over."""
        rows = example[:first] if batched else example
        if rows.is_meta or (rows.is_floating_point() and rows.numel() and bool((rows == rows.flatten()[0]).all())):
            shape = (max(2, rows.shape[0]), *rows.shape[1:]) if batched else rows.shape
            return self._drawn(rows, shape)
        if batched and rows.shape[0] == 1:
            rows = torch.cat([rows, self._drawn(rows, rows.shape)])
        return rows.to(self.device, self.dtype if rows.is_floating_point() else rows.dtype)

    def _drawn(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Random numbers; indices and flags in the range that the example has."""
        if like.is_floating_point():
            return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)
        if like.is_complex():
            return torch.randn(shape, generator=self.generator, dtype=like.dtype).to(self.device)
        low, high = (0, 0) if like.is_meta or not like.numel() else (int(like.min()), int(like.max()))
        return torch.randint(low, high + 1, tuple(shape), generator=self.generator).to(self.device, like.dtype)


def _stretched(x: Tensor, shape: Sequence[int]) -> Tensor:
    """What is no example in another size: its last entries again, as a random mask might hide everything."""
    for axis, size in enumerate(shape):
        x = x.index_select(axis, torch.arange(size, device=x.device).clamp(max=x.shape[axis] - 1))
    return x
