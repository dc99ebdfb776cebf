"""Why the axes of weights are not free: what took each of them, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from graphsurgery.axes.algebra import Axis, dims_of
from graphsurgery.axes.inference import Inference
from graphsurgery.graph import ModelGraph

_OUTPUT = "it is an output of the network"
_EDGE = "it is an axis of the network's inputs, of a constant, or of positions"
_BRIEF = {_OUTPUT: "axes of outputs", _EDGE: "axes of inputs, constants or positions"}


def reasons(graph: ModelGraph) -> dict[tuple[str, int], str]:
    """By the name of a parameter and the number of an axis of it that no pass can change, what took it.

    That is what inference recorded where the axis lost its last free index; where it recorded nothing, the node at
    which the axis met one that is fixed from the start: an input, an output, a constant or positions.
    """
    graph.types  # noqa: B018  (gives every node its value, for graphs that come from a file)
    watch = _AxesWatch(graph.module, open_outputs=graph.open_outputs)
    watch.run()
    late = watch.frozen[watch.recorded :]  # after the last node
    for place, axis in watch.open.items():
        if all(dim.fixed for dim in dims_of(axis)):
            watch.found[place] = f"{late[-1].node}: {late[-1].reason}" if late else "it stands in a product with a sum"
    return watch.found


def by_reason(held: Mapping[tuple[str, int], str]) -> dict[str, list[str]]:
    """The parameters that have held axes, by what took these, in brief; what holds the most comes last.

    Args:
        held: what `reasons` found.
    """
    found: dict[str, dict[str, None]] = {}
    for (name, _), why in held.items():
        brief = next((brief for long, brief in _BRIEF.items() if why.endswith(long)), why)
        found.setdefault(brief, {})[name] = None
    return {why: list(found[why]) for why in sorted(found, key=lambda why: len(found[why]))}


class Watch(Inference):
    """Typing that looks at what every node has done."""

    def noted(self, recorded: int) -> None:
        """Called when a node is typed.

        Args:
            recorded: how many axes had been frozen before it.
        """
        raise NotImplementedError

    def get_attr(self) -> Any:
        return self._noting(super().get_attr)

    def call_function(self) -> Any:
        return self._noting(super().call_function)

    def call_method(self) -> Any:
        return self._noting(super().call_method)

    def call_module(self) -> Any:
        return self._noting(super().call_module)

    def output(self) -> Any:
        return self._noting(super().output)

    def _noting(self, visit: Callable[[], Any]) -> Any:
        recorded = len(self.frozen)
        result = visit()
        self.noted(recorded)
        return result


class _AxesWatch(Watch):
    """Notes for every axis of a parameter where its last free index went."""

    def __init__(self, module: fx.GraphModule, *, open_outputs: bool) -> None:
        super().__init__(module, open_outputs=open_outputs)
        self.found: dict[tuple[str, int], str] = {}
        self.open: dict[tuple[str, int], Axis] = {}
        self.recorded = 0
        self._known: set[str] = set()

    def noted(self, recorded: int) -> None:
        for name in [name for name in self.parameters if name not in self._known]:
            self._known.add(name)
            self.open |= {(name, index): axis for index, axis in enumerate(self.parameters[name].axes)}
        for place, axis in list(self.open.items()):
            if all(dim.fixed for dim in dims_of(axis)):
                del self.open[place]
                self.found[place] = self._reason(recorded)
        self.recorded = len(self.frozen)

    def _reason(self, recorded: int) -> str:
        if len(self.frozen) > recorded:
            return f"{self.where()}: {self.frozen[-1].reason}"
        if self.node.op == "output":
            return _OUTPUT
        return f"{self.where()}: {_EDGE}"
