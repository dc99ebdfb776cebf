"""Who reads which channels, and in which order a dense layer had best write them.

The rows of a dense layer may stand in any order. So where its channels are shuffled before they are read, the layer can
write them as they are needed, and where they are read in parts, it can write each part in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import fx

from graphsurgery.network.aliasing import acts_in_place
from graphsurgery.network.operators import spelling_of
from graphsurgery.network.paths import has_tensors
from graphsurgery.tracing.shuffles.plans import PLANS, convolution, group_norm, keeps, meeting, pointwise
from graphsurgery.tracing.shuffles.wires import Movement, Order, Wiring, natural_order


def computes(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node gives or takes tensors for more than their sizes, or acts by being run."""
    if node.op in ("placeholder", "output"):
        return True
    acts = has_tensors(node.meta["value"]) or acts_in_place(module, node) or not node.users
    return acts and node.op != "get_attr"


class Readers:
    """For every tensor that is computed or laid out, the nodes that read it, each with the operand that has it."""

    def __init__(self, module: fx.GraphModule, movement: Movement) -> None:
        self.module, self.movement = module, movement
        self._readers: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {}
        for node in reversed(module.graph.nodes):
            reads = node not in movement.origins or (node in movement.layouts and node in self._readers)
            if reads and computes(module, node):
                for operand in node.all_input_nodes:
                    for source in movement.sources(operand):
                        self._readers.setdefault(source, []).append((node, operand))

    def of(self, node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        return self._readers.get(node, [])

    def wanted(self, node: fx.Node, wires: Callable[[fx.Node], Wiring | None]) -> Order | None:
        """The order in which a dense layer had best write its channels; None where it does not matter.

        Args:
            node: the dense layer.
            wires: where the channels of a tensor are by now, if that is known.
        """
        current, channels = node, tuple(range(node.meta["value"].shape[1]))
        while True:
            readers = self.of(current)
            read = [self._read(current, operand) for _, operand in readers]
            each_once = len(read) == 1 and sorted(read[0]) == list(range(len(channels)))
            if not each_once or self._joins(current, readers[0][1]):
                order = _gathered(len(channels), read)
                return order and tuple(channels[i] for i in order)
            reader, operand = readers[0]
            channels = tuple(channels[i] for i in read[0])
            if not keeps(self.module, reader, operand):
                order = self._met(reader, operand, wires)
                return order and tuple(channels[i] for i in order)
            current = reader

    def _read(self, node: fx.Node, operand: fx.Node) -> Order:
        """The channels of a node that are in an operand, in order."""
        wiring = self.movement.wirings.get(operand)
        channels = range(node.meta["value"].shape[1])
        return tuple(channels) if wiring is None else tuple(i for source, i in wiring if source is node)

    def _joins(self, node: fx.Node, operand: fx.Node) -> bool:
        """Whether an operand has more than the channels of a node, or has them in a way that is not known."""
        wiring = self.movement.wirings.get(operand)
        return operand is not node and (wiring is None or any(source is not node for source, _ in wiring))

    def _met(self, reader: fx.Node, operand: fx.Node, wires: Callable[[fx.Node], Wiring | None]) -> Order | None:
        """The order in which a node that does not keep the order of an operand wants its channels."""
        kind = PLANS.get(spelling_of(self.module, reader)) if reader.op.startswith("call") else None
        if kind is pointwise:
            met = meeting(reader)
            if operand not in met:  # one channel, for all of another operand
                return None
            others = [wires(other) for other in met if other is not operand]
            orders = [natural_order(wiring) for wiring in others if wiring is not None]
            return orders[0] if orders else None
        grouped = kind is convolution and self.module.get_submodule(str(reader.target)).groups != 1
        fixed = kind is None or kind is group_norm or grouped
        return tuple(range(operand.meta["value"].shape[1])) if fixed else None


def _gathered(size: int, read: Sequence[Order]) -> Order | None:
    """Channels in an order in which those that are read together are together; None if there is no better one."""
    sets = [frozenset(channels) for channels in read]
    readers = [tuple(number for number, channels in enumerate(sets) if i in channels) for i in range(size)]
    first: dict[tuple[int, ...], int] = {}
    order = tuple(sorted(range(size), key=lambda i: first.setdefault(readers[i], i)))

    def pieces(order: Order) -> int:
        return sum((a in channels) != (b in channels) for channels in sets for a, b in pairwise(order))

    return order if pieces(order) < pieces(tuple(range(size))) else None
