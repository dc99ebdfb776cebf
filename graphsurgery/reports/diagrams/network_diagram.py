"""The picture of a network: its layers, colored by the space of channels that they write."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from graphsurgery.axes.algebra import Dim, resolve, term_size
from graphsurgery.axes.types import TensorType
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.network.paths import has_tensors, place_of
from graphsurgery.reports.diagrams.diagram import Box, Diagram, Key
from graphsurgery.reports.diagrams.plan import Plan
from graphsurgery.surgery.channels.cost import cost, macs_by_node

_NOTE = "A space is a set of channels that must change together. Grey stands for widths that cannot change."


def network_diagram(graph: ModelGraph, title: str, plan: Plan | None = None, notes: tuple[str, ...] = ()) -> Diagram:
    """The dataflow of a network: a box for each layer with what is done to its output alone.

    A box has the colors of the spaces that its output's channels belong to, in proportion; what cannot change is grey.
    Where the lineage says that spaces were cut or grown, their first widths stand beside those of now.

    Args:
        graph: the network; it is not modified.
        title: what the picture is called.
        plan: how it may be cut.
        notes: what else a reader should know.
    """
    types = graph.types.types
    chains = _chains(graph.module)
    owner = {node: chain[0] for chain in chains for node in chain}
    counts = {node.name: macs for node, macs in macs_by_node(graph).items()}
    spaces = {space.dim: space for space in graph.spaces}
    reasons = {frozen.node: frozen.reason for frozen in graph.frozen}
    boxes, edges = {}, []
    for chain in chains:
        bands = _bands(types.get(chain[-1]), spaces)
        boxes[chain[0].name] = _box(graph.module, chain, bands, counts, reasons)
        sources = [owner[source] for node in chain for source in node.all_input_nodes if source in owner]
        edges += [(source.name, chain[0].name) for source in sources if source is not chain[0]]
    heads, keys = _keys(graph)
    size = cost(graph)
    return Diagram(
        title=title,
        summary=(f"{size.parameters:,} parameters", f"{size.macs:,} MACs per image", f"{len(spaces)} spaces"),
        boxes=boxes,
        edges=tuple(dict.fromkeys(edges)),
        heads=heads,
        keys=keys,
        notes=(_NOTE, *notes),
        plan=plan,
    )


def _keys(graph: ModelGraph) -> tuple[tuple[str, ...], dict[str, Key]]:
    """The headings and rows of the list of spaces; with their first widths where any has changed."""
    first = _first_widths(graph.lineage)
    before = {space.name: first.get(space.name, space.size) for space in graph.spaces}
    changed = any(before[space.name] != space.size for space in graph.spaces)
    rows = {s.name: (s.name, *([f"{before[s.name]:,}"] * changed), f"{s.size:,}") for s in graph.spaces}
    return ("space", *["before"] * changed, "width"), {name: Key(cells) for name, cells in rows.items()}


def _chains(module: fx.GraphModule) -> list[list[fx.Node]]:
    """The nodes that carry tensors; what only acts on the output of one other node goes with that one."""
    chains: dict[fx.Node, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op != "output" and not has_tensors(node.meta.get("value")):
            continue
        sources = [source for source in node.all_input_nodes if has_tensors(source.meta.get("value"))]
        users = [user for user in sources[0].users if _carries(user)] if len(sources) == 1 else []
        alone = len(users) == 1 and sources[0].op != "placeholder"
        if alone and node.op != "output" and not _is_weighty(module, node):
            chains[node] = chains[sources[0]]
            chains[node].append(node)
        else:
            chains[node] = [node]
    return list({id(chain): chain for chain in chains.values()}.values())


def _carries(node: fx.Node) -> bool:
    return node.op == "output" or has_tensors(node.meta.get("value"))


def _is_weighty(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a layer with a matrix of weights."""
    if node.op != "call_module":
        return False
    return any(parameter.dim() > 1 for parameter in module.get_submodule(str(node.target)).parameters())


def _bands(type_: Any, spaces: Mapping[Dim, Space]) -> tuple[tuple[str | None, float], ...]:
    """The spaces along the axis of the channels, with their sizes; None for what is fixed."""
    tensors = [t for t in _tensor_types(type_) if len(t) > 1]
    for tensor in tensors[:1]:
        for axis in tensor.axes[1:]:
            found = []
            for term in resolve(axis):
                inside = [spaces[dim] for dim in term if dim in spaces]
                outer = next((space for space in inside if space.outer), inside[0] if inside else None)
                found.append((None if outer is None else outer.name, float(term_size(term))))
            if any(name is not None for name, _ in found):
                return tuple(found)
    return ((None, 1.0),) if tensors else ()


def _tensor_types(value: Any) -> Iterable[TensorType]:
    if isinstance(value, TensorType):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensor_types(part)
    elif isinstance(value, Mapping):
        yield from _tensor_types(list(value.values()))


def _box(
    module: fx.GraphModule,
    chain: Sequence[fx.Node],
    bands: tuple[tuple[str | None, float], ...],
    counts: Mapping[str, int],
    reasons: Mapping[str, str],
) -> Box:
    head, last = chain[0], chain[-1]
    what = _what(module, head)
    shape = ", ".join(_shapes(last.meta.get("value"), batched=last.op != "get_attr"))
    title = place_of(head) if head.op in ("placeholder", "get_attr", "call_module", "output") else what
    after = [_short(module, node) for node in chain[1:] if node.target is not operator.getitem]
    lines = [what, ", ".join(after), shape]
    layers = [module.get_submodule(str(node.target)) for node in chain if node.op == "call_module"]
    parameters = sum(p.numel() for layer in layers for p in layer.parameters())
    parameters += sum(_own(module, node) for node in chain)
    macs = sum(counts.get(node.name, 0) for node in chain)
    frozen = [
        reason for node in chain for name in dict.fromkeys((node.name, place_of(node))) if (reason := reasons.get(name))
    ]
    details = {
        "name": place_of(head),
        "layer": what,
        "then": ", ".join(place_of(node) for node in chain[1:]),
        "output": shape,
        "spaces": ", ".join(f"{name or 'fixed'} ({size:g})" for name, size in bands) if bands != ((None, 1.0),) else "",
        "parameters": f"{parameters:,}" if parameters else "",
        "MACs": f"{macs:,}" if macs else "",
        "frozen": "; ".join(frozen),
    }
    return Box(
        title=title,
        lines=tuple(line for line in lines if line and line != title),
        bands=() if head.op in ("placeholder", "output") else bands,
        details={key: text for key, text in details.items() if text},
        parameters=parameters,
        macs=macs,
        nodes=tuple(node.name for node in chain),
        alike=(head.op, what, *after, shape),
    )


def _own(module: fx.GraphModule, node: fx.Node) -> int:
    """The elements of a parameter that a node reads by itself."""
    if node.op != "get_attr":
        return 0
    path, _, name = str(node.target).rpartition(".")
    value = getattr(module.get_submodule(path), name)
    return value.numel() if isinstance(value, nn.Parameter) else 0


def _what(module: fx.GraphModule, node: fx.Node) -> str:
    """The operator of a node, and of a layer its sizes."""
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return "parameter"
    if node.op != "call_module":
        return _name(node)
    layer = module.get_submodule(str(node.target))
    words = [type(layer).__name__]
    if isinstance(layer, _ConvNd):
        words.append(f"{layer.in_channels} → {layer.out_channels}, {'×'.join(map(str, layer.kernel_size))}")
        words += [f"/{layer.stride[0]}"] if max(layer.stride) > 1 else []
        words += [f"groups {layer.groups}"] if layer.groups > 1 else []
    elif isinstance(layer, nn.Linear):
        words.append(f"{layer.in_features} → {layer.out_features}")
    return " ".join(words)


def _short(module: fx.GraphModule, node: fx.Node) -> str:
    """How a node is called within its chain."""
    if node.op != "call_module":
        return _name(node)
    own = str(node.target).rpartition(".")[2]
    return type(module.get_submodule(str(node.target))).__name__ if own.isdigit() else own


def _name(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return f"part {node.args[1]}" if isinstance(node.args[1], int) else "slice"
    return str(getattr(node.target, "__name__", node.target)) if node.op.startswith("call_") else node.op


def _shapes(value: Any, *, batched: bool = True) -> list[str]:
    """The shapes in a value, the batch by its name where there is one; at most three."""
    if isinstance(value, Tensor):
        sizes = ["batch", *map(str, value.shape[1:])] if batched and value.dim() else [*map(str, value.shape)]
        return [f"[{', '.join(sizes)}]"]
    if isinstance(value, Mapping):
        value = list(value.values())
    found = [shape for part in value for shape in _shapes(part)] if isinstance(value, list | tuple) else []
    return found if len(found) <= 3 else [*found[:2], f"{len(found) - 2} more"]


def _first_widths(lineage: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The width that each space had before the first record that changed it."""
    first: dict[str, int] = {}
    for record in lineage:
        sizes = record.get("sizes")
        for name, pair in sizes.items() if isinstance(sizes, Mapping) else ():
            if isinstance(pair, list | tuple) and len(pair) == 2:
                first.setdefault(str(name), int(pair[0]))
    return first
