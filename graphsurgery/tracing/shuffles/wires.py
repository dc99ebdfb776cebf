"""What a network only moves: which channel of which computed tensor each channel of a moved tensor is.

Views, transposes, splits, slices and concatenations compute nothing, and a channel shuffle is written with them in a
dozen ways. So they are not matched but run, on tensors that hold coordinates, and where the channels came from is read
off. Channels are axis 1. Those that are turned round, rolled, or looked up by indices that the network keeps move too.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx

from graphsurgery.network.aliasing import acts_in_place
from graphsurgery.network.operators import Trait, is_a, operator_of, spelled, spelling_of, spellings
from graphsurgery.network.paths import has_tensors
from graphsurgery.network.values.evaluation import called, values_for

Wire = tuple[fx.Node, int]
"""One channel: the node that has it, and its number there."""

Wiring = tuple[Wire, ...]
"""All channels of a tensor."""

Order = tuple[int, ...]
"""Channels in another order: the old number of each new one."""

_TURNS = frozenset({"flip", "fliplr", "roll"})
_INDICES = (torch.int64, torch.int32)
_SELECTIONS = frozenset({"index_select", "gather"})


_MAY_REORDER = frozenset({operator.getitem, *spellings(Trait.REORDERS), *spelled(*_TURNS, *_SELECTIONS)})


def may_reorder(module: fx.GraphModule) -> bool:
    """Whether a network runs anything that can bring channels into another order."""
    return any(node.op.startswith("call") and spelling_of(module, node) in _MAY_REORDER for node in module.graph.nodes)


class Movement:
    """The nodes of a network that only move what others compute.

    Attributes:
        origins: for each of these nodes, the computed tensors that its values are from.
        wirings: those whose tensors are whole channels `[batch, channel, ...]` of tensors that are computed or laid
            out, each example and each position in its place; and which channels. Empty where nothing is shuffled.
        layouts: those that give another shape to the positions of such tensors.
        indices: the tensors of whole numbers that the network keeps, and what only moves those, with their values.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.indices = _constant_indices(module)
        self._larger: list[dict[fx.Node, Any]] = []
        self.origins: dict[fx.Node, frozenset[fx.Node]] = {}
        self.wirings: dict[fx.Node, Wiring] = {}
        self.layouts: set[fx.Node] = set()
        reordered: set[fx.Node] = set()
        for node in module.graph.nodes:
            if node in self.indices or not self._moves(node):
                continue
            sources = self._tensors(node)
            self.origins[node] = frozenset().union(*(self.origins.get(s, {s}) for s in sources))
            if self._reorders(node) or any(source in reordered for source in sources):
                reordered.add(node)
        if any(self._shuffles(node) for node in self.origins if node in reordered):
            self._larger = _at_twice_the_sizes(module)
        if any(self._shuffles(node) for node in self.origins if node in reordered):
            for node in self.origins:
                wiring = self._wiring(node, past_layouts=True) or self._wiring(node, past_layouts=False)
                if wiring is not None:
                    self.wirings[node] = wiring
                elif lays_out_positions(module, node) and self._has_channels(node.args[0]):
                    self.layouts.add(node)

    def sources(self, node: fx.Node) -> frozenset[fx.Node]:
        """The nearest tensors of which it is known where their channels are."""
        if node in self.wirings:
            return frozenset(source for source, _ in self.wirings[node])
        if node in self.layouts or node not in self.origins:
            return frozenset({node})
        return frozenset().union(*map(self.sources, self._tensors(node)))

    def _shuffles(self, node: fx.Node) -> bool:
        """Whether a tensor holds channels of another one, but not as one piece in their order."""
        wiring = self._wiring(node, past_layouts=True) or ()
        return len(runs(wiring)) > len({source for source, _ in wiring})

    def _tensors(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a node moves; indices only say where to."""
        tensors = [source for source in node.all_input_nodes if has_tensors(source.meta["value"])]
        return [source for source in tensors if source not in self.indices]

    def _has_channels(self, node: Any) -> bool:
        computed = node not in self.origins and node.op != "get_attr" and isinstance(node.meta["value"], Tensor)
        return computed or node in self.wirings or node in self.layouts

    def _moves(self, node: fx.Node) -> bool:
        if not node.op.startswith("call") or not has_tensors(node.meta["value"]):
            return False
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, fx.Node)
            known = source in self.origins or isinstance(source.meta["value"], Tensor)
            return known and not has_tensors(self._without_indices(index))
        kind = self._kind(node)
        if kind in _TURNS:
            return _turned(node) == {1}
        if kind in _SELECTIONS:
            return len(self._tensors(node)) == 1 and self._chosen(node) == 1
        # `x.view(dtype)` looks at other bytes, of a type that may be another tensor's.
        given = self._without_indices((*node.args[1:], *node.kwargs.values()))
        known = is_a(self.module, node, Trait.LAYS_OUT, Trait.REORDERS)
        return known and not any(isinstance(a, torch.dtype) for a in given)

    def _kind(self, node: fx.Node) -> str | None:
        known = operator_of(self.module, node)
        return known.name if known else None

    def _without_indices(self, index: Any) -> Any:
        """An index with values for nodes, None for indices that are known."""
        return fx.map_arg(index, lambda node: None if node in self.indices else node.meta["value"])

    def _chosen(self, node: fx.Node) -> int | None:
        """The axis that a selection is from; None where that cannot be told."""
        dim, source = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None), node.args[0]
        rank = source.meta["value"].dim() if isinstance(source, fx.Node) else 0
        return dim % rank if isinstance(dim, int) and rank else None

    def _reorders(self, node: fx.Node) -> bool:
        if node.target is not operator.getitem:
            return is_a(self.module, node, Trait.REORDERS) or self._kind(node) in _TURNS | _SELECTIONS
        if any(isinstance(source, fx.Node) and source in self.indices for source in node.all_input_nodes):
            return True
        index = _plain(node.args[1])
        items = index if isinstance(index, tuple) else (index,)
        return any(isinstance(i, list) or (isinstance(i, slice) and i.step not in (None, 1)) for i in items)

    def _wiring(self, node: fx.Node, *, past_layouts: bool) -> Wiring | None:
        """The channels of a moved tensor, in terms of computed tensors alone, or of laid out ones too."""
        sources = self.origins[node] if past_layouts else self.sources(node)
        if not any(_alike(node.meta["value"], source.meta["value"]) for source in sources):
            return None
        grid = _Coordinates()
        wiring = grid.read(self._run(node, grid, past_layouts))
        if wiring is None or any(source.op == "get_attr" for source, _ in wiring):
            return None
        if not all(self._are_channels(node, source) for source in {source for source, _ in wiring}):
            return None
        return tuple(self.wirings[source][i] if source in self.wirings else (source, i) for source, i in wiring)

    def _are_channels(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether axis 1 holds channels in both, not positions such as the tokens of a window: at another size too."""
        pairs = [(values[node], values[source]) for values in self._larger]
        known = [pair for pair in pairs if all(isinstance(value, Tensor) for value in pair)]
        sizes = (node.meta["value"].shape[1], source.meta["value"].shape[1])
        return all(_alike(*pair) and (pair[0].shape[1], pair[1].shape[1]) == sizes for pair in known)

    def _run(self, node: fx.Node, grid: _Coordinates, past_layouts: bool) -> Any:
        """The node on coordinates of the nearest tensors whose channels are known."""

        def operand(source: fx.Node) -> Any:
            value = source.meta["value"]
            if source in self.indices:
                return self.indices[source]
            if not has_tensors(value):
                return value
            known = source not in self.origins or source in self.wirings
            known = known or (source in self.layouts and not past_layouts)
            return grid.of(source) if known else self._run(source, grid, past_layouts)

        args: Any = fx.map_arg(node.args, operand)
        kwargs: Any = fx.map_arg(node.kwargs, operand)
        layer = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        return called(node, layer, args, kwargs)


class _Coordinates:
    """Tensors of different numbers, so that an element tells which it is; float64 holds them exactly."""

    def __init__(self) -> None:
        self.start: dict[fx.Node, int] = {}
        self.next = 0

    def of(self, node: fx.Node) -> Tensor:
        value = node.meta["value"]
        if node not in self.start:
            self.start[node] = self.next
            self.next += value.numel()
        start = self.start[node]
        return torch.arange(start, start + value.numel(), dtype=torch.float64).reshape(value.shape)

    def read(self, moved: Tensor) -> Wiring | None:
        """The channels of a moved tensor; None if it holds anything but whole channels in their places."""
        if moved.dim() < 2 or moved.numel() == 0:
            return None
        elements = moved.flatten(2) if moved.dim() > 2 else moved.unsqueeze(2)
        positions = elements.shape[2]
        nodes, starts = list(self.start), list(self.start.values())
        wires, firsts, strides = [], [], []
        for number in elements[0, :, 0].tolist():
            node = nodes[bisect_right(starts, number) - 1]
            channel = int(number - self.start[node]) // positions
            shape = node.meta["value"].shape
            if len(shape) != moved.dim() or shape[2:] != moved.shape[2:] or channel >= shape[1]:
                return None
            wires.append((node, channel))
            firsts.append(self.start[node] + channel * positions)
            strides.append(shape[1] * positions)
        examples = torch.arange(len(moved))[:, None, None] * torch.tensor(strides)[:, None]
        expected = torch.tensor(firsts)[:, None] + examples + torch.arange(positions)
        return tuple(wires) if torch.equal(expected.to(elements), elements) else None


def _constant_indices(module: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """The buffers of whole numbers that nothing writes to, and what only moves them, with their values, on the CPU."""
    buffers = dict(module.named_buffers(remove_duplicate=False))
    found: dict[fx.Node, Tensor] = {}
    kept = [buffers.get(str(node.target)) for node in module.graph.nodes if node.op == "get_attr"]
    if not any(value is not None and value.dtype in _INDICES for value in kept):
        return found
    for node in module.graph.nodes:
        if not isinstance(node.meta["value"], Tensor) or any(acts_in_place(module, user) for user in node.users):
            continue
        value = buffers.get(str(node.target)) if node.op == "get_attr" else _moved_index(module, node, found)
        if value is not None and not value.is_meta and value.dtype in _INDICES:
            found[node] = value.detach().cpu()
    return found


def _moved_index(module: fx.GraphModule, node: fx.Node, found: Mapping[fx.Node, Tensor]) -> Tensor | None:
    """What a call gives that lays out or stretches known indices; None for other calls."""
    known = is_a(module, node, Trait.MOVES, Trait.PASSES) or node.target in ("to", "long")
    tensors = [source for source in node.all_input_nodes if has_tensors(source.meta["value"])]
    if not known or node.op not in ("call_function", "call_method") or not tensors:
        return None
    if not all(source in found for source in tensors):
        return None
    args: Any = fx.map_arg(node.args, lambda source: found.get(source, source.meta["value"]))
    kwargs: Any = fx.map_arg(node.kwargs, lambda source: found.get(source, source.meta["value"]))
    value = called(node, None, args, kwargs)
    return value if isinstance(value, Tensor) else None


def _turned(node: fx.Node) -> set[int]:
    """The axes along which channels are turned round or rolled; none where that cannot be told."""
    if str(getattr(node.target, "__name__", node.target)) == "fliplr":
        return {1}
    rolled = str(getattr(node.target, "__name__", node.target)) == "roll"
    given: Any = node.kwargs.get("dims", node.args[2:] if rolled else node.args[1:])
    while isinstance(given, (tuple, list)) and len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = given[0]
    axes = given if isinstance(given, (tuple, list)) else [given]
    rank = node.meta["value"].dim()
    return {axis % rank for axis in axes} if all(isinstance(axis, int) for axis in axes) else set()


def _at_twice_the_sizes(module: fx.GraphModule) -> list[dict[fx.Node, Any]]:
    """What every node gives at twice the height and width, and at twice axis 1; without those that do not fit."""
    found = []
    given = [node.meta["value"] for node in module.graph.nodes if node.op == "placeholder"]
    for doubled in (lambda axis: axis > 1, lambda axis: axis == 1):
        shapes = [[2 * n if doubled(axis) else n for axis, n in enumerate(x.shape)] for x in given]
        inputs = [torch.empty(shape, dtype=x.dtype, device="meta") for shape, x in zip(shapes, given, strict=True)]
        with suppress(Exception):  # whatever an operator raises on sizes that do not fit
            found.append(values_for(module, inputs, checked=False))
    return found


def _alike(a: Any, b: Any) -> bool:
    """Whether two values are tensors of the same axes but for the number of channels."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not a.dim() == b.dim() >= 2:
        return False
    return a.shape[0] == b.shape[0] and a.shape[2:] == b.shape[2:]


def lays_out_positions(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node gives another shape to the positions of a tensor; its axes 0 and 1 stay, whatever the sizes."""
    known, source = operator_of(module, node), node.args[0] if node.args else None
    name = known.name if known else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta["value"], Tensor):
        return False
    shape, new = source.meta["value"].shape, node.meta["value"]
    if not isinstance(new, Tensor) or min(len(shape), new.dim()) < 2 or shape[:2] != new.shape[:2]:
        return False
    if name == "reshape":
        sizes = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], (list, tuple)) else node.args[1:]
        return len(sizes) > 1 and -1 not in sizes[:2]
    named: Any = node.kwargs.get("start_dim", node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None))
    if node.op == "call_module" and name == "flatten":
        named = module.get_submodule(str(node.target)).start_dim
    elif name not in ("flatten", "unflatten", "squeeze", "unsqueeze"):
        return False
    axes = named if isinstance(named, (list, tuple)) else [named]
    rank = len(shape) + (name == "unsqueeze")
    return all(isinstance(axis, int) and (axis > 1 or axis < 0 < axis + rank - 1) for axis in axes)


def _plain(index: Any) -> Any:
    """An index with values for nodes."""
    return fx.map_arg(index, lambda node: node.meta["value"])


def runs(wiring: Sequence[Wire]) -> list[tuple[fx.Node, int, int]]:
    """The longest pieces `(node, start, stop)` of consecutive channels of one node."""
    found: list[tuple[fx.Node, int, int]] = []
    for node, channel in wiring:
        if found and found[-1][0] is node and found[-1][2] == channel:
            found[-1] = (node, found[-1][1], channel + 1)
        else:
            found.append((node, channel, channel + 1))
    return found


def natural_order(wiring: Wiring) -> Order:
    """The order in which these channels are the fewest runs: node by node, and as they stand there."""
    first: dict[fx.Node, int] = {}
    seen: Counter[Wire] = Counter()
    keys = []
    for node, channel in wiring:
        keys.append((first.setdefault(node, len(first)), seen[node, channel], channel))
        seen[node, channel] += 1
    order = tuple(sorted(range(len(wiring)), key=keys.__getitem__))
    fewer = len(runs([wiring[i] for i in order])) < len(runs(wiring))
    return order if fewer else tuple(range(len(wiring)))


def shuffle_groups(order: Order) -> int | None:
    """The groups of the channel shuffle that makes this order; None if no one shuffle does."""
    size = len(order)
    if size < 4 or order[0] != 0 or order[1] < 2 or size % order[1]:
        return None
    groups = size // order[1]
    return groups if all(old == new % groups * order[1] + new // groups for new, old in enumerate(order)) else None
