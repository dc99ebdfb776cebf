"""Whether a direct sum of networks computes the mean of their outputs.

In a direct sum every value is *common* (the same for all teachers: inputs, constants), *side by side* (it has a
summed axis) or a *mean* of the teachers' values (what a weight reads out of the sum into a fixed axis). The output is
the mean of the outputs only if everything after a mean is linear and nothing mixes what stands side by side.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphsurgery.axes.algebra import Dim, dims_of, resolve
from graphsurgery.axes.types import Mixing, Typing, is_inside, tensor_types
from graphsurgery.graph import ModelGraph
from graphsurgery.network.aliasing import acts_in_place
from graphsurgery.network.layers import Boundary, either, shift_mask
from graphsurgery.network.operators import Trait, spellings
from graphsurgery.network.outputs.records import is_record
from graphsurgery.network.paths import place_of
from graphsurgery.network.values.dtypes import holds_numbers
from graphsurgery.surgery.editor import setting
from graphsurgery.surgery.grouping import groups_of

_NOT_LINEAR = frozenset(
    kind for kind in spellings(Trait.POSITIONS) if "max" in kind.__name__.lower() or "LP" in kind.__name__
)
_LINEAR = frozenset(
    {
        *spellings(Trait.POSITIONS), nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, torch.flatten,
        torch.reshape, torch.permute, torch.transpose, torch.cat, torch.stack, torch.mean, torch.sum, torch.add,
        torch.sub, operator.add, operator.sub, operator.iadd, operator.isub, operator.neg, operator.getitem,
        torch.squeeze, torch.unsqueeze, torch.split, torch.chunk, F.pad, "flatten", "reshape", "view", "permute",
        "transpose", "mean", "sum", "squeeze", "unsqueeze", "expand", "contiguous", "chunk", "split", "add", "to",
        "float", "double", "clone", either, Boundary,
    }
) - _NOT_LINEAR  # fmt: skip
_CONSTANT = frozenset(
    {
        torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, "new_zeros", "new_ones", "new_full",
        "new_empty", shift_mask,
    }
)  # fmt: skip
_SCALING = frozenset({operator.mul, operator.imul, operator.truediv, torch.mul, torch.div, "mul", "div"})


class _State(Enum):
    COMMON = "the same for all parents"
    BESIDE = "side by side"
    MEAN = "a mean of the parents"


def separable(graph: ModelGraph, mixing: Mixing) -> bool:
    """Whether an operator that mixes channels can be kept to those of each network."""
    node, given = mixing.node, mixing.node.kwargs
    match mixing.kind:
        case "group_norm":
            return groups_of(graph, node, mixing.kind) == 1
        case "grouped_norm":
            members = setting(graph, node, "members", 1).meta["value"]
            whole = not given.get("blocks") or members.shape[1] == 1
            return whole and given.get("affine") is None and bool(given.get("centred", True))
    return mixing.kind in ("layer_norm", "normalize")


def why_not_the_mean(graph: ModelGraph, summed: set[Dim], same_everywhere: Callable[[str], bool]) -> str | None:
    """Why the outputs of a direct sum would not be the mean of the networks' outputs; None where they would.

    Args:
        graph: the first of the networks; the others have its topology and types.
        summed: the dims along which the networks stand side by side.
        same_everywhere: whether all networks have the same values in a parameter.

    Returns:
        The first node that mixes, and how.
    """
    try:
        _follow(graph, summed, same_everywhere)
    except _MixesError as error:
        return str(error)
    return None


class _MixesError(Exception):
    """A node mixes what stands side by side, or bends a mean."""


def _follow(graph: ModelGraph, summed: set[Dim], same_everywhere: Callable[[str], bool]) -> None:
    types = graph.types
    for mixing in types.mixings:
        if not separable(graph, mixing) and any(dim in summed for dim in dims_of(mixing.axis)):
            raise _MixesError(f"{place_of(mixing.node)}: {mixing.kind} over channels would mix the parents' streams")
    for access in types.readers:
        apart = access.weighted or is_inside(access)  # blocks of weights keep the streams apart
        if not apart and any(dim in summed for dim in dims_of(access.axis)):
            raise _MixesError(f"{place_of(access.node)}: a product over channels would mix the parents' streams")
    for access in types.writers:
        free = [any(dim in summed for dim in term) for term in resolve(access.axis)]
        if any(free) and not all(free):
            raise _refusal(access.node, "writes channels of which some are frozen and some are not")
    states: dict[fx.Node, _State] = {}
    for node in graph.module.graph.nodes:
        states[node] = _state(graph.module, types, node, states, summed, same_everywhere)
        if acts_in_place(graph.module, node) and {states[n] for n in node.all_input_nodes} - {states[node]}:
            written = node.all_input_nodes[0]
            if states[written] is not states[node] or node.target is operator.setitem:
                raise _refusal(node, "writes into a tensor that is not what it writes")


def _state(
    module: fx.GraphModule,
    types: Typing,
    node: fx.Node,
    states: dict[fx.Node, _State],
    summed: set[Dim],
    same_everywhere: Callable[[str], bool],
) -> _State:
    tensors = tensor_types(types.types[node])
    if not tensors or node.op == "placeholder":
        return _State.COMMON
    beside = any(dim in summed for typed in tensors for axis in typed.axes for dim in dims_of(axis))
    if node.op in ("call_function", "call_method") and node.target in _CONSTANT:
        return _State.BESIDE if beside else _State.COMMON
    if node.op == "get_attr":
        name = types.canonical.get(str(node.target))
        same = name is None or same_everywhere(name)
        return _State.BESIDE if beside else _State.COMMON if same else _State.MEAN
    sources = [states[n] for n in node.all_input_nodes]
    weights = _weights(module, types, node)
    if beside:
        if _State.MEAN in sources and not _hands_on(node):
            raise _refusal(node, "combines a mean of the parents with their streams")
        if any(sum(any(dim in summed for dim in dims_of(axis)) for axis in typed.axes) > 1 for typed in tensors):
            raise _refusal(node, "has the parents' streams on two axes")
        if not all(same_everywhere(name) for name in weights if not _is_beside(types, name, summed)):
            raise _refusal(node, "has one weight for the streams of all parents")
        return _State.BESIDE
    bends = any(is_inside(access) for access in types.readers if access.node is node)
    if bends and (_State.BESIDE in sources or not all(same_everywhere(name) for name in weights)):
        raise _refusal(node, "is not linear in what it reads and in its weights")
    if _State.BESIDE in sources:
        if _hands_on(node) or node.target is operator.getitem or any(a.node is node for a in types.readers):
            return _State.MEAN
        raise _refusal(node, "mixes the parents' streams")
    if _State.MEAN not in sources:
        if all(same_everywhere(name) for name in weights):
            return _State.COMMON
        if any(a.node is node for a in types.readers + types.writers):
            return _State.MEAN
    elif _keeps_means(module, node, sources, weights) or all(_is_position(t) for t in tensors):
        return _State.MEAN
    raise _refusal(node, "is not linear, and reads a mean of the parents (a frozen axis lies before it)")


def _is_beside(types: Typing, name: str, summed: set[Dim]) -> bool:
    """Whether the parents stand side by side in a parameter."""
    return any(dim in summed for axis in types.parameters[name].axes for dim in dims_of(axis))


def _weights(module: fx.GraphModule, types: Typing, node: fx.Node) -> list[str]:
    if node.op != "call_module":
        return []
    leaf = module.get_submodule(str(node.target))
    names = [n for n, t in (*leaf.named_parameters(), *leaf.named_buffers()) if holds_numbers(t)]
    return [types.canonical[f"{node.target}.{name}"] for name in names]


def _keeps_means(module: fx.GraphModule, node: fx.Node, sources: list[_State], weights: list[str]) -> bool:
    """Whether a node maps the mean of its inputs to the mean of its outputs."""
    if _hands_on(node):
        return True
    if weights:
        return False
    key: Any = type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return key in _LINEAR or (key in _SCALING and sources.count(_State.MEAN) == 1)


def _hands_on(node: fx.Node) -> bool:
    """Whether a node is the output, or a named tuple or dataclass of what is given."""
    return node.op == "output" or is_record(node.target)


def _is_position(typed: Any) -> bool:
    return len(typed) == 0


def _refusal(node: fx.Node, what: str) -> _MixesError:
    return _MixesError(f"{place_of(node)} {what}, so the outputs would not be the mean of the parents' outputs")
