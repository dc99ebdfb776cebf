"""Operators that compute at the size that an axis had, whatever surgery makes of it.

To some operators the order of the indices of an axis means something, or how many there are: a sum in order, a Fourier
transform, a norm over several axes. They have one exact form at every width. What they read is spread to its old
places, with 0 where an index is gone and the sum of its copies where there are several; they compute at the old size;
of what they give, the indices that are left are picked. So a cut is the network with the removed reads masked, as it is
everywhere, copies change nothing, and neither does the order of channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis
from graphsurgery.axes.findings import Findings
from graphsurgery.axes.maps import Edit
from graphsurgery.axes.types import Resize, TensorType
from graphsurgery.errors import SurgeryError
from graphsurgery.network.layers import pick, spread, weigh
from graphsurgery.network.operators import is_in_place
from graphsurgery.network.paths import place_of
from graphsurgery.network.values.dtypes import holds_numbers

Rounds = tuple[tuple[int, ...], ...]
_INSTEAD = "is read instead"
"""What marks, until `settle`, the node whose value goes to the readers of another, with that and its value."""


class Moved(NamedTuple):
    """Where the indices of an axis of a tensor come from.

    Attributes:
        dim: the number of the axis.
        source: the old index of each new one.
        size: how many there were.
        same: of what a node gives, whether they are the channels that it reads there.
    """

    dim: int
    source: Tensor
    size: int
    same: bool = False


def computes_at_size(
    infer: Findings, reason: str, input: TensorType, dims: Iterable[int], gives: Mapping[int, Axis] | None = None
) -> None:
    """Say that the node reads axes of its first operand in order, at the size that they have.

    Args:
        infer: at the node.
        reason: what the axes are; said where they have to be frozen, as the node writes over what it reads.
        input: the type of the operand.
        dims: the numbers of the axes.
        gives: what the node gives along its own axes that follow surgery, by their numbers.
    """
    node, rank = infer.node, len(input)
    free = sorted({dim % rank for dim in dims if not ax.is_fixed(input[dim])})
    if not free:
        return
    value = node.args[0] if node.args else node.kwargs.get("input")
    given: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), given.append)
    if not isinstance(value, fx.Node) or given.count(value) > 1 or is_in_place(node.target):
        infer.freeze_axis(reason, *(input[dim] for dim in free))
        return
    if _is_whole(value.meta["value"]):
        infer.freeze_axis(f"{reason}, of whole numbers, which have no shares", *(input[dim] for dim in free))
        return
    for dim in free:
        infer.reads(value, dim, input[dim], None, 0)

    follows = gives or {}
    outputs = [follows.get(dim, ax.fixed(n)) for dim, n in enumerate(infer.value.shape)] if follows else []

    def keep(copy: fx.Node, new: Resize) -> None:
        source = copy.args[0] if copy.args else copy.kwargs["input"]
        assert isinstance(source, fx.Node)
        read = [moved for dim in free if (moved := _moved(copy, input.axes, dim, new))]
        given = [
            moved._replace(same=dim < rank and follows[dim] is input[dim])
            for dim in follows
            if (moved := _moved(copy, outputs, dim, new))
        ]
        shape = [
            ax.size_of(axis) if dim in follows else new.size(axis)
            for dim, axis in enumerate(infer.types[node].axes if given else ())
        ]
        keep_size(copy, source, read, given, shape)

    infer.on_rebuild(keep)


def _is_whole(value: Any) -> bool:
    """Whether a value is a tensor of whole numbers; flags are none."""
    return isinstance(value, Tensor) and not holds_numbers(value) and value.dtype != torch.bool


def _moved(node: fx.Node, axes: Sequence[Axis], dim: int, new: Resize) -> Moved | None:
    """What becomes of an axis; None where it stays."""
    size = ax.size_of(axes[dim])
    if not isinstance(new, Edit):
        if new.size(axes[dim]) != size:
            raise SurgeryError(f"{place_of(node)}: reads {size} channels in order, which has no form in this edit")
        return None
    lifted = new.lift_in(axes, dim)
    if lifted is not None and lifted.beside is not None:
        raise SurgeryError(
            f"{place_of(node)}: reads channels in order, and every group would keep others; choose the same in each"
        )
    return None if lifted is None else Moved(dim, lifted.source, size)


def keep_size(
    node: fx.Node, value: fx.Node, read: Sequence[Moved], given: Sequence[Moved], shape: Sequence[int]
) -> None:
    """Let a node compute at the old sizes of some axes, in place; `settle` lets its readers read what is picked.

    Args:
        node: what computes.
        value: what it reads.
        read: the axes of that value that have changed.
        given: those axes of what the node gives.
        shape: of what it gives at the old sizes; not asked for where nothing is picked.
    """
    graph, source = node.graph, value
    with graph.inserting_before(node):
        for moved in read:
            rounds = rounds_of(moved.source, moved.size)
            source = _new(graph, source, moved.dim, moved.size, spread, (source, moved.dim, rounds))
        node.replace_input_with(value, source)
    assert not any(_INSTEAD in picking.meta for picking in _picks(node))  # it is kept once, and then settled
    last = node
    for moved in given:
        with graph.inserting_after(last):
            picked = (last, moved.dim, tuple(moved.source.tolist()), *([value] if moved.same else []))
            last = _new(graph, last, moved.dim, len(moved.source), pick, picked)
    if given:
        last.meta[_INSTEAD] = node, _meta(node, shape)


def settle(graph: fx.Graph) -> None:
    """Let those that read a node which computes at an old size read what is picked of it, in place."""
    for last in [node for node in graph.nodes if _INSTEAD in node.meta]:
        node, whole = last.meta.pop(_INSTEAD)
        own = _back_to(node, last)
        node.replace_all_uses_with(last, delete_user_cb=lambda user, own=own: user not in own)
        value = whole
        for picking in _picks(node):
            node.meta["value"] = value
            sizes = list(value.shape)
            _, dim, places, *_ = cast("tuple[Any, ...]", picking.args)
            sizes[dim] = len(places)
            node, value = picking, torch.empty(sizes, dtype=value.dtype, device="meta")
        node.meta["value"] = value


def _picks(node: fx.Node) -> list[fx.Node]:
    """The nodes that pick of what a node gives, one of what the other has picked."""
    found: list[fx.Node] = []
    while picking := next((user for user in node.users if user.target is pick and user.args[0] is node), None):
        found.append(picking)
        node = picking
    return found


def _back_to(node: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes that pick one of what the other has picked, from the last to the first, which picks of a node."""
    found = [last]
    while (before := found[-1].args[0]) is not node:
        assert isinstance(before, fx.Node)
        found.append(before)
    return found


def reading(node: fx.Node, value: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Where a value is read for a node, and what is read there: it may be spread, weighed, or picked from before."""
    for candidate in (value, *_picks(value)):
        reader = node
        while candidate not in reader.all_input_nodes and reader.all_input_nodes[0].target in (spread, weigh):
            reader = reader.all_input_nodes[0]
        if candidate in reader.all_input_nodes:
            return reader, candidate
    raise AssertionError(f"{node.name} does not read {value.name}")


def _new(graph: fx.Graph, like: fx.Node, dim: int, size: int, function: Any, args: Any) -> fx.Node:
    """A new node, whose value is that of another one but for the size of one axis."""
    sizes = list(like.meta["value"].shape)
    sizes[dim] = size
    new = graph.call_function(function, args)
    new.meta["value"] = _meta(like, sizes)
    return new


def _meta(like: fx.Node, sizes: Sequence[int]) -> Tensor:
    return torch.empty(list(sizes), dtype=like.meta["value"].dtype, device="meta")


def rounds_of(source: Tensor, size: int) -> Rounds:
    """The new index of the first copy of each of `size` old ones, then of the second; see `layers.spread`."""
    places: list[list[int]] = [[] for _ in range(size)]
    for new, old in enumerate(source.tolist()):
        places[old].append(new)
    return tuple(
        tuple(found[k] if len(found) > k else -1 for found in places) for k in range(max(1, *map(len, places)))
    )


def source_of(rounds: Sequence[Sequence[int]]) -> Tensor:
    """The old index of each new one, which rounds lead back to."""
    found = {new: old for places in rounds for old, new in enumerate(places) if new >= 0}
    return torch.tensor([found[new] for new in range(len(found))])
