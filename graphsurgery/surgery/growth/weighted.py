"""Where copies of channels are counted without a weight: factors in front, and norms that count by shares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from graphsurgery.axes.maps import Edit
from graphsurgery.axes.types import Mixing
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.aliasing import versions
from graphsurgery.network.layers import (
    SegmentedLayerNorm,
    segmented_layer_norm,
    segmented_normalize,
    weighted_group_norm,
    weighted_instance_norm,
    weighted_rms_norm,
)
from graphsurgery.surgery.editor import call_instead, new_buffer, setting, vector, weighed


def weigh_reads(graph: ModelGraph, wide: ModelGraph, edit: Edit) -> None:
    """Put the shares in front of every read that has no weight to fold them into, in place.

    Args:
        graph: the network before it was widened.
        wide: after; its nodes have the same names.
        edit: what was done.
    """
    nodes = {node.name: node for node in wide.module.graph.nodes}
    written = versions(graph.module)
    made: dict[tuple[str, int, int], fx.Node] = {}
    for access in graph.types.readers:
        lifted = edit.lift(access.axis) if not access.weighted else None
        if lifted is None or lifted.share is None or access.value is None:
            continue
        reader, value = nodes[access.node.name], nodes[access.value.name]
        key = (value.name, written[access.node][access.value], access.dim)
        if key not in made:
            made[key] = weighed(wide, reader, value, access.dim, lifted.share)
        reader.replace_input_with(value, made[key])


def weigh_mixings(graph: ModelGraph, wide: ModelGraph, even: Edit) -> None:
    """Let every operator that mixes copied channels count each by its share, in place; see `shares.WEIGHED`.

    Where all of the channels that it mixes have as many copies, a norm is exact as it is, and stays.
    """
    nodes = {node.name: node for node in wide.module.graph.nodes}
    for mixing in graph.types.mixings:
        lifted = even.lift(mixing.axis)
        if lifted is None or lifted.share is None or mixing.dim is None:
            continue
        node, share = nodes[mixing.node.name], lifted.share
        if mixing.kind in ("mean", "sum", "norm", "cosine_similarity"):
            old = _old_size(mixing)
            _weigh_reduction(wide, node, mixing, share * (len(share) / old) if mixing.kind == "mean" else share)
        elif mixing.kind in _NORMS and not _counts_already(graph, mixing.node):
            typed = graph.types.types[mixing.node]
            whole = even.lift(typed[mixing.dim])
            assert whole is not None
            assert whole.share is not None
            if not _alike(wide, node, mixing.kind, whole.share):
                _NORMS[mixing.kind](wide, node, whole.share)


def _old_size(mixing: Mixing) -> int:
    """How many indices a reduction had."""
    return int(mixing.node.all_input_nodes[0].meta["value"].shape[mixing.dim])


def _weigh_reduction(wide: ModelGraph, node: fx.Node, mixing: Mixing, share: Tensor) -> None:
    """Put factors in front of an operator that reduces an axis."""
    assert mixing.dim is not None
    if mixing.kind == "norm":
        given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", node.kwargs.get("ord"))
        power = 2.0 if given in (None, "fro") else given
        if not isinstance(power, (int, float)) or power <= 0:
            raise SurgeryError(f"widen: {node.name} is a norm of order {power}, whose copies cannot be weighed")
        share = torch.ones_like(share) if power == float("inf") else share ** (1 / power)
    if mixing.kind == "cosine_similarity":
        share = share.sqrt()
    sources = node.all_input_nodes if mixing.kind == "cosine_similarity" else node.all_input_nodes[:1]
    for value in sources:
        node.replace_input_with(value, weighed(wide, node, value, mixing.dim, share))


def _counts_already(graph: ModelGraph, node: fx.Node) -> bool:
    """Whether a norm has shares, which the edit has brought up to date."""
    types = graph.types
    return any(
        source.op == "get_attr"
        and str(source.target) in types.canonical
        and types.parameters[types.canonical[str(source.target)]].counts
        for source in node.all_input_nodes
    )


def _alike(wide: ModelGraph, node: fx.Node, kind: str, share: Tensor) -> bool:
    """Whether all channels that are normalised together count the same, so that their mean is what it was."""
    if kind in ("normalize", "segmented_normalize"):
        return False
    if kind == "group_norm":
        parts = list(share.reshape(setting(wide, node, "num_groups", 1), -1))
    else:
        segments, groups = _segments(wide, node, len(share))
        numbers = torch.arange(len(segments)) if groups is None else torch.tensor(groups)
        owner = numbers.repeat_interleave(torch.tensor(segments))
        parts = [share[owner == number] for number in numbers.unique()]
    return all(bool((part == part[0]).all()) for part in parts)


def _segments(wide: ModelGraph, node: fx.Node, size: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The segments that a norm normalises by themselves, and their groups; one that knows none has one."""
    if node.op == "call_module":
        module = wide.module.get_submodule(str(node.target))
        return (module.segments, module.groups) if isinstance(module, SegmentedLayerNorm) else ((size,), None)
    if node.target is segmented_normalize:
        given: Any = node.kwargs
        return tuple(given["segments"]), given.get("groups")
    if node.target is segmented_layer_norm:
        return setting(wide, node, "segments", 1), setting(wide, node, "groups", 5)
    return (size,), None


def _layer_norm(wide: ModelGraph, node: fx.Node, share: Tensor) -> None:
    segments, groups = _segments(wide, node, len(share))
    value = node.all_input_nodes[0]
    eps = setting(wide, node, "eps", 4, 1e-5)
    with node.graph.inserting_before(node):
        vectors = [vector(wide, node, name, position) for name, position in (("weight", 2), ("bias", 3))]
        shares = new_buffer(wide, f"{node.name}_shares", share)
    call_instead(node, segmented_layer_norm, (value, segments, *vectors, eps, groups, shares))


def _rms_norm(wide: ModelGraph, node: fx.Node, share: Tensor) -> None:
    value = node.all_input_nodes[0]
    with node.graph.inserting_before(node):
        weight = vector(wide, node, "weight", 2)
        shares = new_buffer(wide, f"{node.name}_shares", share)
    call_instead(node, weighted_rms_norm, (value, shares, weight, setting(wide, node, "eps", 3)))


def _group_norm(wide: ModelGraph, node: fx.Node, share: Tensor) -> None:
    value = node.all_input_nodes[0]
    groups, eps = setting(wide, node, "num_groups", 1), setting(wide, node, "eps", 4, 1e-5)
    with node.graph.inserting_before(node):
        vectors = [vector(wide, node, name, position) for name, position in (("weight", 2), ("bias", 3))]
        shares = new_buffer(wide, f"{node.name}_shares", share)
    call_instead(node, weighted_group_norm, (value, groups, shares, *vectors, eps))


def _instance_norm(wide: ModelGraph, node: fx.Node, share: Tensor) -> None:
    value = node.all_input_nodes[0]
    vectors = [vector(wide, node, name, position) for name, position in (("weight", 3), ("bias", 4))]
    with node.graph.inserting_before(node):
        shares = new_buffer(wide, f"{node.name}_shares", share)
    call_instead(node, weighted_instance_norm, (value, shares, *vectors, setting(wide, node, "eps", 7, 1e-5)))


def _normalize(wide: ModelGraph, node: fx.Node, share: Tensor) -> None:
    value = node.all_input_nodes[0]
    segments, groups = _segments(wide, node, len(share))
    p, dim = (setting(wide, node, name, place, default) for name, place, default in (("p", 1, 2.0), ("dim", 2, 1)))
    eps = setting(wide, node, "eps", 3, 1e-12)
    with node.graph.inserting_before(node):
        shares = new_buffer(wide, f"{node.name}_shares", share)
    call_instead(
        node, segmented_normalize, (value, p, dim, eps), {"segments": segments, "groups": groups, "shares": shares}
    )


_NORMS = {
    "layer_norm": _layer_norm,
    "segmented_layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "normalize": _normalize,
    "segmented_normalize": _normalize,
}
