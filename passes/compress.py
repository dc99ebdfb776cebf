"""Compress: fewer channels in every space, chosen by importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.importance import importance as score
from graphsurgery.layers import ChannelGate
from graphsurgery.maps import ChannelMap
from graphsurgery.passes.gate import bare, gain, gates, why_nothing
from graphsurgery.remap import remap

Keep = float | Mapping[str, "float | int | Sequence[int] | Tensor"]


def compress(
    graph: ModelGraph, keep: Keep = 0.5, *, importance: str = "l2", round_to: int = 1, seed: int = 0
) -> ModelGraph:
    """Remove channels; the outputs are those of the network with the removed reads masked to 0.

    Exact but for operators that mix channels (LayerNorm, softmax over channels): their spaces say so in `mixed`.
    Gates are folded into the weights that read their space, and are gone afterwards. Attention keeps its scale.

    Args:
        graph: typed network; it is not modified.
        keep: the share of channels that stays in every outer space, or, by the name of the space, a share (float), a
            number of channels (int) or the indices that stay; spaces that are not named stay whole.
        importance: which channels stay: `l2`, `l1`, `bn`, `taylor`, `gate` or `random` (see `importance`).
        round_to: numbers of channels become multiples of this where the space has as many.
        seed: for `random`.

    Raises:
        SurgeryError: a share outside (0, 1], a space that would be empty, an index outside its space, an unknown
            space or criterion, or nothing to remove.
    """
    base, opened = bare(graph), gates(graph)
    kept = {s.name: indices for s, indices in _plan(base, opened, keep, importance, round_to, seed)}
    maps = {}
    for space in base.spaces:
        indices = kept.get(space.name, torch.arange(space.size))
        share = gain(opened[space.name])[indices] if space.name in opened else None
        if share is not None or len(indices) < space.size:
            maps[space.dim] = ChannelMap(indices, share)
    sizes = {s.name: [s.size, len(kept[s.name])] for s in base.spaces if s.name in kept}
    record = {"pass": "compress", "importance": importance, "seed": seed, "sizes": sizes, "folded": len(opened)}
    return remap(base, maps, record)


def _plan(
    graph: ModelGraph, opened: Mapping[str, ChannelGate], keep: Keep, importance: str, round_to: int, seed: int
) -> list[tuple[Space, Tensor]]:
    """The indices that stay in each space that is cut."""
    if round_to < 1:
        raise SurgeryError(f"compress: round_to is {round_to}, expected at least 1")
    if isinstance(keep, Mapping):
        wanted = [(graph.space(name), request) for name, request in keep.items()]
    else:
        wanted = [(space, float(keep)) for space in graph.spaces if space.outer]
        if not wanted:
            raise SurgeryError(f"compress: no channel can be removed; {why_nothing(graph)}")
    counts = {s.name: _count(s, r, round_to) for s, r in wanted if isinstance(r, (int, float))}
    ranked = [space for space, _ in wanted if counts.get(space.name, space.size) < space.size]
    scores = _locations(ranked, opened) if importance == "gate" else score(graph, ranked, importance, seed)
    plan = []
    for space, request in wanted:
        if not isinstance(request, (int, float)):
            indices = _given(space, request)
        elif space.name in scores:
            indices = torch.topk(scores[space.name], counts[space.name]).indices.sort().values
        else:
            indices = torch.arange(space.size)
        plan.append((space, indices))
    asked_for_less = not isinstance(keep, Mapping) and keep < 1
    if asked_for_less and all(len(indices) == space.size for space, indices in plan):
        raise SurgeryError(
            f"compress: 0 channels removed from {len(plan)} spaces: keep {keep:g} rounded to multiples of {round_to}"
            " is all of each; lower keep or round_to"
        )
    return plan


def _locations(spaces: Sequence[Space], opened: Mapping[str, ChannelGate]) -> dict[str, Tensor]:
    """Scores by gate: the location of each."""
    for space in spaces:
        if space.name not in opened:
            raise SurgeryError(f"importance gate: space {space.name} has no gate; run the gate pass first")
    return {space.name: opened[space.name].loc.detach().double().cpu() for space in spaces}


def _given(space: Space, request: Sequence[int] | Tensor) -> Tensor:
    """Indices that were asked for, checked and in order."""
    indices = torch.as_tensor(request, dtype=torch.int64).sort().values
    if len(indices) == 0:
        raise SurgeryError(
            f"compress: space {space.name} would be empty; keep at least one of its {space.size} channels"
        )
    if int(indices[0]) < 0 or int(indices[-1]) >= space.size:
        raise SurgeryError(f"compress: space {space.name} has channels 0 to {space.size - 1}, got {int(indices[-1])}")
    if len(indices.unique()) != len(indices):
        raise SurgeryError(f"compress: space {space.name} would keep a channel twice; widen copies channels")
    return indices


def _count(space: Space, request: float | int, round_to: int) -> int:
    """Number of channels that stay."""
    if isinstance(request, int) and not isinstance(request, bool):
        if not 1 <= request <= space.size:
            raise SurgeryError(f"compress: space {space.name} has {space.size} channels, cannot keep {request}")
        return request
    if not 0 < request <= 1:
        raise SurgeryError(f"compress: keep is {request:g}, expected a share above 0 and at most 1")
    rounded = round(request * space.size / round_to) * round_to
    return min(space.size, max(rounded, min(round_to, space.size), 1))
