"""The gates that stand in a network: which there are, what they let through, and who is bare."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from graphsurgery.axes.maps import Edit
from graphsurgery.graph import ModelGraph
from graphsurgery.network.gated_layers import GATED
from graphsurgery.network.layers import ChannelGate, scale_axis
from graphsurgery.network.paths import modules_of
from graphsurgery.surgery.reasons import reasons
from graphsurgery.surgery.remapping.remap import rebuild


def _ungate(layer: nn.Module, node: fx.Node) -> None:
    """Make a layer with gates inside the plain one that it was, in place."""
    node.kwargs = {name: value for name, value in node.kwargs.items() if name != "gates"}
    layer.__class__ = next((plain for plain, gated in GATED.items() if type(layer) is gated), type(layer))


def why_nothing(graph: ModelGraph) -> str:
    """What froze a network's channels, in one line."""
    kept = [part for part in graph.module.modules() if hasattr(part, "held_parameters")]
    if not graph.frozen and kept and not any(True for _ in graph.module.parameters()):
        return f"all its weights are in what is kept whole ({kept[0].reason})"
    if not graph.frozen:
        found = [(name, why) for (name, _), why in reasons(graph).items()]
        # Those say most that were free in their own layer.
        later = [(name, why) for name, why in found if not why.startswith(f"{name.rpartition('.')[0]}: ")]
        first = "; ".join(f"{name}: {why}" for name, why in sorted(later, key=lambda pair: "output" in pair[1])[:2])
        return f"all its channels are network inputs or outputs{f' ({first})' if first else ''}"
    shown = "; ".join(f"{f.node}: {f.reason}" for f in graph.frozen[:3])
    more = f" (and {len(graph.frozen) - 3} more)" if len(graph.frozen) > 3 else ""
    return f"frozen by {shown}{more}"


def has_gates(graph: ModelGraph) -> bool:
    """Whether any channel of the network is gated."""
    return bool(gates(graph))


def gates(graph: ModelGraph) -> dict[str, ChannelGate]:
    """The gate of every gated space, by the name of the space."""
    return {part.space: part for part in modules_of(graph.module).values() if isinstance(part, ChannelGate)}


def gain(module: ChannelGate) -> Tensor:
    """The deterministic gate `[channels]`, float64 on the CPU."""
    s = torch.sigmoid(module.loc.detach().double().cpu())
    return torch.clamp(s * (module.zeta - module.gamma) + module.gamma, 0.0, 1.0)


def bare(graph: ModelGraph) -> ModelGraph:
    """The network as it is without its gates; it shares the weights of `graph`, for a pass that will copy them."""
    if not has_gates(graph):
        return graph
    new = rebuild(graph, Edit({}), lambda _, tensor: tensor, None)
    nodes = new.module.graph
    for node in list(nodes.nodes):
        if node.op == "call_function" and node.target is scale_axis:
            node.replace_all_uses_with(node.args[0])
            nodes.erase_node(node)
        elif node.op == "call_module" and "gates" in node.kwargs:
            _ungate(new.module.get_submodule(str(node.target)), node)
    for node in reversed(list(nodes.nodes)):
        if node.op == "call_module" and isinstance(new.module.get_submodule(str(node.target)), ChannelGate):
            nodes.erase_node(node)
    new.module.delete_all_unused_submodules()
    new.module.recompile()
    return ModelGraph(new.module, new.inputs, new.lineage)
