"""Where a network can become deeper, and with what."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.paths import place_of
from graphsurgery.surgery.equivalents.products import flipped
from graphsurgery.surgery.growth.identity_layers import (
    BATCH_NORMS,
    identity_layer,
    is_activation,
    parameters_of,
    residual_pair,
)
from graphsurgery.surgery.growth.repeats import ZERO, Region, activation_of, has_weights, region, repeats, settled

_JOINS = frozenset({"add", "iadd", "mul", "imul", "cat", "concat"})


@dataclass(frozen=True)
class Place:
    """A place for more layers.

    Attributes:
        name: how it was named: a node, a module or a stage.
        exit: the node behind which they come.
        kind: `copy`, `layer` or `residual`.
        parameters: how many one of them has.
        unit: for `copy`, the path that what is repeated has in common.
        region: for `copy`, what is repeated.
        make: for the others, makes the new layers by name; called under a seed.
    """

    name: str
    exit: fx.Node
    kind: str
    parameters: int
    unit: str = ""
    region: Region | None = None
    make: Callable[[], dict[str, nn.Module]] = dict


def find_place(graph: ModelGraph, name: str, block: str = "auto") -> Place:
    """What can come behind a node, a module or a stage.

    Raises:
        SurgeryError: there is nothing of that name, or no identity exists there; with the reason.
    """
    named = _named(graph.module, name)
    stage = not any(place_of(node) == name or node.name == name for node in named)
    end = _end_of_stage(named[-1]) if stage else _end_of_layer(graph.module, named[-1])
    if block in ("auto", "copy"):
        unit = _unit(graph.module, name, named, end)
        if unit is not None:
            return _copied(graph.module, name, *unit)
        if block == "copy":
            raise SurgeryError(
                f"deepen: nothing that ends at {place_of(end)} can be repeated as the identity; leave block to auto"
            )
    value = end.meta["value"]
    if not isinstance(value, Tensor) or value.dim() < 2 or not value.is_floating_point():
        raise SurgeryError(f"deepen: {place_of(end)} gives {_shown(value)}, which no layer could take")
    layer = _layer_before(graph.module, end)
    if layer is None:
        raise SurgeryError(f"deepen: there is no linear layer or convolution before {place_of(end)} to be modelled on")
    activation = _settled_activation(graph.module, end)
    if block == "layer" and activation is None:
        raise SurgeryError(
            f"deepen: {place_of(end)} does not end in an activation that may be applied twice (ReLU), so an identity"
            " layer before one would change it; use block residual"
        )
    if block == "residual" or activation is None:
        make = residual_pair(graph.module, end.meta["value"], layer)
        return Place(name, end, "residual", parameters_of(make), make=make)
    make = identity_layer(graph.module, end.meta["value"], layer, activation)
    return Place(name, end, "layer", parameters_of(make), make=make)


def places(graph: ModelGraph) -> list[Place]:
    """The places that `deepen` proposes: the last part of each size that can be repeated as the identity.

    Residual blocks, where there are some; in a network of which nothing can be repeated, activations that may be
    applied twice, for an identity layer.
    """
    return proposed(graph)


def proposed(graph: ModelGraph, *, every: bool = False) -> list[Place]:
    """As `places`; or every part that can be repeated, and every place for an identity layer."""
    graph.types  # noqa: B018  (gives every node its value, for graphs that come from a file)
    found: dict[fx.Node, Place] = {}
    for prefix in _prefixes(graph.module):
        named = _named(graph.module, prefix)
        is_module = any(place_of(node) == prefix for node in named)
        end = _end_of_layer(graph.module, named[-1]) if is_module else _end_of_stage(named[-1])
        unit = _whole(graph.module, prefix, named, end)
        known = found.get(end)
        if unit is None or repeats(graph.module, unit[1]):
            continue
        if known is None or known.region is None or len(known.region.nodes) < len(unit[1].nodes):
            found[end] = _copied(graph.module, prefix, *unit)
    order = {node: index for index, node in enumerate(graph.module.graph.nodes)}
    parts = sorted(found.values(), key=lambda place: order[place.exit])
    if every:
        return [*parts, *_identity_places(graph)]
    if not parts:
        parts = list(_identity_places(graph))
    outer = [p for p in parts if not any(_inside(p, q) for q in parts)]
    # Where there are residual blocks, a single layer of one is no place of its own.
    blocks = [p for p in outer if p.region and all(c.kind == ZERO for c in p.region.changes)]
    last: dict[tuple[int, ...], Place] = {}
    for place in blocks or outer:
        shape = tuple(place.exit.meta["value"].shape)
        last.pop(shape, None)
        last[shape] = place
    return list(last.values())


def _identity_places(graph: ModelGraph) -> Iterator[Place]:
    """Behind every layer with an activation that may be applied twice, an identity layer."""
    for node in list(graph.module.graph.nodes):
        if node.op == "call_module" and has_weights(graph.module, node):
            end = _end_of_layer(graph.module, node)
            if _settled_activation(graph.module, end) is not None:
                yield find_place(graph, str(node.target), "layer")


def _inside(part: Place, other: Place) -> bool:
    """Whether a part ends within another one."""
    return other.region is not None and part.exit is not other.exit and part.exit in other.region.nodes


def _prefixes(module: fx.GraphModule) -> Iterator[str]:
    """Every path that leads to a layer, outer ones first."""
    seen: dict[str, None] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            parts = str(node.target).split(".")
            seen.update(dict.fromkeys(".".join(parts[: n + 1]) for n in range(len(parts))))
    yield from sorted(seen, key=lambda path: path.count("."))


def _named(module: fx.GraphModule, name: str) -> list[fx.Node]:
    """The nodes of a name: one node, the calls of a module, or those of all modules below a path."""
    nodes = list(module.graph.nodes)
    found = [n for n in nodes if (n.op == "call_module" and n.target == name) or n.name == name]
    if not found:
        found = [n for n in nodes if n.op in ("call_module", "get_attr") and str(n.target).startswith(f"{name}.")]
    if not found:
        known = dict.fromkeys([*_prefixes(module), *(n.name for n in nodes)])
        near = difflib.get_close_matches(name, known, 3, 0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "see inspect"
        raise SurgeryError(f"deepen: {name} is no node, module or stage of this model; {hint}")
    if found[-1].op == "output":
        raise SurgeryError("deepen: nothing can come behind the output")
    return found


def _end_of_stage(node: fx.Node) -> fx.Node:
    """The node where a stage ends: what joins its last layer with a skip belongs to it."""
    while (node.op == "get_attr" or flipped(node) is not node) and len(node.users) == 1:
        (node,) = node.users
    while len(node.users) == 1:
        (user,) = node.users
        name = getattr(user.target, "__name__", str(user.target)) if user.op != "call_module" else ""
        moves = name in ("permute", "reshape", "view", "transpose", "contiguous", "either", "dropout")
        if name.rstrip("_") in _JOINS:
            return user
        if not (moves and _joins_soon(user)):
            return node
        node = user
    return node


def _joins_soon(node: fx.Node) -> bool:
    """Whether a value goes on to a join by moves alone."""
    return len(node.users) == 1 and _end_of_stage(node) is not node


def _end_of_layer(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """A layer ends behind its norm and its activation."""
    while len(node.users) == 1:
        (user,) = node.users
        leaf = module.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(leaf, BATCH_NORMS) or _is_activation(module, user):
            node = user
        else:
            break
    return node


def _is_activation(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return is_activation(module.get_submodule(str(node.target)))
    return activation_of(module, node) is not None


def _unit(module: fx.GraphModule, name: str, named: list[fx.Node], end: fx.Node) -> tuple[str, Region] | None:
    """The largest part of one path with this end that can be repeated, from a stage down to its last layer."""
    if named[-1].op != "call_module":
        return _whole(module, name, named, end)
    target = str(named[-1].target)
    prefix = name if target == name or target.startswith(f"{name}.") else target
    while prefix:
        found = _whole(module, prefix, _named(module, prefix), end)
        if found is not None and not repeats(module, found[1]):
            return found
        if prefix == target:
            return None
        rest = target[len(prefix) + 1 :]
        prefix = f"{prefix}.{rest.split('.')[0]}"
    return None


def _whole(module: fx.GraphModule, prefix: str, named: list[fx.Node], end: fx.Node) -> tuple[str, Region] | None:
    """The part of all nodes under a path, if it can be repeated: its entry is the last value of its shape before."""
    value = end.meta["value"]
    if not isinstance(value, Tensor):
        return None
    node = named[0].prev
    while node.op != "root":
        other = node.meta.get("value")
        if isinstance(other, Tensor) and other.shape == value.shape and node.op not in ("get_attr", "placeholder"):
            found = region(module, node, end)
            # What goes in has to go into what is under the path.
            if found is not None and set(named) & set(found.nodes):
                return prefix, found
        elif isinstance(other, Tensor) and other.dim() > 1 and node.op == "call_module" and has_weights(module, node):
            return None
        node = node.prev
    return None


def _copied(module: fx.GraphModule, name: str, unit: str, part: Region) -> Place:
    return Place(name, part.exit, "copy", _count(module, part), unit, part)


def _count(module: fx.GraphModule, part: Region) -> int:
    """The number of parameters of what is repeated."""
    found: dict[int, int] = {}
    for path in part.paths():
        owner, _, name = path.rpartition(".")
        leaf = getattr(module.get_submodule(owner), name)
        every = leaf.parameters() if isinstance(leaf, nn.Module) else [leaf]
        found.update((id(p), p.numel()) for p in every if isinstance(p, nn.Parameter))
    return sum(found.values())


def _layer_before(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The nearest linear layer or convolution before a node."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop(0)
        if node.op == "call_module" and has_weights(module, node):
            return module.get_submodule(str(node.target))
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return None


def _settled_activation(module: fx.GraphModule, node: fx.Node) -> Callable[[], nn.Module] | None:
    """Makes the activation that has been applied to a value and may be applied again."""
    names = {"relu": nn.ReLU, "hardtanh 0.0 6.0": nn.ReLU6, "hardtanh -1.0 1.0": nn.Hardtanh}
    return next((make for name, make in names.items() if settled(module, node, name)), None)


def _shown(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
