"""Concatenate: N trained networks of one topology become one whose outputs are the mean of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from graphsurgery.axes.algebra import resolve
from graphsurgery.axes.types import ParameterType, TensorType
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.records import ends
from graphsurgery.network.paths import place_of
from graphsurgery.surgery.merging.apart import keep_apart, names_apart
from graphsurgery.surgery.merging.direct_sum import SumLayout, layout
from graphsurgery.surgery.merging.groups import count_groups, in_groups
from graphsurgery.surgery.merging.side_by_side import MatchedTeachers
from graphsurgery.surgery.remapping.remap import rebuild


def concatenate(graphs: Sequence[ModelGraph]) -> ModelGraph:
    """Put teachers side by side: weights become block diagonal, the read into the outputs is averaged.

    The zeros between the blocks are ordinary parameters: training connects the streams. All four vectors of every
    BatchNorm are carried; a LayerNorm, a GroupNorm of one group and a division by a norm over channels keep each
    teacher's own statistics, as a grouped norm. Grouped convolutions and attention get the teachers' groups and heads
    side by side.

    What no single operator can hold side by side is computed once for each teacher, on slices: a product or a softmax
    over channels, a statistic of them, a weight that all channels share, what bends a mean that was taken at a frozen
    axis, groups or heads of unlike sizes. The results are put side by side again; where such a computation reads or
    writes channels, each teacher's are a space of their own. The lineage names the nodes (`apart`).

    Args:
        graphs: two or more typed networks of the same topology; widths may differ. They are not modified.

    Returns:
        A new network; in evaluation mode its outputs are the mean of the teachers' outputs (float64: relative 1e-12).

    Raises:
        SurgeryError: topologies, inputs or classes differ, or an output holds indices or flags, which have no mean.

    Source: Pašen & Boža, "Merging of neural networks", arXiv:2204.09973, section 3.1.
    """
    _require_several(graphs)
    family = MatchedTeachers([in_groups(g) for g in graphs])
    if not layout(family, first=True).apart:
        return _direct_sum(family, graphs)
    opened = MatchedTeachers([in_groups(replace(g, open_outputs=True)) for g in graphs])
    if not layout(opened, first=True).apart and _can_be_averaged(opened):
        new = _direct_sum(opened, graphs)
        _average_outputs(opened, new)
        return new
    return _direct_sum(family, graphs, layout(family))


def side_by_side(graphs: Sequence[ModelGraph]) -> ModelGraph:
    """Put teachers side by side as `concatenate` does, and keep all of their outputs.

    So teachers of different tasks become one network, whose last layer is theirs side by side and reads all channels.

    Args:
        graphs: two or more typed networks of the same topology, but for the number of their classes; widths may differ.
            They are not modified.

    Returns:
        A new network; in evaluation mode it gives the teachers' outputs in a tuple (float64: relative 1e-12).

    Raises:
        SurgeryError: topologies or inputs differ, or the outputs are in a named tuple or a dataclass.
    """
    _require_several(graphs)
    family = MatchedTeachers([in_groups(replace(g, open_outputs=True)) for g in graphs], agree=False)
    return _direct_sum(family, graphs, layout(family, each=True), each=True)


def _require_several(graphs: Sequence[ModelGraph]) -> None:
    if len(graphs) < 2:
        raise SurgeryError(f"concatenate: needs at least two networks, got {len(graphs)}")
    for each in graphs:
        each.check_values("concatenate")


def _direct_sum(
    family: MatchedTeachers, graphs: Sequence[ModelGraph], found: SumLayout | None = None, *, each: bool = False
) -> ModelGraph:
    """The networks of a family in one; `found` says what has to be computed for each of them."""
    first = family.graphs[0]
    record: dict[str, Any] = {
        "pass": "concatenate",
        "teachers": [[dict(r) for r in g.lineage] for g in graphs],
        "channels": {s.name: [family.dim_size(t, s.dim) for t in range(len(graphs))] for s in first.spaces if s.outer},
    }
    own = set() if found is None else names_apart(first, found)

    def new_tensor(typed: ParameterType, old: Tensor) -> Tensor:
        return old.clone() if typed.name in own else family.direct_sum(typed, old)

    new = rebuild(first, family, new_tensor, None, frozenset() if found is None else frozenset(found.apart))
    count_groups(new)
    if found is not None:
        record["apart"] = [place_of(node) for node in found.apart]
        keep_apart(family, found, new, each=each)
    new.module.recompile()
    return ModelGraph(new.module, new.inputs, (record,))


def _can_be_averaged(family: MatchedTeachers) -> bool:
    """Whether the networks' outputs stand side by side on axes that have a part of one size for each network."""
    first = family.graphs[0]
    found = ends(first.module.graph)
    for node in dict.fromkeys(source for end in found for source in end.all_input_nodes if source not in found):
        typed = first.types.types[node]
        if not isinstance(typed, TensorType) or sum(map(family.is_summed, typed.axes)) > 1:
            return False
        for axis in filter(family.is_summed, typed.axes):
            sizes = {family.own_size(teacher, axis) for teacher in range(len(family.graphs))}
            if len(resolve(axis)) > 1 or len(resolve(axis)[0]) > 1 or len(sizes) > 1:
                return False
    return True


def _average_outputs(family: MatchedTeachers, new: ModelGraph) -> None:
    """Where something that is not linear follows the last weights, the streams stay apart up to the outputs."""
    first = family.graphs[0]
    old_ends, new_ends = (ends(g.module.graph) for g in (first, new))
    copies = {node.name: node for node in new.module.graph.nodes}
    for node in dict.fromkeys(source for end in old_ends for source in end.all_input_nodes if source not in old_ends):
        for index, axis in enumerate(first.types.types[node].axes):
            if not family.is_summed(axis):
                continue
            sizes = (len(family.graphs), family.own_size(0, axis))
            source = copies[node.name]
            with new.module.graph.inserting_after(source):
                apart = new.module.graph.call_method("unflatten", (source, index, sizes))
            with new.module.graph.inserting_after(apart):
                mean = new.module.graph.call_method("mean", (apart, index))
            for end in new_ends:
                end.replace_input_with(source, mean)
            apart.meta["value"] = source.meta["value"].unflatten(index, sizes)
            mean.meta["value"] = apart.meta["value"].mean(index)
    new.module.recompile()
