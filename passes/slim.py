"""Slim: the most important channels of every space come first."""

from __future__ import annotations

from graphsurgery.axes.maps import ChannelMap
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.surgery.channels.importance import Scores
from graphsurgery.surgery.gates import has_gates, why_nothing
from graphsurgery.surgery.remapping.remap import remap


def slim(graph: ModelGraph, *, importance: str = "l2", seed: int = 0) -> ModelGraph:
    """Put the channels of every outer space in the order of their importance; the outputs are the same.

    A narrower network has the first channels (`slimming.Slimmable`), so that it begins with what matters most.

    Args:
        graph: typed network; it is not modified.
        importance: `l2`, `l1`, `bn`, `taylor` or `random`; see `importance`.
        seed: for `random`.

    Raises:
        SurgeryError: an unknown criterion, a gated network, or no space.

    Source: sorting before training as in Cai et al., "Once-for-all", ICLR 2020, section 3.3.
    """
    if has_gates(graph):
        raise SurgeryError("slim: this network has gates; fold or compress it first")
    scores = Scores(graph, importance, seed)
    maps = {}
    for space in graph.spaces:
        if space.chosen:
            order = scores.of(space).argsort(descending=True, stable=True)
            maps[space.dim] = ChannelMap(order.cpu())
    if not maps:
        raise SurgeryError(f"slim: no space can be slimmed; {why_nothing(graph)}")
    return remap(graph, maps, {"pass": "slim", "importance": importance, "seed": seed})
