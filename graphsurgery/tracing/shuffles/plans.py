"""What operators do with channels in another order: a table of plans, one for each kind of operator.

A plan says in which order a node gets the channels of its operands, how its parameters are reordered to fit, and in
which order it then gives its own channels. An operator without a plan gets everything in the old order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphsurgery.network.layers import either
from graphsurgery.network.operators import Trait, argument_of, modules, spelled, spelling_of, spellings
from graphsurgery.network.paths import has_tensors
from graphsurgery.tracing.shuffles.wires import Order, Wiring, lays_out_positions, natural_order, runs

Arrangement = tuple[tuple[int, tuple[Order, ...]], ...]
"""How a parameter is reordered: axes, each with one order for all of it, or with one for each block of its axis 0."""


@dataclass(frozen=True)
class Reordering:
    """How a node computes on reordered channels; what is not named is in its old order.

    Attributes:
        operands: in which order the node gets the channels of an operand.
        tensors: how its parameters and buffers are reordered, by name.
        result: in which order it gives its own channels; None for the old one.
    """

    operands: Mapping[fx.Node, Order] = field(default_factory=dict)
    tensors: Mapping[str, Arrangement] = field(default_factory=dict)
    result: Order | None = None


class Known(Protocol):
    """What a plan is made from."""

    module: fx.GraphModule

    def wires(self, node: fx.Node) -> Wiring | None:
        """Where the channels of a tensor are by now, in their old order; None if that cannot be said."""

    def wanted(self, node: fx.Node) -> Order | None:
        """The order in which a dense layer had best write its channels; None where it does not matter."""


Planner = Callable[[Known, fx.Node], "Reordering | None"]
PLANS: dict[Any, Planner] = {}


def plan(*operators: Any) -> Callable[[Planner], Planner]:
    """Register the plan of exactly these functions, module classes, or method names."""

    def register(function: Planner) -> Planner:
        PLANS.update(dict.fromkeys(operators, function))
        return function

    return register


def same(order: Order) -> bool:
    """Whether an order changes nothing."""
    return order == tuple(range(len(order)))


def arranged(tensor: Tensor, arrangement: Arrangement) -> Tensor:
    """A parameter, reordered."""
    for axis, orders in arrangement:
        blocks = zip(tensor.chunk(len(orders)), orders, strict=True)
        tensor = torch.cat([block.index_select(axis, torch.tensor(o, device=block.device)) for block, o in blocks])
    return tensor


def _tensors(node: fx.Node, known: Known, **arrangements: Arrangement) -> dict[str, Arrangement]:
    """The arrangements of those parameters and buffers that the node's module has, and that change."""
    module = known.module.get_submodule(str(node.target))
    changed = {name: tuple(a for a in each if not all(map(same, a[1]))) for name, each in arrangements.items()}
    return {f"{node.target}.{n}": a for n, a in changed.items() if a and getattr(module, n, None) is not None}


def _operand(known: Known, node: fx.Node) -> tuple[fx.Node, Order] | None:
    """The first operand, and the order in which its channels are the fewest slices."""
    operand = node.args[0] if node.args else None
    wiring = known.wires(operand) if isinstance(operand, fx.Node) else None
    return (operand, natural_order(wiring)) if isinstance(operand, fx.Node) and wiring is not None else None


@plan(*spellings(Trait.ELEMENTWISE), *spellings(Trait.SHARES))
def keep(known: Known, node: fx.Node) -> Reordering | None:
    """Acts on all channels alike, so it keeps their order."""
    found = _operand(known, node)
    return found and Reordering({found[0]: found[1]}, result=found[1])


@plan(*spellings(Trait.POSITIONS))
def pool(known: Known, node: fx.Node) -> Reordering | None:
    """Keeps the order of channels, which come before the positions."""
    operator = spelling_of(known.module, node)
    digits = [int(c) for c in operator.__name__ if c.isdigit()]
    return keep(known, node) if _rank(node) >= 2 + (digits[-1] if digits else 1) else None


@plan(F.pad)
def pad(known: Known, node: fx.Node) -> Reordering | None:
    """Keeps the order of channels that are not padded."""
    sizes = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    return keep(known, node) if isinstance(sizes, (list, tuple)) and _rank(node) >= 2 + len(sizes) // 2 else None


def _rank(node: fx.Node) -> int:
    value = node.meta["value"]
    return value.dim() if isinstance(value, Tensor) else 0


@plan(*modules(Trait.PER_CHANNEL), *spelled("frozen_batch_norm"), nn.PReLU)
def per_channel(known: Known, node: fx.Node) -> Reordering | None:
    """Its vectors follow the channels; a single slope serves all."""
    found, module = _operand(known, node), known.module.get_submodule(str(node.target))
    unbatched = "InstanceNorm" in type(module).__name__ and _rank(node) != int(type(module).__name__[-2]) + 2
    if found is None or unbatched:
        return None
    vector = () if isinstance(module, nn.PReLU) and module.num_parameters == 1 else ((0, (found[1],)),)
    vectors = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), vector)
    return Reordering({found[0]: found[1]}, _tensors(node, known, **vectors), found[1])


@plan(nn.LayerNorm)
def layer_norm(known: Known, node: fx.Node) -> Reordering | None:
    """Over positions, it keeps the order; over the channels alone, its vectors follow them."""
    found, module = _operand(known, node), known.module.get_submodule(str(node.target))
    assert isinstance(module, nn.LayerNorm)
    if found is None or len(module.normalized_shape) > max(_rank(node) - 2, 1):
        return None
    vector = ((0, (found[1],)),) if _rank(node) == 2 else ()
    return Reordering({found[0]: found[1]}, _tensors(node, known, weight=vector, bias=vector), found[1])


@plan(nn.GroupNorm)
def group_norm(known: Known, node: fx.Node) -> Reordering | None:
    """Its vectors follow channels that stay in their groups."""
    found, module = _operand(known, node), known.module.get_submodule(str(node.target))
    assert isinstance(module, nn.GroupNorm)
    order = found and _grouped(found[1], module.num_groups)
    if found is None or order is None:
        return None
    vector = ((0, (order,)),)
    return Reordering({found[0]: order}, _tensors(node, known, weight=vector, bias=vector), order)


def _grouped(order: Order, groups: int) -> Order | None:
    """The order if it keeps the channels of a group together."""
    size = len(order) // groups
    together = all(channel // size == order[i - i % size] // size for i, channel in enumerate(order))
    return order if together else None


@plan(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(known: Known, node: fx.Node) -> Reordering | None:
    """Sums the order away within its groups; the groups keep theirs."""
    found, module = _operand(known, node), known.module.get_submodule(str(node.target))
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    order = found and _grouped(found[1], module.groups)
    if found is None or order is None or _rank(node) != module.weight.dim():
        return None
    size, written = module.in_channels // module.groups, module.out_channels // module.groups
    blocks = [order[i : i + size] for i in range(0, len(order), size)]
    columns = tuple(tuple(channel % size for channel in block) for block in blocks)
    rows = tuple(block[0] // size * written + i for block in blocks for i in range(written))
    if module.groups == 1:
        rows = known.wanted(node) or rows
    weight = ((0, (rows,)), (1, columns))
    return Reordering({found[0]: order}, _tensors(node, known, weight=weight, bias=((0, (rows,)),)), rows)


@plan(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(known: Known, node: fx.Node) -> Reordering | None:
    """Without groups, sums the order away."""
    found, module = _operand(known, node), known.module.get_submodule(str(node.target))
    assert isinstance(module, nn.modules.conv._ConvTransposeNd)
    if found is None or module.groups > 1 or _rank(node) != module.weight.dim() or len(node.args) > 1 or node.kwargs:
        return None
    rows = known.wanted(node) or tuple(range(module.out_channels))
    tensors = _tensors(node, known, weight=((0, (found[1],)), (1, (rows,))), bias=((0, (rows,)),))
    return Reordering({found[0]: found[1]}, tensors, rows)


@plan(nn.Linear)
def linear(known: Known, node: fx.Node) -> Reordering | None:
    """Sums the order away; where channels are not the last axis, keeps it."""
    found, module = _operand(known, node), known.module.get_submodule(str(node.target))
    assert isinstance(module, nn.Linear)
    if found is None or _rank(node) > 2:
        return keep(known, node)
    rows = known.wanted(node) or tuple(range(module.out_features))
    weight = ((0, (rows,)), (1, (found[1],)))
    return Reordering({found[0]: found[1]}, _tensors(node, known, weight=weight, bias=((0, (rows,)),)), rows)


@plan(*spellings(Trait.BROADCAST))
def pointwise(known: Known, node: fx.Node) -> Reordering | None:
    """All operands get the order in which they are the fewest slices together; parameters follow it."""
    met = meeting(node)
    wirings = {operand: known.wires(operand) for operand in met if operand.op != "get_attr"}
    if not wirings or any(wiring is None or met[operand] != 1 for operand, wiring in wirings.items()):
        return None
    given = [wiring for wiring in wirings.values() if wiring is not None]
    candidates = dict.fromkeys([*map(natural_order, given), tuple(range(len(given[0])))])
    order = min(candidates, key=lambda order: sum(len(runs([wiring[i] for i in order])) for wiring in given))
    follow = {str(p.target): ((axis, (order,)),) for p, axis in met.items() if p.op == "get_attr" and not same(order)}
    return Reordering(dict.fromkeys(wirings, order), follow, order)


def meeting(node: fx.Node) -> dict[fx.Node, int]:
    """The operands of a pointwise node that have each of its channels, and on which axis."""
    value, found = node.meta["value"], {}
    for operand in node.all_input_nodes:
        tensor = operand.meta["value"]
        if isinstance(tensor, Tensor) and isinstance(value, Tensor) and value.dim() > 1:
            axis = tensor.dim() - value.dim() + 1
            if axis >= 0 and tensor.shape[axis] == value.shape[1]:
                found[operand] = axis
    return found


@plan(either)
def choice(known: Known, node: fx.Node) -> Reordering | None:
    """One of two tensors of one shape, which get one order."""
    given = [operand.meta["value"] for operand in node.all_input_nodes if has_tensors(operand.meta["value"])]
    own = node.meta["value"]
    alike = isinstance(own, Tensor) and all(isinstance(value, Tensor) and value.shape == own.shape for value in given)
    return pointwise(known, node) if alike else None


@plan(*spellings(Trait.REDUCES))
def reduce(known: Known, node: fx.Node) -> Reordering | None:
    """Over positions, keeps the order; over the channels too, it does not matter."""
    found = _operand(known, node) if isinstance(node.meta["value"], Tensor) else None
    dims = argument_of(node, 1, "dim")
    dims = [dims] if isinstance(dims, int) and not isinstance(dims, bool) else dims
    if found is None or not isinstance(dims, (list, tuple)) or not dims or not all(isinstance(d, int) for d in dims):
        return None
    reduced = {d % found[0].meta["value"].dim() for d in dims}
    if 1 in reduced:
        return Reordering({found[0]: found[1]})
    return None if 0 in reduced else Reordering({found[0]: found[1]}, result=found[1])


@plan("expand_as")
def expand_as(known: Known, node: fx.Node) -> Reordering | None:
    """Stretched over positions, a tensor keeps the order of its channels; the other one gives nothing but its shape."""
    found, other = _operand(known, node), node.args[1]
    wiring = known.wires(other) if isinstance(other, fx.Node) else None
    if found is None or wiring is None or found[0].meta["value"].shape[:2] != node.meta["value"].shape[:2]:
        return None
    assert isinstance(other, fx.Node)
    return Reordering({other: natural_order(wiring), found[0]: found[1]}, result=found[1])


@plan(
    torch.flatten, "flatten", nn.Flatten, torch.unflatten, "unflatten", torch.reshape, "reshape", "view",
    torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze",
)  # fmt: skip
def lay_out(known: Known, node: fx.Node) -> Reordering | None:
    """Keeps the order where only positions are laid out anew, and where linear layers read `[batch, features]`.

    A linear layer fixes the number of positions of each channel. Anything else may meet other resolutions.
    """
    found, value = _operand(known, node), node.meta["value"]
    if found is None or value.dim() < 2:
        return None
    shape, order = found[0].meta["value"].shape, found[1]
    if lays_out_positions(known.module, node):
        return Reordering({found[0]: order}, result=order)
    if value.dim() > 2 or value.shape[0] != shape[0] or not _for_linear(known.module, node):
        return None
    size = value.shape[1] // len(order)
    return Reordering({found[0]: order}, result=tuple(channel * size + i for channel in order for i in range(size)))


def _for_linear(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether only linear layers read a tensor, unchanged or each element for itself."""
    for user in node.users:
        operator = spelling_of(module, user) if user.op.startswith("call") else None
        passes = operator is nn.Linear or (PLANS.get(operator) is keep and _for_linear(module, user))
        if not passes or user.args[0] is not node:
            return False
    return bool(node.users)


def keeps(module: fx.GraphModule, node: fx.Node, operand: fx.Node) -> bool:
    """Whether a node has as many channels as this operand, and gives them in the order in which it gets them."""
    kind = PLANS.get(spelling_of(module, node)) if node.op.startswith("call") else None
    if kind is convolution:
        layer = module.get_submodule(str(node.target))
        return layer.groups == layer.in_channels == layer.out_channels
    keeping = kind in (keep, pool, pad, per_channel, expand_as) or (
        kind is lay_out and lays_out_positions(module, node)
    )
    return keeping and node.args[0] is operand and node.meta["value"].shape[1] == operand.meta["value"].shape[1]
