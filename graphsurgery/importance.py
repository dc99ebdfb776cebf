"""How much each channel of a space matters: one score for each channel, to be compared within the space.

Criteria are functions of a typed graph and a space; `SCORES` is the table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from graphsurgery.axes import Axis, Dim, resolve, term_size
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
    return _sum(space, ((_along(w.abs(), i, axis, space.dim)) for w, i, axis in _matrices(graph, space)))


def _l2(graph: ModelGraph, space: Space) -> Tensor:
    return _sum(space, ((_along(w.square(), i, axis, space.dim)) for w, i, axis in _matrices(graph, space))).sqrt()


def _taylor(graph: ModelGraph, space: Space) -> Tensor:
    scores: list[Tensor] = []
    for name, typed in graph.types.parameters.items():
        tensor = graph.types.tensors[name]
        for index, axis in _axes_with(typed.axes, space.dim):
            if not isinstance(tensor, nn.Parameter):
                continue
            if tensor.grad is None:
                raise SurgeryError(f"importance taylor needs gradients: {name}.grad is None; run a backward pass first")
            scores.append(_along((tensor.detach() * tensor.grad).double(), index, axis, space.dim))
    return _sum(space, iter(scores)).abs()


def _bn(graph: ModelGraph, space: Space) -> Tensor:
    scores: list[Tensor] = []
    for name, typed in graph.types.parameters.items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and len(typed.axes) == 1 and owner:
            if not isinstance(graph.module.get_submodule(owner), nn.modules.batchnorm._BatchNorm):
                continue
            scale = graph.types.tensors[name].detach().abs().double().cpu()
            scores.extend(_along(scale, 0, axis, space.dim) for _, axis in _axes_with(typed.axes, space.dim))
    return _sum(space, iter(scores)) if scores else _l2(graph, space)


def _gate(graph: ModelGraph, space: Space) -> Tensor:
    gate = gate_of(graph, space)
    if gate is None:
        raise SurgeryError(f"importance gate: space {space.name} has no gate; run the gate pass first")
    return gate.loc.detach().double().cpu()


def gate_of(graph: ModelGraph, space: Space) -> ChannelGate | None:
    """The `ChannelGate` of a space, if it has one."""
    for name, typed in graph.types.parameters.items():
        if name.endswith(".loc") and len(typed.axes) == 1 and resolve(typed.axes[0]) == ((space.dim,),):
            module = graph.module.get_submodule(name.removesuffix(".loc"))
            return module if isinstance(module, ChannelGate) else None
    return None


def _matrices(graph: ModelGraph, space: Space) -> Iterator[tuple[Tensor, int, Axis]]:
    """Every weight with more than one axis that writes or reads the space, with the axis where it does."""
    for name, typed in graph.types.parameters.items():
        tensor = graph.types.tensors[name]
        if tensor.dim() < 2:
            continue
        for index, axis in _axes_with(typed.axes, space.dim):
            yield tensor.detach().double(), index, axis


def _axes_with(axes: tuple[Axis, ...], dim: Dim) -> Iterator[tuple[int, Axis]]:
    for index, axis in enumerate(axes):
        resolved = resolve(axis)
        if any(dim in term for term in resolved):
            yield index, resolved


def _along(tensor: Tensor, index: int, axis: Axis, dim: Dim) -> Tensor:
    """Sum a tensor over everything but one dim of one of its axes; `[dim.size]` on the CPU."""
    vector = tensor.movedim(index, 0).flatten(1).sum(1) if tensor.dim() > 1 else tensor
    total = torch.zeros(dim.size, dtype=torch.float64)
    offset = 0
    for term in axis:
        size = term_size(term)
        if dim in term:
            before = term_size(term[: term.index(dim)])
            total += vector[offset : offset + size].reshape(before, dim.size, -1).sum((0, 2)).double().cpu()
        offset += size
    return total


def _sum(space: Space, scores: Iterator[Tensor]) -> Tensor:
    total = torch.zeros(space.size, dtype=torch.float64)
    for score in scores:
        total += score
    return total


SCORES: dict[str, Callable[[ModelGraph, Space], Tensor]] = {
    "l2": _l2,
    "l1": _l1,
    "bn": _bn,
    "taylor": _taylor,
    "gate": _gate,
    "random": _l2,
}
