"""Parts of a graph that can be repeated, and what makes a repeat the identity.

A repeat of a part keeps what the network computes if its entry goes through it unchanged. There are two ways through an
operator: it *carries* the value, such as the skip of a residual block, an activation that has been applied already, or
a layer that can be made the identity; or it is on a branch that can be made *zero*. A walk back from the end of the
part finds which layers have to become what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphsurgery.network.aliasing import acts_in_place
from graphsurgery.network.layers import either, scale_axis, weigh
from graphsurgery.network.operators import Trait, argument_of, is_a, operator_of
from graphsurgery.network.training_only import InTraining
from graphsurgery.network.values.dtypes import holds_numbers
from graphsurgery.surgery.equivalents.products import flipped
from graphsurgery.surgery.growth.identity_layers import BATCH_NORMS, CONVOLUTIONS, can_be_calibrated, can_be_identity

IDENTITY, ZERO, CALIBRATE = "identity", "zero", "calibrate"

_PRODUCTS = frozenset({"matmul", "addmm"})
_AVERAGING = frozenset({"nearest", "nearest-exact", "linear", "bilinear", "trilinear"})
_AFFINE = (
    nn.Linear, *CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, *BATCH_NORMS, nn.LayerNorm,
    nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """What a repeated layer or parameter becomes: `identity`, `zero`, or `calibrate`, a norm that undoes itself."""

    path: str
    kind: str


Changes = tuple[Change, ...]


@dataclass(frozen=True)
class Region:
    """A part of a graph that can be repeated behind its end.

    Attributes:
        entry: the value that goes in.
        exit: the value that comes out, of the same shape.
        nodes: what lies between, in order, the exit included.
        changes: what makes a repeat of it the identity.
    """

    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    changes: Changes

    def paths(self) -> list[str]:
        """The modules and parameters that the part has, in order."""
        named = [str(n.target) for n in self.nodes if n.op in ("call_module", "get_attr")]
        return list(dict.fromkeys(named))


def region(module: fx.GraphModule, entry: fx.Node, exit: fx.Node) -> Region | None:
    """The part between two nodes, if a repeat of it can be the identity and has a layer to learn with."""
    if not _same_kind(entry, exit):
        return None
    nodes = _between(entry, exit)
    if not nodes or not any(has_weights(module, n) for n in nodes):
        return None
    if _overwrites(module, entry, nodes):
        return None
    changes = _Through(module, entry, frozenset(nodes), exit).carry(exit)
    if changes is None or _contradict(module, changes):
        return None
    return Region(entry, exit, nodes, tuple(dict.fromkeys(changes)))


def _overwrites(module: fx.GraphModule, entry: fx.Node, nodes: tuple[fx.Node, ...]) -> bool:
    """Whether a call writes over the entry before another node reads it; modules are copied as not in place."""
    writes = [
        n for n in nodes if n.op != "call_module" and acts_in_place(module, n) and n.all_input_nodes[:1] == [entry]
    ]
    return any(entry in later.all_input_nodes for n in writes for later in nodes[nodes.index(n) + 1 :])


def _contradict(module: fx.GraphModule, changes: Changes) -> bool:
    """Whether one layer, which is called twice, would have to become two things."""
    kinds: dict[int, set[str]] = {}
    for change in changes:
        owner, _, name = change.path.rpartition(".")
        kinds.setdefault(id(getattr(module.get_submodule(owner), name)), set()).add(change.kind)
    return any(len(found) > 1 for found in kinds.values())


def repeats(module: fx.GraphModule, part: Region) -> bool:
    """Whether a part is itself the same sequence of operators several times over."""
    kinds = [_operator(module, node) for node in part.nodes if node.op != "get_attr"]
    kinds = [kind for kind in kinds if kind != nn.Identity.__name__]
    periods = (n for n in range(1, len(kinds) // 2 + 1) if len(kinds) % n == 0)
    return any(kinds == kinds[:n] * (len(kinds) // n) for n in periods)


def _operator(module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))


def has_weights(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a layer that multiplies with weights, or a product with a matrix that is a parameter."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), (nn.Linear, *CONVOLUTIONS))
    known = operator_of(module, node)
    product = node.target is F.linear or (known is not None and known.name in _PRODUCTS)
    factors = [flipped(source) for source in node.all_input_nodes]
    return product and any(_is_parameter(module, factor) and factor.meta["value"].dim() > 1 for factor in factors)


def _is_parameter(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node reads a parameter."""
    owner, _, name = str(node.target).rpartition(".")
    return node.op == "get_attr" and name in module.get_submodule(owner)._parameters


def _same_kind(entry: fx.Node, exit: fx.Node) -> bool:
    """Whether two nodes give tensors of one shape."""
    a, b = entry.meta["value"], exit.meta["value"]
    alike = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
    return alike and a.is_floating_point()


def _between(entry: fx.Node, exit: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes that the exit needs and that need the entry, with the parameters that only they read, in order."""
    reached: dict[fx.Node, bool] = {entry: True}
    order: list[fx.Node] = []
    node = entry.next
    while node.op != "root":
        reached[node] = any(reached.get(source, False) for source in node.all_input_nodes)
        if reached[node]:
            order.append(node)
        if node is exit:
            break
        node = node.next
    needed = {exit}
    for candidate in reversed(order):
        if candidate in needed:
            needed.update(candidate.all_input_nodes)
    found = {candidate for candidate in order if candidate in needed}
    if exit not in found:
        return ()
    turned = {s for n in found for s in n.all_input_nodes if flipped(s) is not s and set(s.users) <= found}
    readers = found | {node for node in turned if flipped(node).op == "get_attr"}
    parameters = {s for n in readers for s in n.all_input_nodes if s.op == "get_attr" and set(s.users) <= readers}
    every = readers | parameters
    return tuple(n for n in exit.graph.nodes if n in every)


def settled(module: fx.GraphModule, node: Any, activation: str) -> bool:
    """Whether an activation changes nothing of a value, because it has been applied."""
    if not isinstance(node, fx.Node):
        return False
    if activation_of(module, node) == activation:
        return True
    if node.target is torch.cat:
        given: Any = node.args[0] if node.args else node.kwargs["tensors"]
        return all(settled(module, part, activation) for part in given)
    return _keeps_range(module, node) and settled(module, node.args[0], activation)


def _keeps_range(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether what a node gives lies between the least and the largest of what it is given."""
    known, leaf = operator_of(module, node), _leaf(module, node)
    if isinstance(leaf, nn.Upsample):
        return leaf.mode in _AVERAGING
    if known is None or Trait.KEEPS_RANGE not in known.traits:
        return isinstance(leaf, InTraining)
    divisor = node.kwargs.get("divisor_override", node.args[6] if len(node.args) > 6 else None)
    return not known.name.startswith("avg_pool") or getattr(leaf, "divisor_override", divisor) is None


def _leaf(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _keeps_zero(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node gives 0 for 0, and a gradient."""
    if _keeps_range(module, node):
        return True
    if node.op != "call_module":
        if node.target is F.pad:
            mode = argument_of(node, 2, "mode", "constant")
            value: Any = argument_of(node, 3, "value")
            return bool(mode == "constant" and not value)
        return is_a(module, node, Trait.KEEPS_ZERO) or node.target in (scale_axis, weigh)
    leaf = module.get_submodule(str(node.target))
    if isinstance(leaf, nn.Hardtanh):
        return leaf.min_val < 0 < leaf.max_val
    return is_a(module, node, Trait.KEEPS_ZERO) or isinstance(leaf, nn.PReLU)


def activation_of(module: fx.GraphModule, node: fx.Node) -> str | None:
    """A name of the idempotent activation that a node applies, the same for equal ones; None for other nodes."""
    known, leaf = operator_of(module, node), _leaf(module, node)
    if known is None or Trait.SETTLES not in known.traits:
        return None
    if isinstance(leaf, nn.Hardtanh):
        return f"hardtanh {leaf.min_val} {leaf.max_val}"
    if known.name == "relu6":
        return "hardtanh 0.0 6.0"
    return f"hardtanh {node.args[1:]} {dict(node.kwargs)}" if known.name == "hardtanh" else known.name


class _Through:
    """The two ways through the nodes of a part: to carry its entry unchanged, or to give zero."""

    def __init__(self, module: fx.GraphModule, entry: fx.Node, nodes: frozenset[fx.Node], exit: fx.Node) -> None:
        self.module, self.entry, self.nodes, self.exit = module, entry, nodes, exit
        self._carried: dict[fx.Node, Changes | None] = {}

    def carry(self, node: Any) -> Changes | None:
        """What lets a node give the entry; None where it cannot."""
        if node is self.entry:
            return ()
        if not isinstance(node, fx.Node) or node not in self.nodes:
            return None
        if node not in self._carried:
            self._carried[node] = self._carry(node)
        return self._carried[node]

    def _carry(self, node: fx.Node) -> Changes | None:
        if node.op == "call_module":
            return self._carry_module(node, self.module.get_submodule(str(node.target)))
        known = operator_of(self.module, node)
        if known is not None and known.name == "add" and not node.kwargs and len(node.args) == 2:
            return self._first(self._skip(*sides) for sides in (node.args, node.args[::-1]))
        if node.target is either:
            return self._all(self.carry, node.args[1:])
        if known is not None and Trait.PASSES in known.traits:
            return self.carry(node.args[0])
        activation = activation_of(self.module, node)
        # What goes into the repeat is the exit of the part.
        return self.carry(node.args[0]) if activation and settled(self.module, self.exit, activation) else None

    def _carry_module(self, node: fx.Node, leaf: nn.Module) -> Changes | None:
        if isinstance(leaf, InTraining) or is_a(self.module, node, Trait.PASSES):
            return self.carry(node.args[0])
        if is_a(self.module, node, Trait.SETTLES):
            activation = activation_of(self.module, node)
            return self.carry(node.args[0]) if activation and settled(self.module, self.exit, activation) else None
        kind = IDENTITY if can_be_identity(leaf) else CALIBRATE if can_be_calibrated(leaf) else None
        rest = self.carry(node.args[0]) if kind else None
        return None if rest is None or kind is None else (*rest, Change(str(node.target), kind))

    def zero(self, node: Any) -> Changes | None:
        """What lets a node give zero; None where it cannot."""
        if not isinstance(node, fx.Node) or node not in self.nodes:
            return None
        if node.op == "get_attr":
            value = node.meta["value"]
            trained = isinstance(value, Tensor) and holds_numbers(value) and _is_parameter(self.module, node)
            return (Change(str(node.target), ZERO),) if trained else None
        if node.op == "call_module":
            leaf = self.module.get_submodule(str(node.target))
            if isinstance(leaf, _AFFINE) and leaf.weight is not None:
                return (Change(str(node.target), ZERO),)
            keeps = isinstance(leaf, _AFFINE) or _keeps_zero(self.module, node)
            return self.zero(node.args[0]) if keeps else None
        known = operator_of(self.module, node)
        name = known.name if known else None
        if name == "add" and not node.kwargs:
            return self._all(self.zero, node.args)
        if name in ("mul", "matmul") and len(set(node.args)) < len(node.args):
            return None
        if name == "mul":
            # A factor that is a parameter (a layer scale) comes first.
            factors = sorted(node.args, key=lambda a: not (isinstance(a, fx.Node) and a.op == "get_attr"))
            return self._first(self.zero(factor) for factor in factors)
        if name == "matmul":
            return self._first(self.zero(factor) for factor in node.args)
        if name == "addmm" and len(node.args) == 3:
            product = self._first(self.zero(factor) for factor in node.args[:0:-1])  # the weights stand last
            return None if product is None else self._all(self.zero, [node.args[0]], product)
        if node.target is F.linear:
            bias = argument_of(node, 2, "bias")
            return self._all(self.zero, [node.args[1], *([] if bias is None else [bias])])
        if node.target is F.scaled_dot_product_attention:
            return self.zero(argument_of(node, 2, "value"))
        if node.target is either:
            return self._all(self.zero, node.args[1:])
        if flipped(node) is not node:
            return self.zero(flipped(node))
        if node.target is torch.cat:
            given: Any = node.args[0] if node.args else node.kwargs["tensors"]
            return self._all(self.zero, given)
        return self.zero(node.args[0]) if _keeps_zero(self.module, node) else None

    def _skip(self, kept: Any, branch: Any) -> Changes | None:
        """What lets one side of a sum carry the entry, and the other give zero."""
        carried = self.carry(kept)
        rest = None if carried is None else self.zero(branch)
        return None if carried is None or rest is None else (*carried, *rest)

    @staticmethod
    def _all(way: Callable[[Any], Changes | None], nodes: Any, found: Changes = ()) -> Changes | None:
        for node in nodes:
            changes = way(node)
            if changes is None:
                return None
            found = (*found, *changes)
        return found

    @staticmethod
    def _first(ways: Iterator[Changes | None]) -> Changes | None:
        return next((changes for changes in ways if changes is not None), None)
