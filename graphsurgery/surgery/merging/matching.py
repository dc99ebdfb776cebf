"""Matching networks of one topology: node by node, then dim by dim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import networkx as nx
from torch import fx

from graphsurgery.axes.algebra import Axis, Dim, is_fixed, resolve
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.paths import place_of

_SIZES = frozenset(
    {
        "in_channels", "out_channels", "groups", "num_features", "in_features", "out_features", "normalized_shape",
        "input_size", "hidden_size", "in1_features", "in2_features",
        "num_channels", "num_groups", "channels", "embedding_dim", "num_parameters", "training", "inplace",
    }
)  # fmt: skip


_SIZED = frozenset(
    {
        "view", "reshape", "unflatten", "expand", "split", "chunk", "scale_axis", "layer_norm",
        "conv1d", "conv2d", "conv3d",
    }
)  # fmt: skip


def dataflow(module: fx.GraphModule) -> nx.DiGraph:
    """The graph of a network: a vertex for each node with its `kind`, an edge for each use with its `place`."""
    graph = nx.DiGraph()
    inputs = 0
    for node in module.graph.nodes:
        graph.add_node(node, kind=kind_of(module, node))
        if node.op == "placeholder":
            graph.nodes[node]["kind"] += str(inputs)
            inputs += 1
        for place, source in enumerate(node.all_input_nodes):
            graph.add_edge(source, node, place=place)
    return graph


def kind_of(module: fx.GraphModule, node: fx.Node) -> str:
    """What a node does, without the names and sizes that two networks of one topology may differ in."""
    if node.op == "call_module":
        leaf = module.get_submodule(str(node.target))
        settings = {k: v for k, v in vars(leaf).items() if not k.startswith("_") and k not in _SIZES}
        plain = {k: v for k, v in settings.items() if isinstance(v, (bool, int, float, str, tuple))}
        return f"{type(leaf).__name__}{sorted(plain.items())}"
    if node.op == "get_attr":
        return "get_attr"
    if node.op in ("placeholder", "output"):
        return node.op
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    args: tuple[Any, ...] = node.args
    kwargs = dict(node.kwargs)
    if target in ("split", "chunk") and len(args) == 3:
        args, kwargs = args[:2], {"dim": args[-1]}
    sized = target in _SIZED
    return f"{target}({_pattern(args, sized)}, {_pattern(kwargs, sized)})"


def _pattern(argument: Any, sized: bool) -> str:
    """The form of an argument: settings as they are, numbers that may be sizes only as such."""
    if isinstance(argument, fx.Node):
        return "node"
    if isinstance(argument, (list, tuple)):
        return f"({', '.join(_pattern(part, sized) for part in argument)})"
    if isinstance(argument, dict):
        return f"{{{', '.join(f'{k}: {_pattern(v, sized)}' for k, v in sorted(argument.items()))}}}"
    if isinstance(argument, slice):
        return f"slice({_pattern((argument.start, argument.stop, argument.step), True)})"
    if sized and isinstance(argument, int) and not isinstance(argument, bool):
        return "size"
    return repr(argument)


def match_nodes(first: ModelGraph, other: ModelGraph, position: int) -> dict[fx.Node, fx.Node]:
    """The node of `other` for every node of `first`.

    Raises:
        SurgeryError: the topologies differ; the message names the first node that does.
    """
    a, b = list(first.module.graph.nodes), list(other.module.graph.nodes)
    difference = _first_difference(first, other, a, b)
    if difference is None:
        return dict(zip(a, b, strict=True))
    if len(a) == len(b):
        matcher = nx.algorithms.isomorphism.DiGraphMatcher(
            dataflow(first.module),
            dataflow(other.module),
            node_match=lambda x, y: x["kind"] == y["kind"],
            edge_match=lambda x, y: x["place"] == y["place"],
        )
        if matcher.is_isomorphic():
            return dict(matcher.mapping)
    raise SurgeryError(f"parents 1 and {position} have different topologies: {difference}")


def _first_difference(first: ModelGraph, other: ModelGraph, a: list[fx.Node], b: list[fx.Node]) -> str | None:
    """What the first pair of nodes that differ does, walking both in order."""
    matched: dict[fx.Node, fx.Node] = {}
    for x, y in zip(a, b, strict=False):
        kind_x, kind_y = kind_of(first.module, x), kind_of(other.module, y)
        sources = [matched[s] for s in x.all_input_nodes]
        if kind_x != kind_y:
            return f"{place_of(x)} is {_short(kind_x, kind_y)}, {place_of(y)} is {_short(kind_y, kind_x)}"
        if sources != list(y.all_input_nodes):
            return f"{place_of(x)} and {place_of(y)} are both {_operator(kind_x)} but read different nodes"
        matched[x] = y
    if len(a) != len(b):
        return f"they have {len(a)} and {len(b)} nodes, and are alike up to {place_of(list(matched)[-1])}"
    return None


def _short(kind: str, other: str) -> str:
    """The operator alone where that tells the two apart, else with its settings."""
    return _operator(kind) if _operator(kind) != _operator(other) else kind


def _operator(kind: str) -> str:
    """A kind without its settings."""
    return kind.split("[")[0].split("(")[0]


def match_parameters(first: ModelGraph, other: ModelGraph, nodes: dict[fx.Node, fx.Node]) -> dict[str, str]:
    """The parameter or buffer of `other` for every one that `first` uses."""
    names: dict[str, str] = {}
    for node, twin in nodes.items():
        if node.op == "get_attr":
            pairs = [(str(node.target), str(twin.target))] if str(node.target) in first.types.canonical else []
        elif node.op == "call_module":
            pairs = list(_tensor_names(first, node, other, twin))
        else:
            continue
        for a, b in pairs:
            a, b = first.types.canonical[a], other.types.canonical[b]
            if names.setdefault(a, b) != b:
                raise SurgeryError(f"{a} is shared by several layers in one parent and not in the other")
    return names


def _tensor_names(first: ModelGraph, node: fx.Node, other: ModelGraph, twin: fx.Node) -> Iterator[tuple[str, str]]:
    ours, theirs = first.module.get_submodule(str(node.target)), other.module.get_submodule(str(twin.target))
    names = [name for name, _ in (*ours.named_parameters(), *ours.named_buffers())]
    if names != [name for name, _ in (*theirs.named_parameters(), *theirs.named_buffers())]:
        raise SurgeryError(f"{node.target} has parameters {names} in one parent and others in the next")
    for name in names:
        yield f"{node.target}.{name}", f"{twin.target}.{name}"


def match_dims(
    first: ModelGraph, other: ModelGraph, names: dict[str, str], unlike: dict[str, str] | None = None
) -> dict[Dim, Dim]:
    """The free dim of `other` for every free dim of `first` that a parameter has.

    Args:
        first: a network.
        other: another.
        names: the parameter of `other` for every one of `first`.
        unlike: gets the parameters of `first` that have a fixed axis of another size, with the sizes.

    Raises:
        SurgeryError: an axis is typed differently, or a fixed one has another size and `unlike` is not given.
    """
    dims: dict[Dim, Dim] = {}
    for name, twin in names.items():
        if name not in first.types.parameters:
            continue
        ours, theirs = first.types.parameters[name], other.types.parameters[twin]
        if len(ours.axes) != len(theirs.axes):
            raise SurgeryError(f"{name} has {len(ours.axes)} axes in one parent and {len(theirs.axes)} in the other")
        for index, (a, b) in enumerate(zip(ours.axes, theirs.axes, strict=True)):
            if ours.counts and index == 1 and is_fixed(a) and is_fixed(b):
                continue  # each network has groups of its own
            sizes = _match_axis(f"{name} axis {index}", resolve(a), resolve(b), dims)
            if sizes and unlike is None:
                raise SurgeryError(sizes)
            if sizes and unlike is not None:
                unlike.setdefault(name, sizes)
    return dims


def _match_axis(where: str, a: Axis, b: Axis, dims: dict[Dim, Dim]) -> str:
    """Match the free dims of two axes; says which fixed ones are unlike, if there are such."""
    unlike = ""
    if [len(term) for term in a] != [len(term) for term in b]:
        raise SurgeryError(f"{where}: the parents' channels are laid out differently there")
    for s, t in zip(a, b, strict=True):
        for x, y in zip(s, t, strict=True):
            if x.fixed != y.fixed:
                raise SurgeryError(f"{where}: the parents' channels can change in one of them only")
            if x.fixed and x.size != y.size:
                unlike = (
                    f"{where}: {x.size} and {y.size} indices on an axis that cannot change;"
                    " parents must agree in input shape and classes"
                )
            if not x.fixed and dims.setdefault(x, y) is not y:
                raise SurgeryError(f"{where}: channels that change together in one parent do not in the other")
    return unlike
