"""Channel shuffles out of a network: instead of channels, the weights that read them are put in another order.

A shuffle moves channels and computes nothing, so what comes after it can as well work on the channels as they were
computed, with its own weights in their order. `chunk(shuffle(cat(a, b)), 2)` is, but for the order of channels,
`cat(a[:k], b[:k]), cat(a[k:], b[k:])`: slices and concatenations, which have types.

So every tensor of the rewritten network has the channels of the old one in an order that is known. Views, splits and
concatenations only change what is known. What computes gets its channels in the order in which they are the fewest
slices, and keeps it or sums it away (`plans`). What needs the old order, such as the output, gets it from the
dense layer before, if nothing else reads that one, or else by a shuffle, or by looking up indices.
"""

from __future__ import annotations

import operator
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, fx

from graphsurgery.network.aliasing import acts_in_place, is_functional, makes_new
from graphsurgery.network.copying import meta_of, own_tensors
from graphsurgery.network.operators import spelling_of
from graphsurgery.network.paths import has_tensors, named_tensors
from graphsurgery.network.values.evaluation import evaluate
from graphsurgery.tracing.shuffles.plans import PLANS, Arrangement, Reordering, arranged, same
from graphsurgery.tracing.shuffles.readers import Readers, computes
from graphsurgery.tracing.shuffles.wires import (
    Movement,
    Order,
    Wiring,
    may_reorder,
    natural_order,
    runs,
    shuffle_groups,
)


def unshuffle(module: fx.GraphModule, *, shared: bool = False) -> bool:
    """Rewrite a traced network so that its channels are not shuffled; the outputs are the same to rounding.

    Parameters and buffers keep names and shapes, but where channels are in another order their values are permuted:
    they are not, name by name, those of the model that was traced any more. In training, random numbers such as those
    of dropout fall on other channels. A network without shuffles stays as it is, and so does one that writes over
    tensors in place which are read again.

    Args:
        module: traced, with the value of each node in `node.meta["value"]`; it is changed.
        shared: whether its tensors are those of another module too; it gets its own if they are to be permuted.

    Returns:
        Whether any were.
    """
    if not may_reorder(module):
        return False
    movement = Movement(module)
    if not movement.wirings or not is_functional(module):
        return False
    if shared:
        own_tensors(module)
    fixed: set[int] = set()
    while torn := (rewriting := _Unshuffling(module, movement, fixed)).run():
        fixed |= torn
    rewriting.install()
    return bool(rewriting.arrangements)


ADDED = "added by unshuffle"
"""What marks, in the meta of a node, that it moves channels which the traced model has in another order."""


class _Unshuffling:
    """One attempt to rewrite a network.

    Attributes:
        fixed: the tensors, by identity, that must not be reordered.
        torn: those that two nodes would have in different orders.
    """

    def __init__(self, module: fx.GraphModule, movement: Movement, fixed: set[int]) -> None:
        self.module, self.movement, self.fixed = module, movement, fixed
        self.torn: set[int] = set()
        self.tensors = named_tensors(module)
        self.arrangements: dict[int, Arrangement] = {}
        self.buffers: dict[str, Tensor] = {}
        self.graph = fx.Graph()
        self.moves: list[fx.Node] = []
        self.placed: dict[fx.Node, Wiring] = {}
        self.copies: dict[fx.Node, fx.Node] = {}
        self.joined: dict[Wiring, fx.Node] = {}
        self.sliced: dict[tuple[fx.Node, int, int], fx.Node] = {}
        self.readers = Readers(module, movement)

    def run(self) -> set[int]:
        """Write the new graph; returns `torn`."""
        for node in self.module.graph.nodes:
            moved = node in self.movement.wirings or node in self.movement.indices
            if moved or (node in self.movement.layouts and not self.readers.of(node)):
                continue
            planner = PLANS.get(spelling_of(self.module, node)) if node.op.startswith("call") else None
            plan = planner(self, node) if planner is not None else None
            if plan is not None and any(id(self.tensors[name]) in self.fixed for name in plan.tensors):
                plan = None
            # What only moves and has no plan is written where it is needed.
            if plan is not None or (computes(self.module, node) and node not in self.movement.origins):
                self._compute(node, plan or Reordering())
        return self.torn

    # What plans ask -------------------------------------------------------------------------------------------------

    def wires(self, node: fx.Node) -> Wiring | None:
        """Where the channels of a tensor are by now, in their old order; None if that cannot be said."""
        wiring = self.movement.wirings.get(node)
        if wiring is None:
            return self.placed.get(node)
        known = all(source in self.placed for source, _ in wiring)
        return tuple(self.placed[source][i] for source, i in wiring) if known else None

    def wanted(self, node: fx.Node) -> Order | None:
        """The order in which a dense layer had best write its channels; None where it does not matter."""
        return self.readers.wanted(node, self.wires)

    # The new graph --------------------------------------------------------------------------------------------------

    def _compute(self, node: fx.Node, plan: Reordering) -> None:
        """Add a node that computes."""
        new = self._copy(node, plan)
        value = node.meta["value"]
        if not isinstance(value, Tensor) or value.dim() < 2:
            self.copies[node] = new
            return
        order = range(value.shape[1]) if plan.result is None else plan.result
        places = {old: (new, place) for place, old in enumerate(order)}
        self.placed[node] = tuple(places[old] for old in range(value.shape[1]))

    def _copy(self, node: fx.Node, plan: Reordering) -> fx.Node:
        def operand(source: fx.Node) -> fx.Node:
            if source.op == "get_attr":
                self._arrange(str(source.target), plan.tensors.get(str(source.target), ()))
            wiring = self.wires(source)
            if wiring is not None and not has_tensors(node.meta["value"]):
                return self._joined(tuple(wiring[i] for i in natural_order(wiring)))
            if wiring is not None and source in plan.operands:
                return self._joined(tuple(wiring[i] for i in plan.operands[source]))
            return self._restored(source)

        operands = {source: operand(source) for source in node.all_input_nodes}
        if node.op == "call_module":
            for name in named_tensors(self.module.get_submodule(str(node.target))):
                self._arrange(f"{node.target}.{name}", plan.tensors.get(f"{node.target}.{name}", ()))
        if operands and acts_in_place(self.module, node):
            written = node.all_input_nodes[0]
            if not self._is_private(written):
                operands[written] = self._call("clone", operands[written])
        new = self.graph.node_copy(node, operands.__getitem__)
        if node in self.movement.origins:
            self.moves.append(new)
            # What was laid out for a view may be a slice by now.
            new.target = "reshape" if new.op == "call_method" and new.target == "view" else new.target
        return new

    def _is_private(self, node: fx.Node) -> bool:
        """Whether its one reader may write over a tensor in the new graph, where what moved it may be gone."""
        fresh = makes_new(self.module, node) or acts_in_place(self.module, node)
        return fresh and len(node.users) == 1 and node not in self.movement.origins

    def _arrange(self, name: str, arrangement: Arrangement) -> None:
        """Note how a use of a parameter or buffer needs it."""
        tensor = id(self.tensors[name])
        if self.arrangements.setdefault(tensor, arrangement) != arrangement:
            self.torn.add(tensor)

    def _restored(self, node: fx.Node) -> fx.Node:
        """The value of a node with its channels in their old order."""
        wiring = self.wires(node)
        if wiring is not None and has_tensors(node.meta["value"]):
            return self._joined(wiring)
        if node not in self.copies:
            self.copies[node] = self._copy(node, Reordering())
        return self.copies[node]

    def _joined(self, wiring: Wiring) -> fx.Node:
        """A tensor of these channels."""
        if wiring not in self.joined:
            self.joined[wiring] = self._join(wiring)
        return self.joined[wiring]

    def _join(self, wiring: Wiring) -> fx.Node:
        order = natural_order(wiring)
        natural = tuple(wiring[i] for i in order)
        if same(order):
            return self._pieces(wiring)
        back = tuple(sorted(range(len(order)), key=order.__getitem__))
        groups = shuffle_groups(back)
        if groups is not None:
            split = self._call("unflatten", self._joined(natural), 1, (groups, len(order) // groups))
            return self._call("flatten", self._call("transpose", split, 1, 2), 1, 2)
        return self._pieces(wiring) if _few(wiring) else self._looked_up(self._joined(natural), back)

    def _pieces(self, wiring: Wiring) -> fx.Node:
        """Slices of tensors, one after the other; indices of those of which they would be too many."""
        pieces: list[fx.Node] = []
        for source, wires in groupby(wiring, key=itemgetter(0)):
            part = tuple(wires)
            if _few(part):
                pieces += [self._slice(*run) for run in runs(part)]
            else:
                pieces.append(self._looked_up(source, tuple(channel for _, channel in part)))
        return pieces[0] if len(pieces) == 1 else self._call(torch.cat, pieces, 1)

    def _slice(self, source: fx.Node, start: int, stop: int) -> fx.Node:
        if stop - start == source.meta["value"].shape[1]:
            return source
        if (source, start, stop) not in self.sliced:
            index = (slice(None), slice(start, stop))
            self.sliced[source, start, stop] = self._call(operator.getitem, source, index)
        return self.sliced[source, start, stop]

    def _looked_up(self, source: fx.Node, order: Order) -> fx.Node:
        """The channels of a tensor in another order, by indices that are kept in a buffer."""
        name = f"channel_order_{len(self.buffers)}"
        while hasattr(self.module, name):
            name += "_"
        self.buffers[name] = torch.tensor(order)
        index = self.graph.create_node("get_attr", name)
        self.moves.append(index)
        index.meta["value"] = meta_of(self.buffers[name])
        return self._call(operator.getitem, source, (slice(None), index))

    def _call(self, target: Any, *args: Any) -> fx.Node:
        """Add a node that moves channels; it is marked as one that the traced model does not have."""
        node = self.graph.create_node("call_method" if isinstance(target, str) else "call_function", target, args)
        node.meta["value"] = evaluate(node, self.module.get_submodule)
        node.meta[ADDED] = True
        self.moves.append(node)
        return node

    def install(self) -> None:
        """Give the network the new graph, and its tensors their new orders."""
        tensors = {id(tensor): tensor for tensor in self.tensors.values()}
        # Of a network without values the indices have some all the same.
        device = next((tensor.device for tensor in tensors.values() if not tensor.is_meta), None)
        with torch.no_grad():
            for number, arrangement in self.arrangements.items():
                tensors[number].copy_(arranged(tensors[number], arrangement))
        for node in reversed(self.moves):
            if not node.users:
                self.graph.erase_node(node)
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target in self.buffers:
                self.module.register_buffer(node.target, self.buffers[node.target].to(device))
        self.module.graph = self.graph
        self.module.delete_all_unused_submodules()
        self.module.recompile()


def _few(wiring: Wiring) -> bool:
    """Whether slices are better than indices: each is a part of a space, while an index fixes all of it."""
    return len(runs(wiring)) <= max(8, len(wiring) // 4)
