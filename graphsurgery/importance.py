"""How much each channel of a space matters: one score for each channel, to be compared within the space.

Criteria are functions of a typed graph and its spaces; `CRITERIA` is the table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from graphsurgery.axes import Axis, Dim, term_size
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
    if criterion == "random":
        return {space.name: _random(space, seed) for space in spaces}
    if criterion not in CRITERIA:
        raise SurgeryError(f"importance {criterion} is unknown; choose from {', '.join(CRITERIA)}, gate, random")
    return CRITERIA[criterion](graph, spaces)


def _random(space: Space, seed: int) -> Tensor:
    place = sum((i + 1) * ord(c) for i, c in enumerate(space.name))
    generator = torch.Generator().manual_seed((place * 1_000_003 + seed) % 2**31)
    return torch.rand(space.size, generator=generator, dtype=torch.float64)


def _l1(graph: ModelGraph, spaces: Sequence[Space]) -> dict[str, Tensor]:
    return _power_sums(graph, spaces, 1)


def _l2(graph: ModelGraph, spaces: Sequence[Space]) -> dict[str, Tensor]:
    return {name: total.sqrt() for name, total in _power_sums(graph, spaces, 2).items()}


def _power_sums(graph: ModelGraph, spaces: Sequence[Space], order: int) -> dict[str, Tensor]:
    """Sum of |weight| ** order over everything with more than one axis that writes or reads a channel."""
    tensors = graph.tensors()
    vectors: dict[tuple[str, int], Tensor] = {}
    totals = {}
    for space in spaces:
        total = torch.zeros(space.size, dtype=torch.float64)
        for name, index, axis in graph.uses[space.dim]:
            tensor = tensors[name].detach()
            if tensor.dim() < 2:
                continue
            if (name, index) not in vectors:
                vectors[name, index] = _power_sum(tensor, index, order)
            total += _along(vectors[name, index], axis, space.dim)
        totals[space.name] = total
    return totals


def _power_sum(tensor: Tensor, index: int, order: int) -> Tensor:
    """Sum of |tensor| ** order over every axis but one, float64; in blocks, for the sake of caches and memory."""
    if index != 1:
        return torch.linalg.vector_norm(tensor.movedim(index, 0).flatten(1), order, dim=1).double() ** order
    matrix = tensor if tensor.dim() == 2 else torch.linalg.vector_norm(tensor.flatten(2), order, dim=2)
    total = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in matrix.split(max(1, 2**18 // matrix.shape[1])):
        total += (rows.square() if order == 2 else rows.abs()).sum(0)
    return total


def _taylor(graph: ModelGraph, spaces: Sequence[Space]) -> dict[str, Tensor]:
    tensors = graph.tensors()
    return {space.name: _taylor_of(graph, tensors, space) for space in spaces}


def _taylor_of(graph: ModelGraph, tensors: Mapping[str, Tensor], space: Space) -> Tensor:
    total = torch.zeros(space.size, dtype=torch.float64)
    for name, index, axis in graph.uses[space.dim]:
        tensor = tensors[name]
        if not isinstance(tensor, nn.Parameter):
            continue
        if tensor.grad is None:
            raise SurgeryError(f"importance taylor needs gradients: {name}.grad is None; run a backward pass first")
        change = (tensor.detach() * tensor.grad).double()
        total += _along(change.movedim(index, 0).reshape(tensor.shape[index], -1).sum(1), axis, space.dim)
    return total.abs()


def _bn(graph: ModelGraph, spaces: Sequence[Space]) -> dict[str, Tensor]:
    tensors = graph.tensors()
    scales = {space.name: _scales_of(graph, tensors, space) for space in spaces}
    weights = _l2(graph, [space for space in spaces if scales[space.name] is None])
    return {name: weights[name] if scale is None else scale for name, scale in scales.items()}


def _scales_of(graph: ModelGraph, tensors: Mapping[str, Tensor], space: Space) -> Tensor | None:
    """Sum of the |scale| of a space's BatchNorms; None where it has none."""
    total = torch.zeros(space.size, dtype=torch.float64)
    found = False
    for name, _, axis in graph.uses[space.dim]:
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and isinstance(graph.module.get_submodule(owner), nn.modules.batchnorm._BatchNorm):
            total += _along(tensors[name].detach().abs().double(), axis, space.dim)
            found = True
    return total if found else None


def _along(vector: Tensor, axis: Axis, dim: Dim) -> Tensor:
    """Sum a vector over one axis to a vector over one dim of that axis, on the CPU."""
    vector = vector.cpu()
    if axis == ((dim,),):
        return vector
    total = torch.zeros(dim.size, dtype=torch.float64)
    offset = 0
    for term in axis:
        size = term_size(term)
        if dim in term:
            before = term_size(term[: term.index(dim)])
            total += vector[offset : offset + size].reshape(before, dim.size, -1).sum((0, 2))
        offset += size
    return total


CRITERIA: dict[str, Callable[[ModelGraph, Sequence[Space]], dict[str, Tensor]]] = {
    "l2": _l2,
    "l1": _l1,
    "bn": _bn,
    "taylor": _taylor,
}
