"""Which values of a direct sum of networks are one tensor for all of them, and which are kept apart.

In a direct sum every value is *common* (the same for all teachers: inputs, constants), *side by side* (it has a
summed axis), a *mean* of the teachers' values (what a weight reads out of the sum into a fixed axis), or *apart*: one
tensor for each teacher. The output is the mean of the outputs only if everything after a mean is linear and nothing
mixes what stands side by side. Whatever is otherwise is computed once for each teacher, from slices of what stands side
by side; the results are put side by side again where they have one summed axis, and stay apart up to a node that gives
such, or to the outputs, where their mean is taken. So every network has a direct sum.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import fx, nn

from graphsurgery.axes.algebra import Dim, dims_of, resolve
from graphsurgery.axes.types import Mixing, TensorType, Typing, is_inside, tensor_types
from graphsurgery.graph import ModelGraph
from graphsurgery.network.aliasing import acts_in_place, written_together
from graphsurgery.network.layers import Boundary, either, shift_mask
from graphsurgery.network.operators import Trait, operator_of
from graphsurgery.network.paths import has_tensors, place_of
from graphsurgery.network.values.dtypes import holds_numbers
from graphsurgery.surgery.editor import setting
from graphsurgery.surgery.equivalents.grouping import groups_of
from graphsurgery.surgery.merging.side_by_side import MatchedTeachers, hands_on

_CONSTANT = frozenset(
    {
        torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, "new_zeros", "new_ones", "new_full",
        "new_empty", shift_mask,
    }
)  # fmt: skip


class State(Enum):
    """What a value of a direct sum is."""

    COMMON = "the same for all parents"
    BESIDE = "side by side"
    MEAN = "a mean of the parents"
    APART = "one for each parent"


@dataclass(frozen=True)
class SumLayout:
    """How the values of a direct sum are laid out.

    Attributes:
        states: of every node of the first network.
        apart: the nodes that are computed once for each network, with the reason.
    """

    states: Mapping[fx.Node, State]
    apart: Mapping[fx.Node, str]


def separable(graph: ModelGraph, mixing: Mixing) -> bool:
    """Whether an operator that mixes channels can be kept to those of each network."""
    node, given = mixing.node, mixing.node.kwargs
    match mixing.kind:
        case "group_norm":
            return groups_of(graph, node, mixing.kind) == 1
        case "grouped_norm":
            members = setting(graph, node, "members", 1).meta["value"]
            whole = not given.get("blocks") or members.shape[1] == 1
            return whole and given.get("affine") is None
    return mixing.kind in ("layer_norm", "rms_norm", "normalize")


def layout(family: MatchedTeachers, *, first: bool = False, each: bool = False) -> SumLayout:
    """Which values of a direct sum stand side by side, and what has to be computed for each network.

    Args:
        family: the networks.
        first: whether to stop as soon as it is known that something has to be computed for each network.
        each: whether the outputs of every network are wanted, and not their mean.
    """
    following = _Following(family, each=each)
    while following.walk() and not first:
        pass
    order = [node for node in family.graphs[0].module.graph.nodes if node in following.apart]
    return SumLayout(following.states, {node: following.apart[node] for node in order})


class _MixesError(Exception):
    """A node mixes what stands side by side, or bends a mean."""


class _Following:
    """The values of a direct sum, followed from the inputs to the outputs until nothing more has to be kept apart."""

    def __init__(self, family: MatchedTeachers, *, each: bool) -> None:
        self.family = family
        self._ends = [node for node in family.graphs[0].module.graph.nodes if node.op == "output"] if each else []
        self.types = family.graphs[0].types
        self.module = family.graphs[0].module
        self.states: dict[fx.Node, State] = {}
        self.apart: dict[fx.Node, str] = {node: why for node, why in family.unlike.items() if node.op != "output"}
        self._mixers = _mixers(family.graphs[0], family.summed)
        self._bends = {access.node for access in self.types.readers if is_inside(access)}
        self._reads = {access.node for access in self.types.readers}
        self._read_with: dict[fx.Node, list[str]] = {}
        for access in self.types.readers:
            if access.weight is not None:
                self._read_with.setdefault(access.node, []).append(access.weight[0])
        self._weighs = self._reads | {access.node for access in self.types.writers}
        self._written = [_tensors_of(nodes) for nodes in written_together(self.module)]
        self._users: dict[str, list[fx.Node]] = {}
        self._weights: dict[fx.Node, list[str]] = {}
        for node in self.module.graph.nodes:
            self._weights[node] = _weights(self.module, self.types, node)
            for name in self._weights[node]:
                self._users.setdefault(name, []).append(node)
        self._asked: dict[fx.Node, frozenset[fx.Node]] = {}

    def walk(self) -> bool:
        """Go through all nodes once; whether more has to be kept apart than was known."""
        known = len(self.apart)
        for node in self.module.graph.nodes:
            try:
                self.states[node] = self._state(node)
            except _MixesError as error:
                self.states[node] = State.APART
                self.apart[node] = str(error)
        for node in (*self.apart, *self._ends):
            self._keep_sources_apart(node)
        self._keep_together()
        return len(self.apart) > known

    def _keep_sources_apart(self, node: fx.Node) -> None:
        """What is computed for each network cannot read a mean of them, and reads parameters of each."""
        waiting = [node]
        while waiting:
            reader = waiting.pop()
            for source in reader.all_input_nodes:
                mean = self.states[source] is State.MEAN
                weight = self.states[source] is State.BESIDE and self._is_weight(source)
                if (mean or weight) and source not in self.apart:
                    self.apart[source] = f"{place_of(source)} is read by {place_of(reader)}, which is kept apart"
                    waiting.append(source)

    def _is_weight(self, node: fx.Node) -> bool:
        """Whether a node reads a parameter, or gives one with its axes in another order."""
        typed = self.types.types[node]
        return node.op == "get_attr" or (isinstance(typed, TensorType) and typed.parameter is not None)

    def _keep_together(self) -> None:
        """All that use one parameter, or write and read one piece of memory, are kept apart together."""
        for nodes in (*self._users.values(), *self._written):
            reason = next((self.apart[node] for node in nodes if node in self.apart), None)
            if reason is not None:
                self.apart.update({node: reason for node in nodes if node not in self.apart})

    def _state(self, node: fx.Node) -> State:
        if node in self.apart:
            return State.APART
        if hands_on(node):
            common = all(self.states[source] is State.COMMON for source in node.all_input_nodes)
            return State.COMMON if common else State.MEAN
        tensors = tensor_types(self.types.types[node])
        written = acts_in_place(self.module, node) and node.all_input_nodes
        if node.op == "placeholder" or not (tensors or written):
            return State.COMMON
        sources = [self._as_read(source, node) for source in node.all_input_nodes]
        state = self._of_tensors(node, tensors, sources)
        if written and sources[0] is not state:
            raise _refusal(node, "writes into a tensor that is not what it writes")
        if written and any(self.states[source] is State.APART for source in node.all_input_nodes):
            raise _refusal(node, "writes into what is kept apart")
        return state

    def _as_read(self, source: fx.Node, reader: fx.Node) -> State:
        """What a value is to who reads it: what is kept apart is put side by side, or its mean is taken."""
        state = self.states[source]
        if isinstance(source.meta["value"], (torch.device, torch.dtype)):
            return state  # every network has the same
        if not has_tensors(source.meta["value"]):
            for tensor in self._asks(source):
                if self.states[tensor] is State.APART and not self._gives_sizes(tensor):
                    raise _refusal(reader, f"is given a size of {place_of(tensor)}, which is kept apart")
            return state
        if state is not State.APART:
            return state
        if not self.family.can_be_joined(source):
            raise _refusal(reader, f"reads {place_of(source)}, which is kept apart")
        return State.BESIDE

    def _gives_sizes(self, tensor: fx.Node) -> bool:
        """Whether the sizes of what is kept apart are those of the direct sum, or of every network."""
        typed = self.types.types[tensor]
        one = isinstance(typed, TensorType) and not any(map(self.family.is_summed, typed.axes))
        return (one and tensor not in self.family.resized) or self.family.can_be_joined(tensor)

    def _asks(self, number: fx.Node) -> frozenset[fx.Node]:
        """The tensors whose sizes a number is computed from."""
        if number not in self._asked:
            found: set[fx.Node] = set()
            for source in number.all_input_nodes:
                found |= {source} if has_tensors(source.meta["value"]) else self._asks(source)
            self._asked[number] = frozenset(found)
        return self._asked[number]

    def _of_tensors(self, node: fx.Node, tensors: list[TensorType], sources: list[State]) -> State:
        summed, same = self.family.summed, self.family.same_everywhere
        beside = any(self.family.is_summed(axis) for typed in tensors for axis in typed.axes)
        weights = self._weights[node]
        if node.op in ("call_function", "call_method") and node.target in _CONSTANT:
            return State.BESIDE if beside else State.COMMON
        for name in weights:
            obstacle = self.family.obstacle(name)
            if obstacle is not None:
                raise _MixesError(obstacle)
        if node.op == "get_attr":
            return State.BESIDE if beside else State.COMMON if all(map(same, weights)) else State.MEAN
        if node in self._mixers:
            raise _MixesError(self._mixers[node])
        if not tensors and set(sources) - {State.COMMON}:
            raise _refusal(node, "writes into a tensor that is not what it writes")
        if beside:
            if State.MEAN in sources:
                raise _refusal(node, "combines a mean of the parents with their streams")
            if any(sum(map(self.family.is_summed, typed.axes)) > 1 for typed in tensors):
                raise _refusal(node, "has the parents' streams on two axes")
            if any(self.family.is_averaged(name) for name in self._read_with.get(node, ())):
                raise _refusal(node, "gives the parents' streams, by a weight that reads a mean of them")
            if not all(same(name) for name in weights if not _is_beside(self.types, name, summed)):
                raise _refusal(node, "has one weight for the streams of all parents")
            return State.BESIDE
        return self._of_one_for_all(node, tensors, sources)

    def _of_one_for_all(self, node: fx.Node, tensors: list[TensorType], sources: list[State]) -> State:
        """What a node without the networks' streams gives: something common to all, or a mean."""
        common = all(map(self.family.same_everywhere, self._weights[node]))
        if node in self._bends and (State.BESIDE in sources or not common):
            raise _refusal(node, "is not linear in what it reads and in its weights")
        if State.BESIDE in sources:
            if node.target is operator.getitem or node in self._reads:
                return State.MEAN
            raise _refusal(node, "mixes the parents' streams")
        if State.MEAN not in sources:
            if common:
                return State.COMMON
            if node in self._weighs:
                return State.MEAN
        elif self._keeps_means(node) or not tensors:
            return State.MEAN
        raise _refusal(node, "is not linear, and reads a mean of the parents (a frozen axis lies before it)")

    def _keeps_means(self, node: fx.Node) -> bool:
        """Whether a node maps the mean of its inputs to the mean of its outputs."""
        if self._weights[node]:
            return False
        known = operator_of(self.module, node)
        if known is None:
            return node.target is either or isinstance(self._leaf(node), Boundary)
        if Trait.AFFINE in known.traits:
            return True
        operands = [*node.args, *node.kwargs.values()]
        means = [isinstance(operand, fx.Node) and self.states[operand] is State.MEAN for operand in operands]
        if known.name == "div":
            return means == [True, False]  # by what is common, and not rounded
        return known.name == "mul" and sum(means) == 1

    def _leaf(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _mixers(graph: ModelGraph, summed: Iterable[Dim]) -> dict[fx.Node, str]:
    """The nodes that mix what stands side by side, or tell apart what does from what does not, and how."""
    types, found = graph.types, {}
    summed = set(summed)
    for mixing in types.mixings:
        if not separable(graph, mixing) and not summed.isdisjoint(dims_of(mixing.axis)):
            found[mixing.node] = f"{place_of(mixing.node)}: {mixing.kind} over channels would mix the parents' streams"
    for access in types.readers:
        own = access.weighted or is_inside(access)  # blocks of weights keep the streams apart
        if not own and not summed.isdisjoint(dims_of(access.axis)):
            found[access.node] = f"{place_of(access.node)}: a product over channels would mix the parents' streams"
    for access in types.writers:
        free = [not summed.isdisjoint(term) for term in resolve(access.axis)]
        if any(free) and not all(free):
            error = _refusal(access.node, "writes channels of which some are frozen and some are not")
            found[access.node] = str(error)
    return found


def _tensors_of(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Those that give tensors, and those that only write into them; what is handed on has its mean taken."""
    own = (node for node in nodes if not hands_on(node))
    return [node for node in own if has_tensors(node.meta["value"]) or node.target is operator.setitem]


def _is_beside(types: Typing, name: str, summed: set[Dim]) -> bool:
    """Whether the parents stand side by side in a parameter."""
    return any(dim in summed for axis in types.parameters[name].axes for dim in dims_of(axis))


def _weights(module: fx.GraphModule, types: Typing, node: fx.Node) -> list[str]:
    """The first names of the parameters and buffers of numbers that a node reads or gives."""
    if node.op == "get_attr":
        name = types.canonical.get(str(node.target))
        return [] if name is None else [name]
    if node.op != "call_module":
        return []
    leaf = module.get_submodule(str(node.target))
    names = [n for n, t in (*leaf.named_parameters(), *leaf.named_buffers()) if holds_numbers(t)]
    return [types.canonical[f"{node.target}.{name}"] for name in names]


def _refusal(node: fx.Node, what: str) -> _MixesError:
    return _MixesError(f"{place_of(node)} {what}, so the outputs would not be the mean of the parents' outputs")
