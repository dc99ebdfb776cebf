"""How the readers of a space see its channels: what they ignore, and what is constant to them.

`Readings` looks at one network as it is, weights of 0 included; see `constants` for what does not vary.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from graphsurgery.axes.algebra import Axis, Dim, dims_of, is_fixed, resolve, term_size
from graphsurgery.axes.types import Access, TensorType
from graphsurgery.graph import ModelGraph
from graphsurgery.network.layers import weigh
from graphsurgery.network.paths import modules_of
from graphsurgery.surgery.masks.constants import constants, hides_border, response

_BIASED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Read(NamedTuple):
    """How one reader sees the channels of a space: which it ignores, and which give it 0, or a constant."""

    access: Access
    unread: Tensor
    zero: Tensor
    constant: Tensor

    @property
    def silent(self) -> Tensor:
        """What adds nothing here."""
        return self.unread | self.zero


class Readings:
    """Every read of a network's spaces.

    Attributes:
        of: the reads of each dim.
    """

    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.types = graph.types
        read = {a.value.name for a in self.types.readers if a.value is not None and not is_fixed(a.axis)}
        self.known = constants(graph, read)
        self.tensors = graph.tensors()
        self.modules = modules_of(graph.module)
        self.users = _users(graph)
        self.of: dict[Dim, list[Access]] = {}
        self.weights = Counter(access.weight for access in self.types.readers)
        self.heard: dict[tuple[str, int], Tensor] = {}
        self.spoken: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        for access in self.types.readers:
            for dim in dict.fromkeys(dims_of(access.axis)):
                self.of.setdefault(dim, []).append(access)

    def read(self, access: Access, dim: Dim) -> Read | None:
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
        return Read(access, ~_any(self.heard[access.weight], own, dim.size), ~varying & ~speaking, ~varying)

    def takes_bias(self, read: Read, dim: Dim) -> bool:
        """Whether what the constants of a space add to a reader is the same at all positions, and can be its bias."""
        node = read.access.node
        module = self.layer(node)
        if module is None or hides_border(module):
            return False
        # With factors of their own, channels cannot make up for each other.
        factors = 0.5 + torch.rand(dim.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        added = response(module, self.given(read.access, dim, read.constant * factors))
        rows = _rows(module, added)
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
        """What a reader is given by the channels of a space, each times its factor, alone: float64."""
        assert access.value is not None
        value = self.known.values[access.value.name]
        typed = self.types.types[access.value]
        there = labels(typed[access.dim], dim)
        assert there is not None
        chosen = torch.where(there >= 0, factors.double()[there.clamp_min(0)], 0.0)
        return weigh(value, access.dim, chosen)

    def ratios(self, access: Access, dim: Dim, carrier: int) -> Tensor | None:
        """By what factor each channel is the carrier's at a reader, NaN where by none; None where that is shared."""
        assert access.value is not None
        assert access.weight is not None
        if not self.used_once(access.node) or self.weights[access.weight] != 1:
            return None
        typed = self.types.types[access.value]
        value = self.known.values[access.value.name].movedim(access.dim, 0)
        value = value.reshape(len(value), -1)
        rows = torch.stack([value[places] for places in blocks(typed[access.dim], dim)]).movedim(1, 0).flatten(1)
        own = rows[carrier]
        place = int(own.abs().argmax())
        ratio = rows[:, place] / own[place]
        fits = (rows - ratio[:, None] * own).abs().amax(1) <= 1e-13 * rows.abs().amax(1)
        return torch.where(fits, ratio, torch.nan)

    def used_once(self, node: fx.Node) -> bool:
        """Whether the tensors of a module are used by this node alone."""
        mine = self.users.get(node, set()) if node.op == "call_module" else set()
        return bool(mine) and not any(mine & theirs for other, theirs in self.users.items() if other is not node)

    def bias_of(self, access: Access, dim: Dim, factors: Tensor) -> Tensor:
        """What the channels of a space, each times its factor, add to the bias of a layer that takes it."""
        layer = self.layer(access.node)
        assert layer is not None
        return _rows(layer, response(layer, self.given(access, dim, factors)))[0]


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


def blocks(axis: Axis, dim: Dim) -> Iterator[Tensor]:
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


def _rows(module: nn.Module, given: Tensor) -> Tensor:
    """What a layer gives, `[everything else, channels]`, with a batch or without."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    moved = given if isinstance(module, nn.Linear) else given.movedim(1 - weight.dim(), -1)
    return moved.reshape(-1, moved.shape[-1])


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
