"""How much each channel of a space matters: one score for each channel, to be compared within the space.

Criteria are functions of a typed graph and a space; `SCORES` is the table of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from graphsurgery.axes import Axis, Dim, term_size
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.layers import ChannelGate


def importance(graph: ModelGraph, space: Space, criterion: str, seed: int = 0) -> Tensor:
    """Scores `[channels]` of a space, float64 on the CPU; higher matters more.

    Args:
        graph: typed network.
        space: one of its spaces.
        criterion: `l1` or `l2` of all weights that write or read a channel; `bn`, the scale of its norms, or `l2`
            where it has none; `taylor`, |weight · gradient| (Molchanov et al., "Importance estimation for neural
            network pruning", CVPR 2019); `gate`, the location of its gate; `random`.
        seed: for `random`.

    Raises:
        SurgeryError: unknown criterion, or what it needs is not there.
    """
    if criterion not in SCORES:
        raise SurgeryError(f"importance {criterion} is unknown; choose from {', '.join(SCORES)}")
    if criterion == "random":
        generator = torch.Generator().manual_seed(_stable_seed(space.name, seed))
        return torch.rand(space.size, generator=generator, dtype=torch.float64)
    return SCORES[criterion](graph, space)


def _stable_seed(name: str, seed: int) -> int:
    return (sum((i + 1) * ord(c) for i, c in enumerate(name)) * 1_000_003 + seed) % 2**31


def _l1(graph: ModelGraph, space: Space) -> Tensor:
    return _norms(graph, space, 1)


def _l2(graph: ModelGraph, space: Space) -> Tensor:
    return _norms(graph, space, 2).sqrt()


def _norms(graph: ModelGraph, space: Space, order: int) -> Tensor:
    """Sum of |weight| ** order over everything that writes or reads a channel with more than one axis."""
    total = torch.zeros(space.size, dtype=torch.float64)
    for name, index, axis in graph.uses[space.dim]:
        tensor = graph.types.tensors[name].detach()
        if tensor.dim() > 1:
            others = [i for i in range(tensor.dim()) if i != index]
            norms = torch.linalg.vector_norm(tensor, order, dim=others).double()
            total += _along(norms**order, axis, space.dim)
    return total


def _taylor(graph: ModelGraph, space: Space) -> Tensor:
    total = torch.zeros(space.size, dtype=torch.float64)
    for name, index, axis in graph.uses[space.dim]:
        tensor = graph.types.tensors[name]
        if not isinstance(tensor, nn.Parameter):
            continue
        if tensor.grad is None:
            raise SurgeryError(f"importance taylor needs gradients: {name}.grad is None; run a backward pass first")
        change = (tensor.detach() * tensor.grad).double()
        total += _along(change.movedim(index, 0).reshape(tensor.shape[index], -1).sum(1), axis, space.dim)
    return total.abs()


def _bn(graph: ModelGraph, space: Space) -> Tensor:
    total = torch.zeros(space.size, dtype=torch.float64)
    found = False
    for name, _, axis in graph.uses[space.dim]:
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and isinstance(graph.module.get_submodule(owner), nn.modules.batchnorm._BatchNorm):
            total += _along(graph.types.tensors[name].detach().abs().double(), axis, space.dim)
            found = True
    return total if found else _l2(graph, space)


def _gate(graph: ModelGraph, space: Space) -> Tensor:
    gate = gate_of(graph, space)
    if gate is None:
        raise SurgeryError(f"importance gate: space {space.name} has no gate; run the gate pass first")
    return gate.loc.detach().double().cpu()


def gate_of(graph: ModelGraph, space: Space) -> ChannelGate | None:
    """The `ChannelGate` of a space, if it has one."""
    for name, _, axis in graph.uses[space.dim]:
        if name.endswith(".loc") and axis == ((space.dim,),):
            module = graph.module.get_submodule(name.removesuffix(".loc"))
            return module if isinstance(module, ChannelGate) else None
    return None


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


SCORES: dict[str, Callable[[ModelGraph, Space], Tensor]] = {
    "l2": _l2,
    "l1": _l1,
    "bn": _bn,
    "taylor": _taylor,
    "gate": _gate,
    "random": _l2,
}
