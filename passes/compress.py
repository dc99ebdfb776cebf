"""Compress: fewer channels in every space, chosen by importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from graphsurgery.axes.algebra import Dim
from graphsurgery.axes.maps import ChannelMap, MapInGroups
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.network.layers import ChannelGate
from graphsurgery.surgery.channels.choice import Choices, Scored
from graphsurgery.surgery.channels.importance import Scores
from graphsurgery.surgery.channels.planning import CutPlan, Price, Request
from graphsurgery.surgery.channels.targets import Target, parse_target
from graphsurgery.surgery.gates import bare, gain, gates, why_nothing
from graphsurgery.surgery.growth.weighted import remap_weighed

Keep = float | Mapping[str, Request]
EVERY = "*"


def compress(
    graph: ModelGraph,
    keep: Keep | None = None,
    *,
    target: Target | str | None = None,
    within: str = "groups",
    importance: str | Scored = "l2",
    round_to: int = 1,
    seed: int = 0,
    price: Price | None = None,
) -> ModelGraph:
    """Remove channels; the outputs are those of the network with the removed reads masked to 0.

    Exact but for operators that mix channels (LayerNorm, softmax over channels, GroupNorm inside a group): their spaces
    say so in `mixed`. Gates are folded into the weights that read their space, and are gone afterwards. Attention keeps
    its scale.

    Args:
        graph: typed network; it is not modified.
        keep: the share of channels (float) that stays in every outer space; or, by the name of the space, a share
            (float), a number of channels (int) or the indices that stay, of a space inside groups also `[groups,
            kept]`. The name `*` stands for all outer spaces that are not named, with a share; without it they stay
            whole. By default a half, where there is no target.
        target: what the result may cost at most: `params=0.5x`, `macs=300M`, `size=4MB`, `width=0.75`, or a `Target`.
            The sizes of the outer spaces are searched; those of the spaces that `keep` names stay fixed.
        within: how outer spaces that have others inside are cut, and spaces inside groups that are named: `groups`,
            whole groups (and the same channels in each group where a space inside is named); `same`, the same channels
            in each group; `each`, others in each group, where every tensor tells its groups; `best`, `groups` or
            `each`, whichever keeps the more important channels.
        importance: which channels stay: `l2`, `l1`, `bn`, `taylor`, `gate` or `random` (see `importance`); or scores of
            this very network, where they are known.
        round_to: numbers of channels become multiples of this where the space has as many.
        seed: for `random`.
        price: what a target counts, of the sizes of spaces by name; for `latency`, in nanoseconds.

    Raises:
        SurgeryError: a share outside (0, 1], a space that would be empty, an index outside its space, an unknown
            space or criterion, a target that cannot be reached, or nothing to remove.
    """
    share, named = _asked(keep, target)
    base, opened = bare(graph), gates(graph)
    if isinstance(importance, str):
        scores: Scored = _GateScores(opened) if importance == "gate" else Scores(base, importance, seed)
    else:
        scores = importance
    plan = CutPlan(base, Choices(base, scores, alike=list(opened)), named, within, round_to)
    if not (plan.is_open or named) and (share is not None or target is not None):
        raise SurgeryError(f"compress: no channel can be removed; {why_nothing(graph)}")
    record: dict[str, Any] = {"pass": "compress", "importance": scores.criterion, "seed": seed, "folded": len(opened)}
    if target is not None:
        record["target"] = plan.meet(parse_target(target) if isinstance(target, str) else target, price)
    elif share is not None:
        plan.share(share)
        if not (opened or plan.removes):
            raise SurgeryError(
                f"compress: 0 channels removed from {len(plan.sizes)} spaces: keep {share:g} rounded to multiples of "
                f"{round_to} is all of each; lower keep or round_to"
            )
    return remap_weighed(base, _maps(base, plan, opened), record | plan.as_dict())


def _maps(graph: ModelGraph, plan: CutPlan, opened: Mapping[str, ChannelGate]) -> dict[Dim, ChannelMap | MapInGroups]:
    """What stays of each space, with the gates folded in."""
    gains = {name: gain(module) for name, module in opened.items()}
    maps: dict[Dim, ChannelMap | MapInGroups] = {
        graph.space(name).dim: ChannelMap(torch.arange(len(share)), share) for name, share in gains.items()
    }
    for space, channel_map in plan.maps():
        if isinstance(channel_map, ChannelMap) and space.name in gains:
            channel_map = replace(channel_map, share=gains[space.name][channel_map.source])
        maps[space.dim] = channel_map
    return maps


def _asked(keep: Keep | None, target: Target | str | None) -> tuple[float | None, dict[str, Request]]:
    """The share that all outer spaces keep, if any, and what single spaces keep."""
    if keep is None:
        return (0.5 if target is None else None), {}
    named: dict[str, Request] = dict(keep) if isinstance(keep, Mapping) else {EVERY: keep}
    share = named.pop(EVERY, None)
    if isinstance(share, int):
        raise SurgeryError(
            f"compress: keep for all spaces is {share!r}, which for a space is a number of channels; give a share"
            " such as 0.5, or name the spaces"
        )
    if share is not None and target is not None:
        raise SurgeryError("compress: keep and target exclude each other; besides a target, keep can only name spaces")
    if share is not None and not isinstance(share, float | int):
        raise SurgeryError(f"compress: keep for all spaces is {share!r}, expected a share")
    return share, named


class _GateScores:
    """Scores by gate: what is open, rising with its location."""

    comparable = True
    criterion = "gate"

    def __init__(self, opened: Mapping[str, ChannelGate]) -> None:
        self._opened = opened

    def of(self, space: Space, outers: Sequence[Dim] = ()) -> Tensor:
        """Above 0; the same in every group, since a gate is."""
        if space.name not in self._opened:
            raise SurgeryError(f"importance gate: space {space.name} has no gate; run the gate pass first")
        location = self._opened[space.name].loc.detach().double().cpu()
        score = torch.logaddexp(location, torch.zeros_like(location))
        return score.expand(sum(dim.size for dim in outers), -1) if outers else score
