"""How much each channel of a space matters: one score for each channel, to be compared within the space.

A criterion says how much single weights count; the score of a channel is made of all weights that write or read it.
`CHANNEL_CRITERIA` is the table of criteria.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.axes.algebra import Axis, Dim, resolve, term_size
from graphsurgery.axes.maps import axis_beside
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Space


def importance(graph: ModelGraph, spaces: Sequence[Space], criterion: str, seed: int = 0) -> dict[str, Tensor]:
    """Scores `[channels]` of spaces by name, float64 on the CPU; higher matters more.

    Args:
        graph: typed network.
        spaces: some of its spaces.
        criterion: `l1` or `l2` of all weights that write or read a channel; `bn`, the scale of its norms, or `l2`
            where it has none; `taylor`, |weight · gradient| (Molchanov et al., "Importance estimation for neural
            network pruning", CVPR 2019); `random`.
        seed: for `random`.

    Raises:
        SurgeryError: unknown criterion, or what it needs is not there.
    """
    scores = Scores(graph, criterion, seed)
    return {space.name: scores.of(space) for space in spaces}


class Scores:
    """The scores of a network's channels by one criterion; what each needs is summed up when it is asked for, once.

    The arguments, and what is raised, are those of `importance`.
    """

    comparable = False

    def __init__(self, graph: ModelGraph, criterion: str, seed: int = 0) -> None:
        if criterion not in (*CHANNEL_CRITERIA, "random"):
            raise SurgeryError(
                f"importance {criterion} is unknown; choose from {', '.join(CHANNEL_CRITERIA)}, gate, random"
            )
        self._graph = graph
        self._tensors = graph.tensors()
        self.criterion = criterion
        self._seed = seed
        self._scores: dict[tuple[Dim, tuple[Dim, ...]], Tensor] = {}
        self._sums: dict[tuple[Criterion, str, tuple[int, ...]], Tensor] = {}

    def of(self, space: Space, outers: Sequence[Dim] = ()) -> Tensor:
        """The scores `[channels]` of a space; or `[groups, channels]`, in each group of the dims that it stands in."""
        key = (space.dim, tuple(outers))
        if key not in self._scores:
            self._scores[key] = self._of(space, outers)
        return self._scores[key]

    def _of(self, space: Space, outers: Sequence[Dim]) -> Tensor:
        if self.criterion == "random":
            return _random(space, self._seed, outers)
        criterion = CHANNEL_CRITERIA[self.criterion]
        total = self._total(criterion, space, outers)
        if total is None and criterion.fallback is not None:
            criterion = criterion.fallback
            total = self._total(criterion, space, outers)
        shape = [*([sum(dim.size for dim in outers)] if outers else []), space.size]
        return criterion.finish(torch.zeros(shape, dtype=torch.float64) if total is None else total)

    def _total(self, criterion: Criterion, space: Space, outers: Sequence[Dim]) -> Tensor | None:
        """The sum over everything that a criterion looks at; None where that is nothing."""
        total = None
        for name, index, axis in self._graph.uses[space.dim]:
            if criterion.looks_at(self._graph, name, self._tensors[name]):
                part = self._part(criterion, name, index, axis, space.dim, outers)
                total = part if total is None else total + part
        return total

    def _part(self, criterion: Criterion, name: str, index: int, axis: Axis, dim: Dim, outers: Sequence[Dim]) -> Tensor:
        """What one axis of one parameter adds; in all groups alike where the parameter does not tell them."""
        if not outers:
            return _along(self._sum(criterion, name, (index,)), axis, (dim,))
        if any(dim in term and outer in term for term in axis for outer in outers):
            vector = self._sum(criterion, name, (index,))
            return torch.cat([_along(vector, axis, (outer, dim)) for outer in outers])
        axes = self._graph.types.parameters[name].axes
        beside = axis_beside(axes, index, outers)
        if beside is None:
            groups = sum(outer.size for outer in outers)
            return (_along(self._sum(criterion, name, (index,)), axis, (dim,)) / groups).expand(groups, -1)
        inner = _along(self._sum(criterion, name, (index, beside)), axis, (dim,))
        return torch.cat([_along(inner.t(), resolve(axes[beside]), (outer,)) for outer in outers])

    def _sum(self, criterion: Criterion, name: str, kept: tuple[int, ...]) -> Tensor:
        key = (criterion, name, kept)
        if key not in self._sums:
            if self._tensors[name].is_meta:
                self._graph.check_values(f"importance {self.criterion}")
            for axes, total in criterion.sums(name, self._tensors[name], kept).items():
                self._sums[criterion, name, axes] = total.double().cpu()
        return self._sums[key]


def _random(space: Space, seed: int, outers: Sequence[Dim]) -> Tensor:
    place = sum((i + 1) * ord(c) for i, c in enumerate(space.name))
    generator = torch.Generator().manual_seed((place * 1_000_003 + seed) % 2**31)
    shape = [*([sum(dim.size for dim in outers)] if outers else []), space.size]
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _along(values: Tensor, axis: Axis, dims: tuple[Dim, ...]) -> Tensor:
    """Sum values `[axis, ...]` to `[*dims, ...]`, over all else in the terms that hold these dims."""
    if axis == (dims,):
        return values if len(dims) == 1 else values.reshape(*(dim.size for dim in dims), *values.shape[1:])
    total = torch.zeros(*(dim.size for dim in dims), *values.shape[1:], dtype=torch.float64)
    offset = 0
    for term in axis:
        size = term_size(term)
        if dims[0] in term and all(dim in term for dim in dims):
            block = values[offset : offset + size].reshape(*(dim.size for dim in term), *values.shape[1:])
            block = block.movedim([term.index(dim) for dim in dims], list(range(len(dims))))
            total += block.flatten(len(dims), len(term) - 1).sum(len(dims)) if len(term) > len(dims) else block
        offset += size
    return total


class Criterion:
    """How much weights count: what is summed over a parameter, and what the score is of the sums over all of them."""

    fallback: Criterion | None = None

    def looks_at(self, graph: ModelGraph, name: str, tensor: Tensor) -> bool:
        """Whether a parameter or buffer counts at all."""
        return tensor.dim() >= 2 and not graph.types.parameters[name].counts

    def sum(self, name: str, tensor: Tensor, kept: tuple[int, ...]) -> Tensor:
        """The sums over every axis that is not kept, the others in this order."""
        raise NotImplementedError

    def sums(self, name: str, tensor: Tensor, kept: tuple[int, ...]) -> dict[tuple[int, ...], Tensor]:
        """These sums, and others that come with them, by the axes that they keep."""
        return {kept: self.sum(name, tensor, kept)}

    def finish(self, total: Tensor) -> Tensor:
        """The score."""
        return total


_BLOCK = 2**18
"""Numbers of a weight that are summed at a time."""


class _Norm(Criterion):
    """A norm of all weights."""

    def __init__(self, order: int) -> None:
        self.order = order

    def sum(self, name: str, tensor: Tensor, kept: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Of |weight| ** order, at least in single precision; in blocks, for the sake of caches and memory."""
        tensor = tensor.detach()
        if kept != (1,):
            first = tensor if kept == (0,) else tensor.movedim(kept, list(range(len(kept))))
            return self._power(self._norms(first, len(kept)).double())
        return self._second(tensor, sum(block.sum(0).double() for block in self._blocks(tensor)))

    def sums(self, name: str, tensor: Tensor, kept: tuple[int, ...]) -> dict[tuple[int, ...], Tensor]:
        """Of a large weight those of its first two axes, as both are asked for and to read it takes longest."""
        if kept not in ((0,), (1,)) or tensor.numel() <= _BLOCK or not tensor.dim() > 1:
            return super().sums(name, tensor, kept)
        firsts, total = [], torch.zeros((), dtype=torch.float64, device=tensor.device)
        for block in self._blocks(tensor.detach()):
            firsts.append(block.sum(1))
            total = total + block.sum(0).double()
        return {(0,): torch.cat(firsts), (1,): self._second(tensor, total)}

    def _second(self, tensor: Tensor, total: Any) -> Tensor:
        """Whole rows were summed, however few numbers belong to one index of axis 1."""
        return total if tensor.dim() == 2 else total.reshape(tensor.shape[1], -1).sum(1)

    def _blocks(self, tensor: Tensor) -> Iterator[Tensor]:
        """|weight| ** order, some rows at a time."""
        rows = tensor.flatten(1)
        for block in rows.split(max(1, _BLOCK // max(1, rows.shape[1]))) if tensor.numel() > _BLOCK else (rows,):
            block = block.to(_accumulated(block))
            yield self._power(block.abs() if self.order == 1 or block.is_complex() else block)

    def _power(self, numbers: Tensor) -> Tensor:
        return numbers * numbers if self.order == 2 else numbers

    def _norms(self, tensor: Tensor, count: int) -> Tensor:
        """The norms over all but the first axes."""
        if tensor.dim() == count:
            return tensor.abs()
        return torch.linalg.vector_norm(tensor.flatten(count), self.order, dim=count, dtype=_accumulated(tensor))

    def finish(self, total: Tensor) -> Tensor:
        return total ** (1 / self.order)


def _accumulated(tensor: Tensor) -> torch.dtype:
    """The precision that weights are summed in: half precision has too few digits for the sum of a row."""
    return torch.float32 if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.dtype


class _Taylor(Criterion):
    """The first-order change of the loss when a channel goes."""

    def looks_at(self, graph: ModelGraph, name: str, tensor: Tensor) -> bool:  # noqa: ARG002
        return isinstance(tensor, nn.Parameter)

    def sum(self, name: str, tensor: Tensor, kept: tuple[int, ...]) -> Tensor:
        if tensor.grad is None:
            raise SurgeryError(f"importance taylor needs gradients: {name}.grad is None; run a backward pass first")
        change = (tensor.detach() * tensor.grad).double()
        change = change.movedim(kept, list(range(len(kept))))
        return change.reshape(*change.shape[: len(kept)], -1).sum(-1)

    def finish(self, total: Tensor) -> Tensor:
        return total.abs()


_L2 = _Norm(2)


class _Scale(Criterion):
    """The scales of the BatchNorms."""

    fallback = _L2

    def looks_at(self, graph: ModelGraph, name: str, tensor: Tensor) -> bool:  # noqa: ARG002
        owner, _, leaf = name.rpartition(".")
        return leaf == "weight" and isinstance(graph.module.get_submodule(owner), nn.modules.batchnorm._BatchNorm)

    def sum(self, name: str, tensor: Tensor, kept: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        return tensor.detach().abs()


CHANNEL_CRITERIA: dict[str, Criterion] = {"l2": _L2, "l1": _Norm(1), "bn": _Scale(), "taylor": _Taylor()}
