"""Prune dead: channels that carry nothing go, and the constants that they give move into what reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from graphsurgery.axes.algebra import Axis, Dim, resolve
from graphsurgery.axes.maps import ChannelMap, Edit
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.network.paths import modules_of
from graphsurgery.surgery.gates import has_gates
from graphsurgery.surgery.masks.dead_channels import Read, Readings, blocks
from graphsurgery.surgery.remapping.remap import rebuild, remap


def prune_dead(graph: ModelGraph) -> ModelGraph:
    """Remove channels whose weights are all 0; in evaluation mode the outputs are the same (float64: relative 1e-10).

    A channel goes where no weight that reads it is other than 0, or where it is constant: nothing that varies with the
    input writes it, through whatever norms and activations stand between. What a constant adds to a reader goes into
    the reader's bias, which is made where there is none. Where that cannot be (zero padding, a reader without a place
    for a bias), one constant channel stays and stands for all others, whose weights it gets in proportion. What goes
    makes more go: the network is searched until nothing is found.

    Spaces that an operator mixes or that are read without a weight stay, and every space keeps a channel.

    Args:
        graph: typed network, masked (see `mask`) or otherwise with weights of 0; it is not modified.

    Raises:
        SurgeryError: the network has gates.

    Source: the removal of dead units of Frankle & Carbin's masks, which their code leaves out; constants as in onnx's
    constant folding, channel by channel.
    """
    if has_gates(graph):
        raise SurgeryError("prune_dead: this network has gates; fold or compress it first")
    graph.check_values("prune_dead")
    small, folded = rebuild(graph, Edit({}), lambda _, tensor: tensor.clone()), 0
    while found := _removals(small, readings := Readings(small)):
        folded += sum(removal.constant for removal in found)
        small = _removed(small, readings, found)
    sizes = {space.name: space.size for space in small.spaces}
    record = {
        "pass": "prune dead",
        "sizes": {space.name: [space.size, sizes[space.name]] for space in graph.spaces if space.name in sizes},
        "constants": folded,
    }
    return replace(small, lineage=(*graph.lineage, record), origin=None)


@dataclass(frozen=True)
class _Removal:
    """What goes of a space.

    Attributes:
        space: its name.
        gone: which of its channels, booleans.
        carrier: the channel that stands for those whose constants go into no bias.
        constant: how many of the channels give a constant other than 0 that was read.
    """

    space: str
    gone: Tensor
    carrier: int | None
    constant: int


def _removals(graph: ModelGraph, readings: Readings) -> list[_Removal]:
    """What can go at once; spaces that stand in one product with others that go wait for the next search."""
    found: list[_Removal] = []
    waiting: set[Dim] = set()
    beside = _beside(graph.types.axes())
    for space in graph.spaces:
        removal = None if space.dim in waiting else _of(space, readings)
        if removal is not None:
            found.append(removal)
            waiting |= beside.get(space.dim, set())
    return found


def _of(space: Space, readings: Readings) -> _Removal | None:
    """What can go of a space; None where that is nothing, or cannot be told."""
    if space.mixed or not space.scalable or not space.readers or space.size < 2:
        return None
    reads = [readings.read(access, space.dim) for access in readings.of.get(space.dim, [])]
    if not reads or any(read is None for read in reads):
        return None
    seen = [read for read in reads if read is not None]
    everywhere = torch.ones(space.size, dtype=torch.bool)
    constant, direct = everywhere.clone(), everywhere.clone()
    for read in seen:
        constant &= read.silent | read.constant
        direct &= read.silent | (read.constant if readings.takes_bias(read, space.dim) else ~everywhere)
    carrier, carried = _carrier(readings, seen, space.dim, constant & ~direct)
    gone = direct | carried
    if gone.all():
        gone[0] = False
    if not gone.any():
        return None
    spoken = torch.stack([~read.silent for read in seen]).any(0)
    return _Removal(space.name, gone, carrier, int((gone & spoken).sum()))


def _carrier(readings: Readings, reads: list[Read], dim: Dim, carried: Tensor) -> tuple[int | None, Tensor]:
    """The channel that stands for others, and which: at every reader that hears them, they are multiples of it.

    The reader's weight must be its own, so that it can take what the others had.
    """
    nothing = torch.zeros_like(carried)
    best: tuple[int | None, Tensor] = (None, nothing)
    for carrier in carried.nonzero().flatten().tolist():
        able = carried.clone()
        able[carrier] = False
        for read in reads:
            ratio = readings.ratios(read.access, dim, carrier)
            able &= read.silent | (torch.isfinite(ratio) if ratio is not None else nothing)
        if int(able.sum()) > int(best[1].sum()):
            best = (carrier, able)
        if int(able.sum()) == int(carried.sum()) - 1:
            break
    return best


def _removed(graph: ModelGraph, readings: Readings, removals: list[_Removal]) -> ModelGraph:
    """The network without these channels, whose constants its readers have."""
    base = rebuild(graph, Edit({}), lambda _, tensor: tensor.clone())
    modules, tensors = modules_of(base.module), base.tensors()
    for removal in removals:
        dim = graph.space(removal.space).dim
        for access in readings.of[dim]:
            read = readings.read(access, dim)
            assert read is not None
            assert access.weight is not None
            spoken = removal.gone & ~read.silent
            if not spoken.any():
                continue
            if readings.takes_bias(read, dim):
                added = readings.bias_of(access, dim, spoken)
                _add_bias(modules[str(access.node.target)], added)
                continue
            assert removal.carrier is not None
            ratio = readings.ratios(access, dim, removal.carrier)
            assert ratio is not None
            name, index = access.weight
            places = blocks(graph.types.parameters[name].axes[index], dim)
            _carry(tensors[name].movedim(index, 0), places, removal.carrier, torch.where(spoken, ratio, 0.0))
    maps = {base.space(r.space).dim: ChannelMap((~r.gone).nonzero().flatten()) for r in removals}
    return remap(base, maps, {"pass": "prune dead"})


def _carry(rows: Tensor, blocks: Iterator[Tensor], carrier: int, ratio: Tensor) -> None:
    """Give the weights that read one channel those of others, each times its ratio, in place."""
    with torch.no_grad():
        for places in blocks:
            taken = torch.tensordot(ratio, rows[places].double().cpu(), 1)
            rows[places[carrier]] += taken.to(rows)


def _add_bias(module: nn.Module, added: Tensor) -> None:
    """Add to a layer's bias, in place; make it where there is none."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    if bias is None:
        module.bias = nn.Parameter(added.to(weight), requires_grad=weight.requires_grad)
        return
    assert isinstance(bias, Tensor)
    with torch.no_grad():
        bias.copy_(bias.double() + added.to(bias.device))


def _beside(axes: list[Axis]) -> dict[Dim, set[Dim]]:
    """The free dims that stand in one product with each."""
    found: dict[Dim, set[Dim]] = {}
    for axis in axes:
        for term in resolve(axis):
            free = [dim for dim in term if not dim.fixed]
            for dim in free if len(free) > 1 else ():
                found.setdefault(dim, set()).update(free)
    return found
