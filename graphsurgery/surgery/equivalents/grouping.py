"""Norms across channels as `grouped_norm`, whose members say who is normalised with whom, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.layers import grouped_norm
from graphsurgery.surgery.editor import call_instead, new_buffer, setting, vector


@dataclass(frozen=True)
class _Plain:
    """How a norm of torch is called, and what it is as a grouped norm.

    Attributes:
        vectors: the positions of weight and bias, in a call.
        eps: the position of eps, and its default.
        options: those of the grouped norm.
    """

    vectors: tuple[int, ...]
    eps: tuple[int, float | None]
    options: Mapping[str, Any] = field(default_factory=dict)


PLAIN = MappingProxyType(
    {
        "layer_norm": _Plain((2, 3), (4, 1e-5)),
        "rms_norm": _Plain((2,), (3, None), {"centred": False}),
        "group_norm": _Plain((2, 3), (4, 1e-5), {"dim": 1, "positions": True}),
        "instance_norm": _Plain((3, 4), (7, 1e-5), {"dim": 2, "affine": 1}),
        "normalize": _Plain((), (3, 1e-12)),
    }
)
"""The norms of torch that mix channels, by the kind of the mixing."""


def groups_of(graph: ModelGraph, node: fx.Node, kind: str) -> int:
    """How many groups of channels a norm of torch has."""
    count = setting(graph, node, "num_groups", 1) if kind == "group_norm" else 1
    return int(count.meta["value"] if isinstance(count, fx.Node) else count)


def power_of(graph: ModelGraph, node: fx.Node) -> float:
    """The order of the norm that a normalize divides by.

    Raises:
        SurgeryError: it is not above 0.
    """
    power = setting(graph, node, "p", 1, 2.0)
    if not isinstance(power, (int, float)) or power <= 0:
        raise SurgeryError(f"{node.name} divides by a norm of order {power}, expected one above 0")
    return float(power)


def group(graph: ModelGraph, node: fx.Node, kind: str, counts: Tensor) -> None:
    """Let a norm of torch be a grouped norm with the same groups, in place.

    Args:
        graph: the network; its module is to be compiled again.
        node: calls the norm.
        kind: of the mixing, a key of `PLAIN`.
        counts: how much each channel counts, `[channels]`; ones change nothing.

    Raises:
        SurgeryError: it divides by something that is no norm.
    """
    plain, groups = PLAIN[kind], groups_of(graph, node, kind)
    options = {**plain.options, "eps": setting(graph, node, "eps", *plain.eps)}
    if groups > 1:
        options["blocks"] = True
    if kind == "normalize":
        options |= {"dim": setting(graph, node, "dim", 2, 1), "power": power_of(graph, node)}
    members = torch.eye(groups, dtype=torch.float64).repeat_interleave(len(counts) // groups, 0)
    value = node.all_input_nodes[0]
    with node.graph.inserting_before(node):
        names = zip(("weight", "bias"), plain.vectors, strict=False)
        vectors = [vector(graph, node, name, position) for name, position in names]
        buffer = new_buffer(graph, f"{node.name}_members", members * counts.to(members).unsqueeze(1))
    call_instead(node, grouped_norm, (value, buffer, *vectors), options)
