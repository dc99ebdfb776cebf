"""Prune dead: channels that carry nothing go, and the constants that they give move into what reads them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from graphsurgery.axes import Axis, Dim, dims_of, resolve, term_size
from graphsurgery.constants import Constants, constants, hides_border, response
from graphsurgery.errors import SurgeryError
from graphsurgery.facts import Access, TensorType, modules_of
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.layers import weigh
from graphsurgery.maps import ChannelMap, Edit
from graphsurgery.passes.gate import has_gates
from graphsurgery.remap import rebuild, remap

_BIASED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
    small, folded = rebuild(graph, Edit({}), lambda _, tensor: tensor.clone()), 0
    while found := (search := _Search(small)).removals():
        folded += sum(removal.constant for removal in found)
        small = search.removed(found)
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
        carried: those channels.
        constant: how many of the channels give a constant other than 0 that was read.
    """

    space: str
    gone: Tensor
    carrier: int | None
    carried: Tensor
    constant: int


class _Read(NamedTuple):
    """How one reader sees the channels of a space: which it ignores, and which give it 0, or a constant."""

    access: Access
    unread: Tensor
    zero: Tensor
    constant: Tensor


class _Search:
    """Dead channels of one network."""

    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.known: Constants = constants(graph)
        self.types = graph.types
        self.tensors = graph.tensors()
        self.modules = modules_of(graph.module)
        self.users = _users(graph)
        self.reads: dict[Dim, list[Access]] = {}
        self.weights = Counter(access.weight for access in self.types.readers)
        self.heard: dict[tuple[str, int], Tensor] = {}
        self.spoken: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        for access in self.types.readers:
            for dim in dict.fromkeys(dims_of(access.axis)):
                self.reads.setdefault(dim, []).append(access)

    def removals(self) -> list[_Removal]:
        """What can go at once; spaces that stand in one product with others that go wait for the next search."""
        found: list[_Removal] = []
        waiting: set[Dim] = set()
        beside = _beside(self.types.axes())
        for space in self.graph.spaces:
            removal = None if space.dim in waiting else self._of(space)
            if removal is not None:
                found.append(removal)
                waiting |= beside.get(space.dim, set())
        return found

    def _of(self, space: Space) -> _Removal | None:
        if space.mixed or not space.scalable or not space.readers or space.size < 2:
            return None
        reads = [self.read(access, space.dim) for access in self.reads.get(space.dim, [])]
        if not reads or any(read is None for read in reads):
            return None
        seen = [read for read in reads if read is not None]
        everywhere = torch.ones(space.size, dtype=torch.bool)
        constant, direct = everywhere.clone(), everywhere.clone()
        for read in seen:
            silent = read.unread | read.zero
            constant &= silent | read.constant
            direct &= silent | (read.constant if self.takes_bias(read, space.dim) else ~everywhere)
        carried = constant & ~direct
        carrier, carried = self._carrier(seen, space.dim, carried)
        gone = direct | carried
        if gone.all():
            gone[0] = False
        if not gone.any():
            return None
        spoken = torch.stack([~(read.unread | read.zero) for read in seen]).any(0)
        return _Removal(space.name, gone, carrier, carried & gone, int((gone & spoken).sum()))

    def read(self, access: Access, dim: Dim) -> _Read | None:
        """How a reader sees a space; None where it cannot be told."""
        if not access.weighted or access.weight is None or access.value is None:
            return None
        name, index = access.weight
        typed = self.types.types[access.value]
        if not isinstance(typed, TensorType):
            return None
        own = labels(self.types.parameters[name].axes[index], dim)
        there = labels(typed[access.dim], dim)
        if own is None or there is None:
            return None
        if access.weight not in self.heard:
            self.heard[access.weight] = _any_beside(self.tensors[name].detach().cpu() != 0, index)
        place = (access.value.name, access.dim)
        if place not in self.spoken:
            value, varies = self.known.values[place[0]], self.known.varies[place[0]]
            self.spoken[place] = _any_beside(varies, access.dim), _any_beside(value != 0, access.dim)
        varying, speaking = (_any(flags, there, dim.size) for flags in self.spoken[place])
        return _Read(access, ~_any(self.heard[access.weight], own, dim.size), ~varying & ~speaking, ~varying)

    def takes_bias(self, read: _Read, dim: Dim) -> bool:
        """Whether what the constants of a space add to a reader is the same at all positions, and can be its bias."""
        node = read.access.node
        module = self.layer(node)
        if module is None or hides_border(module):
            return False
        # With factors of their own, channels cannot make up for each other.
        factors = 0.5 + torch.rand(dim.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        added = response(module, self.given(read.access, dim, read.constant * factors))
        rows = added.movedim(_channel(module), -1).flatten(0, -2)
        return bool((rows - rows[:1]).abs().max() <= 1e-13 * rows.abs().max())

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The float64 copy of a layer that may get another bias: one that is used once, with tensors of its own."""
        if node.op != "call_module":
            return None
        module = self.modules[str(node.target)]
        if type(module) not in _BIASED or not self.used_once(node):
            return None
        return copy.deepcopy(module).cpu().double()

    def given(self, access: Access, dim: Dim, factors: Tensor) -> Tensor:
        """What a reader is given by the channels of a space, each times its factor, alone: `[1, ...]`, float64."""
        assert access.value is not None
        value = self.known.values[access.value.name]
        typed = self.types.types[access.value]
        there = labels(typed[access.dim], dim)
        assert there is not None
        chosen = torch.where(there >= 0, factors.double()[there.clamp_min(0)], 0.0)
        return weigh(value[:1], access.dim, chosen)

    def _carrier(self, reads: list[_Read], dim: Dim, carried: Tensor) -> tuple[int | None, Tensor]:
        """The channel that stands for others, and which: at every reader that hears them, they are multiples of it.

        The reader's weight must be its own, so that it can take what the others had.
        """
        nothing = torch.zeros_like(carried)
        best: tuple[int | None, Tensor] = (None, nothing)
        for carrier in carried.nonzero().flatten().tolist():
            able = carried.clone()
            able[carrier] = False
            for read in reads:
                ratio = self.ratios(read.access, dim, carrier)
                able &= read.unread | read.zero | (torch.isfinite(ratio) if ratio is not None else nothing)
            if int(able.sum()) > int(best[1].sum()):
                best = (carrier, able)
            if int(able.sum()) == int(carried.sum()) - 1:
                break
        return best

    def ratios(self, access: Access, dim: Dim, carrier: int) -> Tensor | None:
        """By what factor each channel is the carrier's at a reader, NaN where by none; None where that is shared."""
        assert access.value is not None
        assert access.weight is not None
        if not self.used_once(access.node) or self.weights[access.weight] != 1:
            return None
        typed = self.types.types[access.value]
        blocks = _blocks(typed[access.dim], dim)
        value = self.known.values[access.value.name][:1].movedim(access.dim, 0).flatten(1)
        rows = torch.stack([value[places] for places in blocks]).movedim(1, 0).flatten(1)
        own = rows[carrier]
        place = int(own.abs().argmax())
        ratio = rows[:, place] / own[place]
        fits = (rows - ratio[:, None] * own).abs().amax(1) <= 1e-13 * rows.abs().amax(1)
        return torch.where(fits, ratio, torch.nan)

    def used_once(self, node: fx.Node) -> bool:
        """Whether the tensors of a module are used by this node alone."""
        mine = self.users.get(node, set()) if node.op == "call_module" else set()
        return bool(mine) and not any(mine & theirs for other, theirs in self.users.items() if other is not node)

    def removed(self, removals: list[_Removal]) -> ModelGraph:
        """The network without these channels, whose constants its readers have."""
        base = rebuild(self.graph, Edit({}), lambda _, tensor: tensor.clone())
        modules, tensors = modules_of(base.module), base.tensors()
        for removal in removals:
            dim = self.graph.space(removal.space).dim
            for access in self.reads[dim]:
                read = self.read(access, dim)
                assert read is not None
                assert access.weight is not None
                spoken = removal.gone & ~(read.unread | read.zero)
                if not spoken.any():
                    continue
                layer = self.layer(access.node)
                if layer is not None and self.takes_bias(read, dim):
                    added = response(layer, self.given(access, dim, spoken)).movedim(_channel(layer), -1)
                    _add_bias(modules[str(access.node.target)], added.flatten(0, -2)[0])
                    continue
                assert removal.carrier is not None
                ratio = self.ratios(access, dim, removal.carrier)
                assert ratio is not None
                name, index = access.weight
                blocks = _blocks(self.types.parameters[name].axes[index], dim)
                _carry(tensors[name].movedim(index, 0), blocks, removal.carrier, torch.where(spoken, ratio, 0.0))
        maps = {base.space(r.space).dim: ChannelMap((~r.gone).nonzero().flatten()) for r in removals}
        return remap(base, maps, {"pass": "prune dead"})


def _carry(rows: Tensor, blocks: Iterator[Tensor], carrier: int, ratio: Tensor) -> None:
    """Give the weights that read one channel those of others, each times its ratio, in place."""
    with torch.no_grad():
        for places in blocks:
            taken = torch.tensordot(ratio, rows[places].double().cpu(), 1)
            rows[places[carrier]] += taken.to(rows)


def _add_bias(module: nn.Module, added: Tensor) -> None:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    if bias is None:
        module.bias = nn.Parameter(added.to(weight), requires_grad=weight.requires_grad)
        return
    assert isinstance(bias, Tensor)
    with torch.no_grad():
        bias.copy_(bias.double() + added.to(bias.device))


def labels(axis: Axis, dim: Dim) -> Tensor | None:
    """Which index of a dim each index of an axis has, -1 where none; None where a product has the dim twice."""
    found = []
    for term in resolve(axis):
        places = [position for position, own in enumerate(term) if own is dim]
        if len(places) > 1:
            return None
        if not places:
            found.append(torch.full((term_size(term),), -1))
            continue
        inner = term_size(term[places[0] + 1 :])
        found.append(torch.arange(dim.size).repeat_interleave(inner).repeat(term_size(term[: places[0]])))
    return torch.cat(found)


def _blocks(axis: Axis, dim: Dim) -> Iterator[Tensor]:
    """Where the indices of a dim lie on an axis: one row of places `[dim]` for each combination of all else."""
    offset = 0
    for term in resolve(axis):
        size = term_size(term)
        if dim in term:
            place = term.index(dim)
            grid = torch.arange(offset, offset + size)
            grid = grid.reshape(term_size(term[:place]), dim.size, term_size(term[place + 1 :]))
            yield from grid.movedim(1, 2).reshape(-1, dim.size)
        offset += size


def _any_beside(flags: Tensor, index: int) -> Tensor:
    """Whether anything is flagged, by the index of one axis."""
    return flags.movedim(index, 0).flatten(1).any(1) if flags.dim() > 1 else flags


def _any(flags: Tensor, label: Tensor, size: int) -> Tensor:
    """Whether any index of an axis that has a label is flagged, by label."""
    found = torch.zeros(size, dtype=torch.int64)
    found.index_add_(0, label.clamp_min(0), (flags & (label >= 0)).long())
    return found > 0


def _beside(axes: list[Axis]) -> dict[Dim, set[Dim]]:
    """The free dims that stand in one product with each."""
    found: dict[Dim, set[Dim]] = {}
    for axis in axes:
        for term in resolve(axis):
            free = [dim for dim in term if not dim.fixed]
            for dim in free if len(free) > 1 else ():
                found.setdefault(dim, set()).update(free)
    return found


def _channel(module: nn.Module) -> int:
    """The axis of the outputs that a bias is added along."""
    return -1 if isinstance(module, nn.Linear) else 1


def _users(graph: ModelGraph) -> dict[fx.Node, set[str]]:
    """The first names of the tensors that each node has of its own."""
    canonical = graph.types.canonical
    below: dict[str, set[str]] = {}
    for name, first in canonical.items():
        below.setdefault(name, set()).add(first)
        path = name
        while path := path.rpartition(".")[0]:
            below.setdefault(path, set()).add(first)
    nodes = [node for node in graph.module.graph.nodes if node.op in ("call_module", "get_attr")]
    return {node: below[str(node.target)] for node in nodes if str(node.target) in below}
