"""Where copies of channels are counted without a weight: factors in front, and norms whose members count by shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis, Dim
from graphsurgery.axes.kept import Moved, keep_size, reading, settle
from graphsurgery.axes.maps import ChannelMap, Edit, Lifted, MapInGroups
from graphsurgery.axes.types import Mixing, TensorType
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.aliasing import versions
from graphsurgery.surgery.editor import weighed
from graphsurgery.surgery.equivalents.grouping import PLAIN, group, groups_of, power_of
from graphsurgery.surgery.growth.shares import keeps_size, without_place
from graphsurgery.surgery.remapping.gathering import gather
from graphsurgery.surgery.remapping.remap import folded, follow, rebuild, remap


def remap_weighed(
    graph: ModelGraph, maps: Mapping[Dim, ChannelMap | MapInGroups], record: Mapping[str, Any]
) -> ModelGraph:
    """As `remap`; where a space with shares is read without a weight, a factor stands in front of the reader.

    Raises:
        SurgeryError: it is read where no factor can stand.
    """
    if all(known.share is None for known in maps.values()):
        return remap(graph, maps, record)
    edit, scaled = Edit(maps), folded(graph)
    found = without_place(graph)
    for space in graph.spaces:
        known = maps.get(space.dim)
        if known is not None and known.share is not None and space.dim in found:
            raise SurgeryError(f"space {space.name}: {found[space.dim]}, so its shares cannot be folded into a reader")
    new = rebuild(graph, edit, lambda typed, tensor: gather(edit, typed, tensor, scaled.get(typed.name, {})), record)
    weigh_reads(graph, new, edit)
    return follow(graph, new, edit)


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
        share = None if access.weighted else edit.share(access.axis)
        if share is None or access.value is None:
            continue
        reader, value = reading(nodes[access.node.name], nodes[access.value.name])
        key = (value.name, written[access.node][access.value], access.dim)
        if key not in made:
            made[key] = weighed(wide, reader, value, access.dim, _once(edit, access.axis, share))
        reader.replace_input_with(value, made[key])


def weigh_mixings(graph: ModelGraph, wide: ModelGraph, even: Edit) -> None:
    """Let every operator that mixes copied channels count each by its share, in place; see `shares.WEIGHED`.

    Where all of the channels that it mixes have as many copies, a norm is exact as it is, and stays. The members of a
    grouped norm have been brought up to date with the tensors.
    """
    nodes = {node.name: node for node in wide.module.graph.nodes}
    for mixing in graph.types.mixings:
        lifted = even.lift(mixing.axis)
        if lifted is None or lifted.share is None or mixing.dim is None:
            continue
        node, share = nodes[mixing.node.name], lifted.share
        if mixing.kind in ("mean", "sum", "norm", "cosine_similarity"):
            old = _old_size(mixing)
            share = _once(even, mixing.axis, share * (len(share) / old) if mixing.kind == "mean" else share)
            _weigh_reduction(wide, node, mixing, share)
        elif mixing.kind in PLAIN:
            whole = even.lift(graph.types.types[mixing.node][mixing.dim])
            assert whole is not None
            assert whole.share is not None
            if not _alike(wide, node, mixing.kind, whole.share):
                group(wide, node, mixing.kind, whole.share)


def _once(edit: Edit, axis: Axis, share: Tensor) -> Tensor:
    """The shares of what is inside an axis whose outermost factor stays: that may be the batch, of any size."""
    terms = ax.resolve(axis)
    inside = len(terms) == 1 and len(terms[0]) > 1 and terms[0][0].fixed
    return share[: edit.size((terms[0][1:],))] if inside else share


def keep_mixings(graph: ModelGraph, wide: ModelGraph, edit: Edit) -> None:
    """Let what would change with copies mix as many channels as there were, in place; see `shares.keeps_size`.

    The copies are summed by their shares in front of it; where it gives channels, each copy gets its own.
    """
    nodes = {node.name: node for node in wide.module.graph.nodes}
    for mixing in graph.types.mixings:
        if keeps_size(mixing):
            assert mixing.dim is not None
            for number, source in enumerate(mixing.node.all_input_nodes):
                typed = graph.types.types[source]
                whole = isinstance(typed, TensorType) and len(typed) > mixing.dim
                if whole and (lifted := edit.lift(typed[mixing.dim])) is not None:
                    size = ax.size_of(typed[mixing.dim])
                    _sum_copies(graph, wide, nodes[mixing.node.name], mixing, number, (lifted, size))
    settle(wide.module.graph)


def _sum_copies(
    graph: ModelGraph, wide: ModelGraph, node: fx.Node, mixing: Mixing, number: int, change: tuple[Lifted, int]
) -> None:
    """Do so with one operand of an operator, and with what it gives if that is the first one."""
    assert mixing.dim is not None
    (lifted, size), value, given = change, node.all_input_nodes[number], graph.types.types[mixing.node]
    moved = Moved(mixing.dim % value.meta["value"].dim(), lifted.source, size, same=True)
    read = cast("TensorType", graph.types.types[mixing.node.all_input_nodes[0]])
    # As many numbers need not be the same channels: distances to as many points as a vector has numbers are others.
    follows = isinstance(given, TensorType) and given.shape == read.shape
    follows = follows and ax.resolve(given[moved.dim]) == ax.resolve(read[moved.dim])
    if lifted.share is not None:
        product = weighed(wide, node, value, moved.dim, lifted.share)
        node.replace_input_with(value, product)
        value = product
    shape = list(node.meta["value"].shape) if follows and number == 0 else []
    if shape:
        shape[moved.dim] = size
    keep_size(node, value, [moved], [moved] if shape else [], shape)


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


def _alike(wide: ModelGraph, node: fx.Node, kind: str, share: Tensor) -> bool:
    """Whether all channels that are normalised together count the same, so that a norm is what it was."""
    if kind == "normalize":
        return power_of(wide, node) == float("inf")
    groups = share.reshape(groups_of(wide, node, kind), -1)
    return bool((groups == groups[:, :1]).all())
