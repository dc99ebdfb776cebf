"""Gate: one stochastic hard-concrete gate for every channel of every space, on what is read."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from graphsurgery.axes.algebra import Dim, dims_of, resolve, term_size
from graphsurgery.axes.maps import ChannelMap, Edit
from graphsurgery.axes.rules.movement import RESHAPES
from graphsurgery.axes.types import TensorType, is_inside
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.network.aliasing import versions
from graphsurgery.network.gated_layers import GATED
from graphsurgery.network.layers import ChannelGate, scale_axis
from graphsurgery.network.operators import spelled
from graphsurgery.network.values.evaluation import values_for
from graphsurgery.surgery.gates import bare, gain, gates, has_gates, why_nothing
from graphsurgery.surgery.growth.shares import without_place
from graphsurgery.surgery.growth.weighted import remap_weighed
from graphsurgery.surgery.remapping.remap import rebuild

_CUTS = frozenset(spelled("split"))
"""What gives pieces of one tensor."""


def gate(graph: ModelGraph, spaces: Sequence[str] | None = None, *, loc: float = 1.0, seed: int = 0) -> ModelGraph:
    """Put a gate in front of every weight that reads a space; with all gates open the outputs are the same.

    A gate in front of a normalisation is undone by it, so what is gated is what a weight reads, `W (f · g) + b`,
    after the last norm and activation. All reads of a space share one gate and, in one forward pass, one mask sample
    for each example. What a recurrent layer or cell reads of its own states, its gates are given for: the columns of
    the weight that reads them are scaled, so that in one forward pass the whole batch has one mask of such a space.

    Args:
        graph: typed network; it is not modified.
        spaces: names of the spaces to gate; by default every outer space whose readers have weights and read tensors
            that hold the batch as an axis of its own. Where no reader has a weight of its own (it is tied, or
            computed), what is read otherwise is gated too, and `fold` leaves a factor in front of the reader.
        loc: mean of the gates' initial location; each is drawn with standard deviation 0.01. In evaluation a gate at 1,
            where training begins, is open to about 0.78; at 50 it is open, and the outputs are those of the network.
        seed: draws the locations.

    Returns:
        A new network whose gates are the submodules `gates.*`.

    Raises:
        SurgeryError: a name is not a space, a space has no reader with weights, it is read where the batch is merged
            with other axes, the network is gated already, or nothing can be gated.

    Source: Pašen & Boža, "Merging of neural networks", arXiv:2204.09973, section 3.2; Louizos et al., ICLR 2018.
    """
    if has_gates(graph):
        raise SurgeryError("gate: this network has gates already; fold or compress it first")
    batches = _batch_axes(graph)
    inside = _read_inside(graph)
    chosen = _choose(graph, spaces, _ungateable(graph, batches, inside))
    new = rebuild(graph, Edit({}), lambda _, t: t.clone(), {"pass": "gate", "spaces": len(chosen), "seed": seed})
    nodes = {node.name: node for node in new.module.graph.nodes}
    generator = torch.Generator().manual_seed(seed)
    reference = next(iter(new.module.graph.nodes))
    like = next(p for p in graph.module.parameters() if p.is_floating_point())
    masks: dict[Dim, fx.Node] = {}
    paths: set[str] = set()
    for space in chosen:
        channel_gate = ChannelGate(space.size, space.name, shared=space.dim in inside).to(like)
        noise = torch.randn(space.size, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            channel_gate.loc.copy_(loc + 0.01 * noise)
        channel_gate.training = graph.module.training
        path = f"gates.{space.name.replace('.', '_').replace(':', '_')}"
        while path in paths or hasattr(new.module, path):
            path += "_"
        paths.add(path)
        new.module.add_submodule(path, channel_gate)
        with new.module.graph.inserting_after(reference):
            masks[space.dim] = new.module.graph.call_module(path, (reference,))
        batch = reference.meta["value"].shape[0]
        masks[space.dim].meta["value"] = torch.empty((batch, space.size), dtype=like.dtype, device="meta")
    _scale_reads(graph, nodes, masks, batches, inside)
    _scale_inside(graph, new.module, nodes, masks)
    new.module.graph.lint()
    new.module.recompile()
    return ModelGraph(new.module, new.inputs, new.lineage)


def gateable(graph: ModelGraph) -> list[Space]:
    """The spaces that `gate` gates by default."""
    return _by_default(graph, _ungateable(graph, _batch_axes(graph), _read_inside(graph)))


def _by_default(graph: ModelGraph, merged: Mapping[Dim, str]) -> list[Space]:
    """The spaces whose gates go into weights; where there are none, those whose gates stand in front of readers."""
    read = [s for s in graph.spaces if s.chosen and s.readers and s.dim not in merged]
    held = without_place(graph)
    return [s for s in read if s.scalable] or [s for s in read if s.dim not in held]


def _choose(graph: ModelGraph, names: Sequence[str] | None, merged: Mapping[Dim, str]) -> list[Space]:
    if names is None:
        chosen = _by_default(graph, merged)
        if not chosen:
            cause = "every read merges the batch with other axes" if merged else _why_none(graph)
            raise SurgeryError(f"gate: no space can be gated; {cause}")
        return chosen
    chosen = [graph.space(name) for name in names]
    for space in chosen:
        if not space.readers:
            raise SurgeryError(f"gate: nothing reads space {space.name} with weights")
        if space.dim in merged:
            raise SurgeryError(
                f"gate: {merged[space.dim]} reads space {space.name} where the batch is no axis of its own, so examples"
                " cannot have gates of their own; leave the space out"
            )
    return chosen


def _why_none(graph: ModelGraph) -> str:
    """Why there is no space that a gate could stand in front of every reader of."""
    read = [f"{s.name} is read by {', '.join(s.readers)}" for s in graph.spaces if s.readers and not s.scalable]
    return f"{'; '.join(read[:3])}, which no gate reaches" if read else why_nothing(graph)


def _read_inside(graph: ModelGraph) -> set[Dim]:
    """The dims that a layer reads of itself, by weights that serve the whole batch."""
    return {dim for access in graph.types.readers if is_inside(access) for dim in dims_of(access.axis)}


def _ungateable(graph: ModelGraph, batches: Mapping[str, BatchAxis | None], inside: Set[Dim]) -> dict[Dim, str]:
    """The dims that are read where an example has no place of its own, with the reader.

    What no example has a part in (a position bias that is computed from constants) is gated once for the whole batch;
    but not where the same channels are also read example by example. What is read inside has one mask everywhere.
    """
    places: dict[Dim, set[bool]] = {}
    found: dict[Dim, str] = {}
    for access in graph.types.readers:
        if access.value is None:
            continue
        for dim in set(dims_of(access.axis)) - inside:
            place = batches.get(access.value.name)
            places.setdefault(dim, set()).add(place is None)
            beside = place is not None and place.axis == access.dim  # channels of all examples on one axis
            if access.value.name not in batches or beside or len(places[dim]) > 1:
                found.setdefault(dim, access.node.name)
    return found


class BatchAxis(NamedTuple):
    """The axis of a tensor that holds the batch, and how many entries it has for each example."""

    axis: int
    inner: int


def _batch_axes(graph: ModelGraph) -> dict[str, BatchAxis | None]:
    """The axis that holds the batch in the tensor of every node, None where none does; by a batch of another size.

    A node is left out where it cannot be told.
    """
    graph.types  # noqa: B018  (gives every node its value, also where the network comes from a file)
    old = graph.batch
    new = 2 * old + 1
    try:
        larger = values_for(
            graph.module, [torch.empty(spec.sizes(new), dtype=spec.dtype, device="meta") for spec in graph.inputs]
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise SurgeryError(f"gate: the network does not take a batch of {new}: {one_line(error)}") from error
    found: dict[str, BatchAxis | None] = {}
    for node, other in larger.items():
        value = node.meta["value"]
        if not isinstance(value, Tensor) or value.dim() != other.dim():
            continue
        changed = [i for i, sizes in enumerate(zip(value.shape, other.shape, strict=True)) if sizes[0] != sizes[1]]
        if not changed:
            found[node.name] = None
        if len(changed) != 1:
            continue
        axis = changed[0]
        inner, rest = divmod(value.shape[axis], old)
        if rest or other.shape[axis] != inner * new:
            continue
        if inner == 1 or _is_outermost(node, axis, inner, found):
            found[node.name] = BatchAxis(axis, inner)
    return found


def _is_outermost(node: fx.Node, axis: int, inner: int, found: Mapping[str, BatchAxis | None]) -> bool:
    """Whether an axis that is the batch times something (windows, heads) has the batch on the outside.

    A reshape keeps the order of elements, so the batch stays outermost where as many elements lie before it; every
    other operator hands on the axis that it is given.
    """
    given = [part for source in node.all_input_nodes for part in _cut_from(source)]
    known = [(source, place) for source in given if (place := found.get(source.name)) is not None]
    if not known:
        return False
    source, place = known[0]
    if isinstance(node.target, Hashable) and node.target in RESHAPES:
        before, after = source.meta["value"].shape[: place.axis], node.meta["value"].shape[:axis]
        return math.prod(before) == math.prod(after)
    return any(place.inner == inner for _, place in known)


def _cut_from(source: fx.Node) -> list[fx.Node]:
    """What a node reads: of the pieces of one tensor that tensor, else what it is given."""
    return source.all_input_nodes if source.target in _CUTS else [source]


def _scale_reads(
    graph: ModelGraph,
    nodes: dict[str, fx.Node],
    masks: dict[Dim, fx.Node],
    batches: Mapping[str, BatchAxis | None],
    inside: Set[Dim],
) -> None:
    """Put a scale between every read value and its readers; readers of one value share it.

    A value that is written in place between two reads is scaled anew.
    """
    scaled: dict[tuple[str, int, int, frozenset[Dim]], fx.Node] = {}
    written = versions(graph.module)
    for access in graph.types.readers:
        gated = frozenset(dim for term in resolve(access.axis) for dim in term if dim in masks)
        if not gated or access.value is None:
            continue
        typed = graph.types.types[access.value]
        assert isinstance(typed, TensorType)
        reader, value = nodes[access.node.name], nodes[access.value.name]
        key = (value.name, written[access.node][access.value], access.dim, gated)
        if key not in scaled:
            parts = tuple(_part(term, gated, masks) for term in resolve(typed[access.dim]))
            with reader.graph.inserting_before(reader):
                place = None if gated <= inside else batches[access.value.name]
                options: dict[str, Any] = {"batch": None if place is None else place.axis}
                if place is not None and place.inner > 1:
                    options["merged"] = True
                scaled[key] = reader.graph.call_function(scale_axis, (value, access.dim, parts), options)
            scaled[key].meta["value"] = value.meta["value"]
        reader.replace_input_with(value, scaled[key])


def _scale_inside(
    graph: ModelGraph, module: fx.GraphModule, nodes: dict[str, fx.Node], masks: dict[Dim, fx.Node]
) -> None:
    """Give the layers that read themselves the masks, for the columns of the weights that do."""
    found: dict[fx.Node, dict[str, Any]] = {}
    for access in graph.types.readers:
        gated = frozenset(dim for dim in dims_of(access.axis) if dim in masks)
        if gated and is_inside(access):
            parts = tuple(_part(term, gated, masks) for term in resolve(access.axis))
            found.setdefault(access.node, {}).update(dict.fromkeys(graph.types.names_of(access), parts))
    for node, gates_of in found.items():
        layer = module.get_submodule(str(node.target))
        layer.__class__ = GATED.get(type(layer), type(layer))
        nodes[node.name].update_kwarg("gates", gates_of)


def _part(term: tuple[Dim, ...], gated: frozenset[Dim], masks: dict[Dim, fx.Node]) -> tuple[Any, int, int]:
    found = [i for i, dim in enumerate(term) if dim in gated]
    if not found:
        return None, 1, term_size(term)
    if len(found) > 1:
        raise SurgeryError("gate: a term is gated through two of its dims; choose one of the two spaces")
    return masks[term[found[0]]], term_size(term[: found[0]]), term_size(term[found[0] + 1 :])


def fold(graph: ModelGraph) -> ModelGraph:
    """Multiply every gate's deterministic value into the weights that read its space, and drop the gates.

    A reader without a weight of its own gets a factor in front. In evaluation the outputs are the same to rounding.
    """
    graph.check_values("fold")
    base = bare(graph)
    maps = {}
    for name, module in gates(graph).items():
        space = base.space(name)
        maps[space.dim] = ChannelMap(torch.arange(space.size), gain(module))
    return remap_weighed(base, maps, {"pass": "fold gates"})
