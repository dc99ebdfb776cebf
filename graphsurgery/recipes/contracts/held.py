"""Where the parameters are that no pass can change: what took their last free axis, and how many that are."""

from __future__ import annotations

from torch import fx

from graphsurgery.axes.algebra import Dim, dims_of
from graphsurgery.graph import ModelGraph
from graphsurgery.surgery.reasons import Watch

EDGES = "its axes are the network's inputs, outputs, positions or constants"
UNUSED = "not used by the traced forward"


def held_parameters(graph: ModelGraph) -> dict[str, int]:
    """How many parameters are held by each reason, the most first; tied ones once.

    The reason is what inference recorded at the node where the last free axis of a parameter became fixed, or the
    nearest such record upstream. Parameters that have no axis but those of inputs, outputs and positions come last.
    """
    graph.types  # noqa: B018  (gives every node its value, for graphs that come from a file)
    watch = _ParameterWatch(graph.module, open_outputs=graph.open_outputs)
    watch.run()
    own = {id(p) for p in graph.module.parameters()}
    tensors = graph.tensors()
    counts: dict[str, int] = {}
    for name in watch.parameters:
        if id(tensors[name]) in own and watch.witness(name) is None:
            reason = watch.reasons.get(name, EDGES)
            counts[reason] = counts.get(reason, 0) + tensors[name].numel()
    # What no operator uses has no type at all.
    typed = {watch.canonical[name] for name in watch.parameters}
    unused = {c for c in watch.canonical.values() if c not in typed and id(tensors[c]) in own}
    if unused:
        counts[UNUSED] = sum(tensors[name].numel() for name in unused)
    return dict(sorted(counts.items(), key=lambda item: (item[0] in (EDGES, UNUSED), -item[1])))


class _ParameterWatch(Watch):
    """Notes for every parameter without a free axis what took it.

    Attributes:
        reasons: the reason by the name of the parameter; none where only inputs, outputs and positions fixed it.
    """

    def __init__(self, module: fx.GraphModule, *, open_outputs: bool) -> None:
        super().__init__(module, open_outputs=open_outputs)
        self.reasons: dict[str, str] = {}
        self._upstream: dict[fx.Node, str] = {}
        self._free: dict[str, Dim] = {}
        self._seen: set[str] = set()

    def witness(self, name: str) -> Dim | None:
        """A free dim of the parameter."""
        return next((d for axis in self.parameters[name].axes for d in dims_of(axis) if not d.fixed), None)

    def noted(self, recorded: int) -> None:
        if self.node.op == "get_attr":
            return  # what its readers do to it counts
        if len(self.frozen) > recorded:
            reason: str | None = self.frozen[-1].reason
        elif self.node.op == "output":
            reason = None
        else:
            reason = next((self._upstream[n] for n in self.node.all_input_nodes if n in self._upstream), None)
        if reason is not None:
            self._upstream[self.node] = reason
        for name in [*self._free, *(n for n in self.parameters if n not in self._seen)]:
            self._seen.add(name)
            dim = self._free.get(name)
            if dim is not None and not dim.fixed and dim.link is None:
                continue
            found = self.witness(name)
            if found is not None:
                self._free[name] = found
                continue
            self._free.pop(name, None)
            if reason is not None:
                self.reasons[name] = reason
