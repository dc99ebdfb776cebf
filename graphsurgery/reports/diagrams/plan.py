"""What a page needs to plan a cut by itself: counts as polynomials in the widths, and the table of measured times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphsurgery.axes.algebra import Dim
from graphsurgery.axes.polynomials import Polynomial, total
from graphsurgery.errors import printable
from graphsurgery.graph import ModelGraph
from graphsurgery.recipes.compression.cost_table import CostTable
from graphsurgery.recipes.compression.to_latency import Timed
from graphsurgery.surgery.channels.planned_cost import NodeCost, PlannedCost
from graphsurgery.surgery.gates import bare


@dataclass(frozen=True)
class Plan:
    """How a network may be cut, and what that would cost.

    Attributes:
        graph: the network without gates; `compress` would cut it.
        costs: of every node, by its name.
        command: the command that cuts, as far as it does not depend on the widths.
        output: the file that it shall write.
        table: what ONNX Runtime takes, where that was measured.
        step: what numbers of channels are multiples of at first.
    """

    graph: ModelGraph
    costs: Mapping[str, NodeCost]
    command: tuple[str, ...]
    output: str
    table: CostTable | None = None
    step: int = 1

    @classmethod
    def of(cls, graph: ModelGraph, command: Sequence[str], output: str) -> Plan:
        """The plan of a network without times; arguments as for the class.

        Raises:
            SurgeryError, UnsupportedError: its cost at other widths is not known before it is built.
        """
        base = bare(graph)
        return cls(base, PlannedCost(base).by_node(), tuple(command), output)

    def timed(self, found: Timed) -> Plan:
        """The same with times, in steps that the runtime rewards."""
        return replace(self, table=found.table, step=found.steps.step)

    def as_dict(self, pictures: Iterable[Sequence[Sequence[str]]]) -> dict[str, Any]:
        """What the page's script reads.

        A polynomial is a list of `[coefficient, space, space, …]`, spaces by number.

        Args:
            pictures: of each, the names of the nodes of every box; what is in none comes last, on top.
        """
        spaces = self.graph.spaces
        numbers = {space.dim: number for number, space in enumerate(spaces)}
        held = PlannedCost(self.graph).held
        return {
            "spaces": [{"name": printable(s.name), "size": s.size, "shared": s.chosen} for s in spaces],
            "pictures": [self._boxes(boxes, numbers) for boxes in pictures],
            "bytes": _terms(total(cost.bytes for cost in self.costs.values()), numbers),
            "held": {"parameters": held.parameters, "bytes": held.bytes},
            "latency": None if self.table is None else _latency(self.table, [space.name for space in spaces]),
            "command": list(self.command),
            "output": self.output,
            "step": self.step,
        }

    def _boxes(self, boxes: Iterable[Sequence[str]], numbers: Mapping[Dim, int]) -> list[dict[str, Any]]:
        """The counts of all boxes of a picture, and of the nodes that are in none."""
        left = dict(self.costs)
        parts = [[left.pop(name) for name in names if name in left] for names in boxes]
        return [_box(part, numbers) for part in (*parts, list(left.values()))]


def _box(costs: Sequence[NodeCost], numbers: Mapping[Dim, int]) -> dict[str, Any]:
    """The counts of a box; multiply-accumulates as parts with their divisors, each of which is rounded by itself."""
    whole = total(cost.macs for cost in costs if cost.over == 1)
    macs = [(1, whole), *((cost.over, cost.macs) for cost in costs if cost.over > 1)]
    return {
        "parameters": _terms(total(cost.parameters for cost in costs), numbers),
        "macs": [[over, _terms(part, numbers)] for over, part in macs if part],
    }


def _terms(polynomial: Polynomial, numbers: Mapping[Dim, int]) -> list[list[int]]:
    """A polynomial in the numbers of spaces; dims that are no space keep their size."""
    found: dict[tuple[int, ...], int] = {}
    for dims, coefficient in polynomial.items():
        for dim in dims:
            coefficient *= 1 if dim in numbers else dim.size
        key = tuple(sorted(numbers[dim] for dim in dims if dim in numbers))
        found[key] = found.get(key, 0) + coefficient
    return [[coefficient, *key] for key, coefficient in sorted(found.items()) if coefficient]


def _latency(table: CostTable, names: Sequence[str]) -> dict[str, Any]:
    """Microseconds of the operators, and by the number of a space what is left of those that it touches."""
    order = {name: number for number, name in enumerate(table.operators)}
    spaces = {}
    for number, name in enumerate(names):
        if (costs := table.spaces.get(name)) is not None:
            points, shares = costs.curve
            spaces[number] = {
                "operators": [order[operator] for operator in costs.shares],
                "points": points.tolist(),
                "shares": shares.tolist(),
            }
    return {"operators": list(table.operators.values()), "other": table.other, "spaces": spaces}
