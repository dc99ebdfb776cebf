"""Relabel: the outputs of a network in the order of other classes, some of which it may not know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphsurgery.axes.algebra import Dim, dims_of, resolve
from graphsurgery.axes.maps import ChannelMap, Edit
from graphsurgery.axes.types import ParameterType, tensor_types
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.values.dtypes import holds_numbers
from graphsurgery.surgery.remapping.gathering import gather
from graphsurgery.surgery.remapping.remap import rebuild


def relabel(graph: ModelGraph, classes: Sequence[int], count: int) -> ModelGraph:
    """Let a network answer for the classes of a data set: each logit at the number of its class.

    The logit of a class that the network does not know becomes the mean of the others, which says nothing about it. So
    networks that were trained on other classes, or on the same in another order, can be merged.

    Args:
        graph: typed network of one output `[batch, logits]`; it is not modified.
        classes: for each of its logits the number of the class that it stands for, each once.
        count: how many classes there are.

    Returns:
        A new network `[batch, count]` whose logits of known classes are the same (float64: relative 1e-12).

    Raises:
        SurgeryError: the classes are not those of so many logits, one is given twice or does not exist, or the logits
            are not what a last layer writes.
    """
    opened = ModelGraph(graph.module, graph.inputs, graph.lineage, open_outputs=True)
    dim = _logits(opened)
    if len(classes) != dim.size:
        raise SurgeryError(
            f"relabel: {len(classes)} classes are given, the network has {dim.size} logits; give one each"
        )
    wrong = [c for c in classes if not 0 <= c < count]
    twice = [c for c in classes if list(classes).count(c) > 1]
    if wrong or twice:
        what = f"class {wrong[0]} does not exist" if wrong else f"class {twice[0]} is given twice"
        raise SurgeryError(f"relabel: {what}; give each logit a class of its own from 0 to {count - 1}")
    unknown = torch.tensor([c not in classes for c in range(count)])
    old = torch.tensor([list(classes).index(c) if c in classes else 0 for c in range(count)])
    if bool(unknown.any()):
        _check_linear(opened, dim)
    edit = Edit({dim: ChannelMap(old)})

    def new_tensor(typed: ParameterType, tensor: Tensor) -> Tensor:
        new = gather(edit, typed, tensor, {})
        for index, axis in enumerate(typed.axes):
            if dim in dims_of(axis) and holds_numbers(tensor):
                new.movedim(index, 0)[unknown] = tensor.mean(index)
        return new

    record = {"pass": "relabel", "classes": list(classes), "count": count}
    return rebuild(opened, edit, new_tensor, record)


def _logits(graph: ModelGraph) -> Dim:
    """The dim of the classes, which a layer writes."""
    output = next(iter(reversed(graph.module.graph.nodes)))
    given = tensor_types(graph.types.types[output])
    axis = resolve(given[0][1]) if len(given) == 1 and len(given[0]) == 2 else ()
    if len(axis) != 1 or len(axis[0]) != 1 or axis[0][0].fixed:
        shapes = [list(typed.shape) for typed in given]
        raise SurgeryError(
            f"relabel: the network gives {shapes}, expected one output [batch, logits] that a last layer writes"
        )
    return axis[0][0]


def _check_linear(graph: ModelGraph, dim: Dim) -> None:
    """A class more changes nothing but its own logit."""
    space = next((space for space in graph.spaces if space.dim is dim), None)
    if space is None or space.mixed or space.readers:
        users = (*space.mixed, *space.readers) if space else ("what follows them",)
        raise SurgeryError(f"relabel: the logits are mixed by {users[0]}, so that a class more would change the others")
