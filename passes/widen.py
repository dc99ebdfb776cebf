"""Widen: more channels in every space, which copy what is there and keep what the network computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from graphsurgery.axes.algebra import Dim, resolve
from graphsurgery.axes.maps import ChannelMap, Edit
from graphsurgery.axes.types import ParameterType
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Origin, Space
from graphsurgery.network.layers import weigh
from graphsurgery.surgery.gates import has_gates, why_nothing
from graphsurgery.surgery.growth.fresh_weights import next_layers, padded
from graphsurgery.surgery.growth.shares import copies, even_shares, first_of_each, inverse, obstacles, uneven_shares
from graphsurgery.surgery.growth.weighted import keep_mixings, weigh_mixings, weigh_reads
from graphsurgery.surgery.merging.matching import match_dims, match_nodes, match_parameters
from graphsurgery.surgery.remapping.gathering import gather
from graphsurgery.surgery.remapping.remap import folded, follow, rebuild

INITS = ("unequal", "equal", "equal+noise", "random-pad", "next")
EXACT = ("unequal", "equal")


def widen(
    graph: ModelGraph,
    by: float | None = None,
    *,
    to: Mapping[str, int | float] | None = None,
    like: ModelGraph | None = None,
    init: str = "unequal",
    noise: float = 0.05,
    round_to: int = 1,
    seed: int = 0,
) -> ModelGraph:
    """Add channels; with the first two of `INITS` the outputs are the same to rounding.

    In training mode they are too, but for dropout, which draws for each copy.

    Every space grows to any size. Norms across channels (LayerNorm, GroupNorm, RMSNorm, `F.normalize`) and means count
    copies by their shares, and stay as they are where every channel has as many copies. Attention keeps its scale;
    where a space is summed over without a weight (the size of heads), a factor is put in front. What would change with
    copies, such as a softmax over channels, or means an order of them, computes at the old size: the copies are summed
    up in front of it.

    Args:
        graph: typed network; it is not modified.
        by: factor on the size of every outer space, at least 1; spaces whose copies would change the network stay.
        to: by the name of a space, the new number of channels (int) or a factor (float); it prevails over `by`.
        like: instead of both, a network of the same topology that has the sizes, such as a wider model of a family.
        init: what the new channels are. `unequal`: copies that are read by unequal shares, so that training takes them
            apart; `equal`: by equal shares, so that they stay alike; `equal+noise`: the same, and noise on what reads
            the copies; `next`: copies that read as the next layer of that shape does (AKI), not exact; `random-pad`:
            fresh ones beside the old, as a control.
        noise: for `equal+noise`, its standard deviation as a share of that of the weights.
        round_to: sizes that follow from a factor become multiples of this, rounded up.
        seed: says which channels are copied more often, and draws what is drawn.

    Raises:
        SurgeryError: a size below what a space has, an unknown space or init, a space that copies would change, a
            gated network, networks of other topology, or nothing to widen.

    Source: Chen, Goodfellow, Shlens, "Net2Net", arXiv:1511.05641, section 2 (widening); Wang et al., "LEMON", ICLR
    2024 (unequal shares); Chen et al., "bert2BERT", ACL 2022, section 3.3 (AKI).
    """
    _check(graph, by, to, like, init, noise, round_to)
    stays = obstacles(graph)
    sizes = _sizes_like(graph, like) if like is not None else _sizes(graph, by, to or {}, round_to, stays)
    sizes = _growing(graph, sizes, stays)
    generator = torch.Generator().manual_seed(seed)
    sources = {space: copies(space.size, new, generator) for space, new in sizes.items()}
    record = {
        "pass": "widen",
        "init": init,
        "seed": seed,
        "sizes": {space.name: [space.size, new] for space, new in sizes.items()},
        "kept": {s.name: stays[s.dim] for s in graph.spaces if s.dim in stays and s.outer},
    }
    even = Edit({space.dim: ChannelMap(source, even_shares(source)) for space, source in sources.items()})
    if init == "unequal":
        edit = Edit({s.dim: ChannelMap(c, uneven_shares(c, generator)) for s, c in sources.items()})
    else:
        edit = even
    if init == "random-pad":
        return padded(graph, Edit({s.dim: ChannelMap(c) for s, c in sources.items()}), record, seed)
    wide = _widened(graph, edit, even, record)
    if init == "equal+noise":
        _disturb(graph, wide, edit, noise, generator)
    if init == "next":
        next_layers(graph, wide, edit)
    return wide


def _growing(graph: ModelGraph, sizes: Mapping[Space, int], stays: Mapping[Dim, str]) -> dict[Space, int]:
    """The spaces that become larger, which all of them can."""
    growing = {space: new for space, new in sizes.items() if new != space.size}
    for space, new in growing.items():
        if new < space.size:
            raise SurgeryError(
                f"widen: space {space.name} has {space.size} channels, cannot become {new}; compress removes channels"
            )
        if space.dim in stays:
            raise SurgeryError(f"widen: space {space.name} cannot grow: {stays[space.dim]}")
    if not growing:
        raise SurgeryError(f"widen: no space would grow; {_why_none(graph, stays)}")
    return growing


def _widened(graph: ModelGraph, edit: Edit, even: Edit, record: Mapping[str, Any]) -> ModelGraph:
    """The network whose channels are copies, by the shares of `edit`; norms count by those of `even`."""
    scaled = folded(graph)

    def grown(typed: ParameterType, tensor: Tensor) -> Tensor:
        new = gather(edit, typed, tensor, scaled.get(typed.name, {}))
        lifted = even.lift(typed.axes[0]) if typed.counts else None
        return new if lifted is None or lifted.share is None else weigh(new, 0, lifted.share.to(new))

    wide = rebuild(graph, edit, grown, record)
    weigh_reads(graph, wide, edit)
    weigh_mixings(graph, wide, even)
    keep_mixings(graph, wide, edit)
    wide.module.graph.lint()
    wide.module.recompile()
    return follow(graph, ModelGraph(wide.module, wide.inputs, wide.lineage), edit)


def undo(wide: ModelGraph) -> ModelGraph:
    """The network that one was widened from: of every channel the first copy, read by what all copies were read by.

    Exact to rounding while the weights are those that `widen` gave; a norm that counts by shares stays one.

    Args:
        wide: what `widen` returned, with an exact init.

    Raises:
        SurgeryError: it was not widened in this process, or by an init that is not exact.
    """
    origin, record = wide.origin, wide.lineage[-1] if wide.lineage else {}
    if origin is None or record.get("pass") != "widen" or record["init"] not in EXACT:
        raise SurgeryError(f"undo: the network is not what widen made by {' or '.join(EXACT)} shares")
    maps = {
        new: known
        for dim, known in origin.edit.maps.items()
        if isinstance(known, ChannelMap)
        for new in _now(wide, origin, dim)
    }
    even = {dim: ChannelMap(known.source, even_shares(known.source)) for dim, known in maps.items()}
    back, evenly = (Edit({dim: inverse(known) for dim, known in edit.items()}) for edit in (maps, even))
    return _widened(wide, back, evenly, {"pass": "undo widen"})


def _now(wide: ModelGraph, origin: Origin, dim: Dim) -> list[Dim]:
    """What a space has become: the spaces that stand in its places in the axes of parameters, else that of its name.

    Where something computes at the old size, what is in front of it and what is behind may have come apart.
    """
    found: dict[Dim, None] = {}
    for name, typed in origin.parameters.items():
        now = wide.types.parameters.get(name)
        for old, new in zip(typed.axes, now.axes if now is not None else (), strict=False):
            terms = resolve(old), resolve(new)
            if list(map(len, terms[0])) == list(map(len, terms[1])):
                pairs = zip(*(chain.from_iterable(side) for side in terms), strict=True)
                found |= dict.fromkeys(after for before, after in pairs if before is dim and not after.fixed)
    return list(found) or [wide.space(origin.spaces[dim]).dim]


def _disturb(graph: ModelGraph, wide: ModelGraph, edit: Edit, noise: float, generator: torch.Generator) -> None:
    """Add noise to the weights that read copies, but not to those that read the first of each, in place."""
    tensors = wide.tensors()
    for access in graph.types.readers:
        if not access.weighted or access.weight is None:
            continue
        lifted = edit.lift(access.axis)
        if lifted is None:
            continue
        name, index = access.weight
        weight = tensors[name]
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        again = (~first_of_each(lifted.source)).double()
        with torch.no_grad():
            weight += (weigh(drawn, index, again) * noise).to(weight) * weight.std()


def _sizes(
    graph: ModelGraph, by: float | None, to: Mapping[str, int | float], round_to: int, stays: Mapping[Dim, str]
) -> dict[Space, int]:
    """The new size of every space that is asked for."""
    sizes: dict[Space, int] = {}
    if by is not None:
        for space in graph.spaces:
            if space.outer and space.dim not in stays:
                sizes[space] = _grown(space, by, round_to)
    for name, request in to.items():
        space = graph.space(name)
        sizes[space] = request if isinstance(request, int) else _grown(space, request, round_to)
    return sizes


def _grown(space: Space, factor: float, round_to: int) -> int:
    """A size times a factor, in multiples of `round_to`."""
    if not 1 <= factor < math.inf:
        raise SurgeryError(f"widen: space {space.name} by {factor:g} would shrink; compress removes channels")
    size = round(space.size * factor)
    return size if size == space.size else -(-size // round_to) * round_to


def _sizes_like(graph: ModelGraph, like: ModelGraph) -> dict[Space, int]:
    """The sizes that the spaces of a network of the same topology have."""
    try:
        dims = match_dims(graph, like, match_parameters(graph, like, match_nodes(graph, like, 2)))
    except SurgeryError as cause:
        raise SurgeryError(f"widen: the network and its pattern do not match: {cause}") from cause
    sizes = {space: dims[space.dim].size for space in graph.spaces if space.dim in dims}
    smaller = [space for space, size in sizes.items() if size < space.size]
    if smaller:
        names = ", ".join(f"{space.name} {space.size} to {sizes[space]}" for space in smaller[:3])
        raise SurgeryError(f"widen: the pattern has fewer channels in {len(smaller)} spaces ({names}); see compress")
    return sizes


def _check(
    graph: ModelGraph,
    by: float | None,
    to: Mapping[str, int | float] | None,
    like: ModelGraph | None,
    init: str,
    noise: float,
    round_to: int,
) -> None:
    if has_gates(graph):
        raise SurgeryError("widen: this network has gates; fold or compress it first")
    if init not in INITS:
        raise SurgeryError(f"widen: init is {init!r}; choose from {', '.join(INITS)}")
    if like is not None and (by is not None or to):
        raise SurgeryError("widen: like gives all sizes; leave out by and to")
    if like is None and by is None and not to:
        raise SurgeryError("widen: nothing says how wide; give by, to or like")
    if by is not None and not 1 <= by < math.inf:
        raise SurgeryError(f"widen: by is {by:g}, expected at least 1; compress removes channels")
    if not isinstance(round_to, int) or round_to < 1:
        raise SurgeryError(f"widen: round_to is {round_to}, expected a whole number from 1")
    if not noise >= 0:
        raise SurgeryError(f"widen: noise is {noise:g}, expected a share of the weights' deviation")


def _why_none(graph: ModelGraph, stays: Mapping[Dim, str]) -> str:
    """What keeps all spaces as they are."""
    outer = [space for space in graph.spaces if space.outer]
    if not outer:
        return why_nothing(graph)
    held = [f"{space.name}: {stays[space.dim]}" for space in outer if space.dim in stays]
    return "; ".join(held[:3]) if len(held) == len(outer) else "the factor rounds to the sizes that they have"
