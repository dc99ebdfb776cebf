"""Which nodes of a traced graph write into memory that others read: in-place operators and views."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import fx, nn

from graphsurgery.network.operators import Trait, is_a, is_in_place
from graphsurgery.network.paths import has_tensors, layer_at


def acts_in_place(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node may write into the memory of its first operand."""
    if node.op == "call_module":
        return bool(getattr(layer_at(module, str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    if is_in_place(node.target) or node.kwargs.get("out") is not None or node.kwargs.get("inplace"):
        return True
    home = str(getattr(node.target, "__module__", ""))
    return home == F.__name__ and any(argument is True for argument in node.args)


def owns_memory(module: nn.Module, node: fx.Node) -> bool:
    """Whether nobody but the one user of this node can look at its memory: it is new, and no view of it is used."""
    if len(node.users) != 1 or node.op in ("get_attr", "placeholder"):
        return False
    return makes_new(module, node) or all(owns_memory(module, source) for source in node.all_input_nodes)


def makes_new(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node gives memory of its own; False where that is not certain."""
    if acts_in_place(module, node):
        return False
    return is_a(module, node, Trait.FRESH)


def versions(module: fx.GraphModule) -> dict[fx.Node, dict[fx.Node, int]]:
    """For every node, how often each of its operands' memory had been written in place before the node ran."""
    return {node: before for node, before, _, _ in _writes(module)}


def is_functional(module: fx.GraphModule) -> bool:
    """Whether a graph is sure to compute the same if every operator gives a new tensor.

    Then no node reads a tensor that was written in place after it was made, and none writes to a parameter or buffer.
    """
    made: dict[fx.Node, int] = {}
    for node, before, after, written in _writes(module):
        made[node] = after
        reads = has_tensors(node.meta["value"]) or acts_in_place(module, node)
        stale = reads and any(count != made[source] for source, count in before.items())
        if stale or "out" in node.kwargs or any(root.op == "get_attr" for root in written):
            return False
    return True


def written_together(module: fx.GraphModule) -> list[frozenset[fx.Node]]:
    """For each memory that is written in place, the nodes whose values may lie in it."""
    roots: dict[fx.Node, frozenset[fx.Node]] = {}
    written: dict[fx.Node, None] = {}
    for node in module.graph.nodes:
        roots[node] = _roots(module, node, roots)
        if node.all_input_nodes and acts_in_place(module, node):
            written.update(dict.fromkeys(roots[node.all_input_nodes[0]]))
    return [frozenset(node for node, own in roots.items() if root in own) for root in written]


def _roots(module: nn.Module, node: fx.Node, roots: dict[fx.Node, frozenset[fx.Node]]) -> frozenset[fx.Node]:
    """The nodes that made the memory in which the value of a node may lie, from those of its operands."""
    if makes_new(module, node):
        return frozenset({node})
    return frozenset().union(*(roots[source] for source in node.all_input_nodes)) or frozenset({node})


def _writes(module: fx.GraphModule) -> Iterator[tuple[fx.Node, dict[fx.Node, int], int, frozenset[fx.Node]]]:
    """Every node, the writes to the memory of each operand before it ran, to its own after, and what it writes to."""
    in_place = {node for node in module.graph.nodes if acts_in_place(module, node)}
    if not in_place:
        yield from ((node, dict.fromkeys(node.all_input_nodes, 0), 0, frozenset()) for node in module.graph.nodes)
        return
    roots: dict[fx.Node, frozenset[fx.Node]] = {}
    writes: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        sources = node.all_input_nodes
        before = {source: sum(writes.get(root, 0) for root in roots[source]) for source in sources}
        roots[node] = _roots(module, node, roots)
        written = roots[sources[0]] if sources and node in in_place else frozenset()
        for root in written:
            writes[root] = writes.get(root, 0) + 1
        yield node, before, sum(writes.get(root, 0) for root in roots[node]), written


def is_harmless(module: nn.Module, node: fx.Node) -> bool:
    """Whether nobody but its own users can see that a node has run."""
    return not acts_in_place(module, node) or all(owns_memory(module, n) for n in node.all_input_nodes[:1])
