"""Parts of a traced network: cut out between boundaries, and put in place of the modules that they came from."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from graphsurgery.errors import SurgeryError
from graphsurgery.network.aliasing import acts_in_place
from graphsurgery.network.assembly import Network
from graphsurgery.network.layers import Boundary, ChannelGate, hold
from graphsurgery.network.paths import place_of
from graphsurgery.tracing.leaves import is_leaf

_WHOLE = "layer"


@dataclass(frozen=True)
class Part:
    """A piece of a network that runs alone.

    Attributes:
        graph: its nodes, with one input.
        state: the layers, parameters and buffers that its nodes name; not copied.
    """

    graph: fx.Graph
    state: Mapping[str, nn.Module | Tensor]


def cut(module: fx.GraphModule, path: str, entry: Mapping[fx.Node, int | None], output: Any) -> Part:
    """The part of a network between what it reads and what it gives.

    A gate in it draws its masks for the examples that this part is given, which are not those of the network where a
    detector feeds it regions of images.

    Args:
        module: the network.
        path: where the part's layers stand in the network; the part names them relative to it.
        entry: the nodes that the part reads; None for the part's input itself, a number for that element of it.
        output: the nodes that it gives, in tuples, lists and dicts.

    Raises:
        SurgeryError: the part reads something else too.
    """
    inside = _between(module, path, entry, output)
    graph = fx.Graph()
    x = graph.placeholder("x")
    copies = {node: x if i is None else graph.call_function(operator.getitem, (x, i)) for node, i in entry.items()}
    first = next(iter(copies.values()))
    state: dict[str, nn.Module | Tensor] = {}
    for node in module.graph.nodes:
        if node not in inside:
            continue
        copies[node] = copy = graph.node_copy(node, lambda source: copies.get(source, first))
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            copy.target = target.removeprefix(f"{path}.") if target != path else _WHOLE
            thing = _attribute(module, target)
            if state.setdefault(copy.target, thing) is not thing:
                raise SurgeryError(f"{target}: {path} has another layer of that name; rename one of the two")
    graph.output(fx.map_arg(output, copies.__getitem__))
    return Part(graph, state)


def _between(module: fx.GraphModule, path: str, entry: Mapping[fx.Node, Any], output: Any) -> set[fx.Node]:
    """The nodes that `output` needs, up to `entry`, and what nobody reads but writes into their memory or checks."""
    given: list[fx.Node] = []
    fx.map_arg(output, given.append)
    found, beyond = _needed(module, entry, given)
    if beyond is not None:
        raise SurgeryError(f"{path}: reads {place_of(beyond)} too, so it cannot run on its own input alone")
    for node in module.graph.nodes:
        written = node.all_input_nodes[:1] if acts_in_place(module, node) else []
        if node.target is hold or any(source in found for source in written):
            more, beyond = _needed(module, entry, [node])
            found |= more if beyond is None else set()
    return found


def _needed(
    module: fx.GraphModule, entry: Mapping[fx.Node, Any], waiting: list[fx.Node]
) -> tuple[set[fx.Node], fx.Node | None]:
    """What these nodes need, up to `entry`; and the first node found on the way that stands beyond it."""
    found: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node in found or node in entry:
            continue
        if node.op == "placeholder" or _is(module, node, Boundary):
            return found, node
        found.add(node)
        if not _is(module, node, ChannelGate):
            waiting.extend(node.all_input_nodes)
    return found, None


def _is(module: fx.GraphModule, node: fx.Node, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), kind)


def _attribute(module: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(module.get_submodule(parent), name)


def replaced(original: nn.Module, part: Part) -> nn.Module:
    """The module that a part came from, running the part instead of its own forward.

    Its layers become those of the part, under the same names and in the same modes; its class, its other methods and
    whatever the part does not name stay. It can be deep-copied and traced; it cannot be pickled.

    Args:
        original: is modified, and given back unless it is a single layer.
        part: what `cut` gave for its path.
    """
    shell = nn.Module().train(original.training) if is_leaf(original) else original
    for path, thing in part.state.items():
        _put(shell, path, thing)
    network = Network(shell, part.graph)
    network.recompile()
    forward = type(network).forward
    kind = next(base for base in type(shell).__mro__ if not getattr(base, "_runs_a_part", False))
    shell.__class__ = type(kind.__name__, (kind,), {"forward": forward, "_runs_a_part": True, "__doc__": kind.__doc__})
    return shell


def _put(root: nn.Module, path: str, thing: nn.Module | Tensor) -> None:
    """Set a layer, parameter or buffer; a layer that the trace took apart makes room for its pieces."""
    owner = root
    *parents, name = path.split(".")
    for parent in parents:
        child = owner._modules.get(parent)
        if child is None or is_leaf(child):
            child = nn.Module().train(owner.training)
            setattr(owner, parent, child)
        owner = child
    if isinstance(thing, nn.Module):
        old = owner._modules.get(name)
        modes = {} if old is None else {below: m.training for below, m in old.named_modules()}
        for below, module in thing.named_modules():
            module.training = modes.get(below, owner.training)
    if isinstance(thing, (nn.Module, nn.Parameter)) or name in owner._buffers:
        setattr(owner, name, thing)
    else:
        owner.register_buffer(name, thing, persistent=False)
