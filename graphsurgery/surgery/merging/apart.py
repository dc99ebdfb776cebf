"""What a direct sum computes once for each network: nodes for each, slices in front of them, and what joins them again.

One mechanism serves every operator. A node that is kept apart is copied from every network, with the weights and the
literal sizes that it has there. It is given slices of what stands side by side, and the values of its own network where
the node before it is kept apart too. Whoever reads the results side by side gets them joined along their summed axis;
the outputs get their mean.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.axes.algebra import Axis, resolve
from graphsurgery.axes.types import TensorType
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.aliasing import acts_in_place
from graphsurgery.network.copying import copy_module
from graphsurgery.network.outputs.records import is_record
from graphsurgery.network.paths import has_tensors, place_of
from graphsurgery.network.values.dtypes import holds_numbers
from graphsurgery.surgery.editor import put_at
from graphsurgery.surgery.merging.direct_sum import State, SumLayout
from graphsurgery.surgery.merging.side_by_side import MatchedTeachers, hands_on
from graphsurgery.surgery.remapping.remap import erase_unused_numbers


def names_apart(graph: ModelGraph, layout: SumLayout) -> set[str]:
    """The first names of the parameters and buffers that every network keeps for itself."""
    found = set()
    for node in layout.apart:
        if node.op == "get_attr":
            found.add(graph.types.canonical.get(str(node.target), ""))
        elif node.op == "call_module":
            leaf = graph.module.get_submodule(str(node.target))
            for name, _ in (*leaf.named_parameters(), *leaf.named_buffers()):
                found.add(graph.types.canonical[f"{node.target}.{name}"])
    return found


def keep_apart(family: MatchedTeachers, layout: SumLayout, new: ModelGraph, *, each: bool = False) -> None:
    """Put a node for each network in the place of every node that a layout keeps apart, in place.

    Args:
        family: the networks.
        layout: of their direct sum.
        new: that direct sum, in which these nodes are those of the first network; its module is to be compiled again.
        each: whether it gives the outputs of every network, in a tuple, and not their mean.

    Raises:
        SurgeryError: an output that is kept apart holds indices or flags, which have no mean.
    """
    _Keeping(family, layout, new, each=each).run()


class _Keeping:
    """One direct sum that is put right."""

    def __init__(self, family: MatchedTeachers, layout: SumLayout, new: ModelGraph, *, each: bool) -> None:
        self.each = each
        self.family, self.states, self.apart = family, layout.states, layout.apart
        self.types = family.graphs[0].types
        self.module, self.graph = new.module, new.module.graph
        self.count = len(family.graphs)
        self._copies = {node.name: node for node in self.graph.nodes}
        self._left = {self._copies[node.name]: node for node in layout.apart}
        self._back = [{twin: node for node, twin in nodes.items()} for nodes in family.nodes]
        self._parts: dict[fx.Node, list[fx.Node]] = {}
        self._own: dict[tuple[int, fx.Node], Any] = {}
        self._joined: dict[fx.Node, fx.Node] = {}
        others = [node for node in family.graphs[0].module.graph.nodes if node not in layout.apart]
        shared = {str(node.target) for node in others if node.op == "call_module"}
        self._belongings = _Belongings(family, self.module, shared)

    def run(self) -> None:
        """Go through the direct sum in its order."""
        for node in list(self.graph.nodes):
            old = self._left.get(node)
            if old is None and node.op == "output" and self.each:
                self._give_each(node)
            elif old is None:
                self._read_joined(node)
            else:
                self._parts[old] = self._copied(node, old)
            if acts_in_place(self.module, node):  # what was sliced or joined before is not what it was
                self._own.clear()
                self._joined.clear()
        for node in reversed([node for node in self.graph.nodes if node in self._left]):
            if node.op != "placeholder":
                self.graph.erase_node(node)
        erase_unused_numbers(self.graph)
        for node in self.graph.nodes:
            node.meta.pop("value", None)  # the sizes of all are found anew

    def _give_each(self, output: fx.Node) -> None:
        """Let the direct sum give what every network does."""
        given = []
        with self.graph.inserting_before(output):
            for teacher, graph in enumerate(self.family.graphs):
                back = self._back[teacher]
                end = next(iter(reversed(graph.module.graph.nodes)))
                if any(is_record(source.target) for source in end.all_input_nodes):
                    raise SurgeryError(
                        "concatenate: outputs in a named tuple or a dataclass cannot be given one by one"
                    )
                given.append(
                    fx.map_arg(end.args[0], lambda source, t=teacher, b=back: self._of(t, b[source]))  # type: ignore[misc]
                )
        output.args = (tuple(given),)

    # A node for each network ----------------------------------------------------------------------------------------

    def _copied(self, place: fx.Node, old: fx.Node) -> list[fx.Node]:
        """What every network has at `old`, in front of its place in the direct sum, or behind an input."""
        if old.op == "placeholder":
            with self.graph.inserting_after(place):
                return [self._node("call_method", "clone", (place,), old) for _ in range(self.count)]
        with self.graph.inserting_before(place):
            return [self._copy(teacher, old) for teacher in range(self.count)]

    def _copy(self, teacher: int, old: fx.Node) -> Any:
        """The node of one network, reading what is its own."""
        twin, back = self.family.nodes[teacher][old], self._back[teacher]
        args: Any = fx.map_arg(twin.args, lambda source: self._of(teacher, back[source]))
        kwargs: Any = fx.map_arg(twin.kwargs, lambda source: self._of(teacher, back[source]))
        if twin.target is operator.getitem and isinstance(args[0], tuple):
            return args[0][args[1]]
        owned = twin.op in ("call_module", "get_attr")
        target = self._belongings.path(teacher, str(twin.target)) if owned else twin.target
        new = self.graph.create_node(twin.op, target, args, kwargs, name=f"{old.name}_of_{teacher + 1}")
        new.meta = dict(twin.meta)
        return new

    def _node(self, kind: str, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        """A new node whose value is about that of another one."""
        new = self.graph.create_node(kind, target, args)
        new.meta["value"] = like.meta["value"]
        return new

    # What a node of one network reads -------------------------------------------------------------------------------

    def _of(self, teacher: int, node: fx.Node) -> Any:
        """A value as one network has it; the graph says where it inserts."""
        if node in self._parts:
            return self._parts[node][teacher]
        if (teacher, node) not in self._own:
            self._own[teacher, node] = self._found(teacher, node)
        return self._own[teacher, node]

    def _found(self, teacher: int, node: fx.Node) -> Any:
        if not has_tensors(node.meta["value"]):
            return self._copy(teacher, node)
        copy = self._copies[node.name]
        if self.states[node] is State.COMMON:
            return copy
        assert self.states[node] is State.BESIDE
        return self._sliced(teacher, copy, node.meta["value"], self.types.types[node])

    def _sliced(self, teacher: int, value: fx.Node, old: Any, typed: Any) -> Any:
        """The part of one network in what stands side by side; of several tensors, that of each."""
        if not isinstance(typed, TensorType):
            keys = old if isinstance(old, Mapping) else range(len(old))
            found = {}
            for key in keys:
                element = self.graph.call_function(operator.getitem, (value, key))
                element.meta["value"] = old[key]
                found[key] = self._sliced(teacher, element, old[key], typed[key]) if has_tensors(old[key]) else element
            return found if isinstance(old, Mapping) else tuple(found.values())
        for index, axis in enumerate(typed.axes):
            if self.family.is_summed(axis):
                value = self._sliced_axis(teacher, value, index, axis)
        return value

    def _sliced_axis(self, teacher: int, value: fx.Node, index: int, axis: Axis) -> fx.Node:
        inner = _repeated(axis)
        if inner is not None:
            part = self._sliced_axis(teacher, self._unfolded(value, index, self.family.size(inner)), index + 1, inner)
            return self._node("call_method", "flatten", (part, index, index + 1), value)
        runs = self.family.runs(teacher, axis)
        pieces = [self._narrowed(value, index, start, length) for _, start, length in runs]
        return pieces[0] if len(pieces) == 1 else self._node("call_function", torch.cat, (pieces, index), value)

    def _unfolded(self, value: fx.Node, index: int, size: int) -> fx.Node:
        """An axis of equal parts as two; how many they are may follow the batch."""
        return self._node("call_method", "unflatten", (value, index, (-1, size)), value)

    def _narrowed(self, value: fx.Node, index: int, start: int, length: int) -> fx.Node:
        return self._node("call_method", "narrow", (value, index, start, length), value)

    # What reads the results -----------------------------------------------------------------------------------------

    def _read_joined(self, reader: fx.Node) -> None:
        """Let a node of the direct sum read what is kept apart as one tensor."""
        for source in reader.all_input_nodes:
            old = self._left.get(source)
            if old is not None and not (source.op == "placeholder" and reader in self._clones(old)):
                with self.graph.inserting_before(reader):
                    reader.replace_input_with(source, self._one(old, reader))

    def _clones(self, old: fx.Node) -> list[fx.Node]:
        return self._parts.get(old, [])

    def _one(self, old: fx.Node, reader: fx.Node) -> Any:
        """One value for what is kept apart: side by side, or its mean, or a tensor of which only the size is asked."""
        parts, typed = self._parts[old], self.types.types[old]
        if hands_on(reader):
            return self._mean(parts, old, old.meta["value"])
        if not self.family.can_be_joined(old):
            assert not has_tensors(reader.meta["value"])
            return parts[0]
        if old not in self._joined:
            index = next(i for i, axis in enumerate(typed.axes) if self.family.is_summed(axis))
            self._joined[old] = self._beside(parts, index, typed[index])
        return self._joined[old]

    def _beside(self, parts: list[fx.Node], index: int, axis: Axis) -> fx.Node:
        """The networks' values side by side on one axis, where each lies in the direct sum."""
        inner = _repeated(axis)
        if inner is not None:
            sizes = [self.family.own_size(teacher, inner) for teacher in range(self.count)]
            unfolded = [self._unfolded(part, index, size) for part, size in zip(parts, sizes, strict=True)]
            joined = self._beside(unfolded, index + 1, inner)
            return self._node("call_method", "flatten", (joined, index, index + 1), parts[0])
        pieces = [
            (there, part, here, length)
            for teacher, part in enumerate(parts)
            for here, there, length in self.family.runs(teacher, axis)
        ]
        if len(pieces) == len(parts):
            return self._node("call_function", torch.cat, (parts, index), parts[0])
        pieces.sort(key=lambda piece: piece[0])
        cut = [self._narrowed(part, index, here, length) for _, part, here, length in pieces]
        return self._node("call_function", torch.cat, (cut, index), parts[0])

    def _mean(self, parts: list[Any], old: fx.Node, value: Any) -> Any:
        """The mean of what every network gives, tensor by tensor."""
        if isinstance(value, Tensor):
            if not holds_numbers(value):
                raise SurgeryError(
                    f"concatenate: output {place_of(old)} is of {value.dtype}, and indices and flags have no mean;"
                    " give what they are computed from"
                )
            total = parts[0]
            for part in parts[1:]:
                total = self._node("call_function", operator.add, (total, part), old)
            return self._node("call_function", operator.truediv, (total, len(parts)), old)
        if not has_tensors(value):
            return value
        keys = value if isinstance(value, Mapping) else range(len(value))
        found = {
            key: self._mean(
                [self._node("call_function", operator.getitem, (part, key), old) for part in parts], old, value[key]
            )
            for key in keys
        }
        return found if isinstance(value, Mapping) else tuple(found.values())


class _Belongings:
    """The modules, weights and constants of every network, which are put into the direct sum as they are asked for."""

    def __init__(self, family: MatchedTeachers, module: fx.GraphModule, shared: Collection[str]) -> None:
        self.family, self.module, self.shared = family, module, shared
        self._paths: dict[tuple[int, str], str] = {}
        self._tensors: list[dict[int, Tensor]] = [{} for _ in family.graphs]

    def path(self, teacher: int, path: str) -> str:
        """Where a module, parameter or constant of one network lies in the direct sum."""
        known = (teacher, path)
        if known not in self._paths:
            whole = teacher == 0 and path not in self.shared
            self._paths[known] = path if whole else self._put(teacher, path)
        return self._paths[known]

    def _put(self, teacher: int, path: str) -> str:
        source = self.family.graphs[teacher].module
        prefix, _, name = path.rpartition(".")
        part = getattr(source.get_submodule(prefix), name)
        new, number = f"{path}_of_{teacher + 1}", 1
        while _has(self.module, new):
            number += 1
            new = f"{path}_of_{teacher + 1}_{number}"
        if isinstance(part, nn.Module):
            part = copy_module(part, lambda tensor: self._tensor(teacher, tensor))
            for path_below, below in part.named_modules():
                below.training = source.get_submodule(f"{path}.{path_below}".rstrip(".")).training
        elif isinstance(part, Tensor):
            part = self._tensor(teacher, part)
        put_at(self.module, new, part)
        return new

    def _tensor(self, teacher: int, old: Tensor) -> Tensor:
        """A tensor of one network, as the direct sum's own; ties stay ties."""
        made = self._tensors[teacher]
        if id(old) not in made:
            new = old.detach().clone()
            made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        return made[id(old)]


def _repeated(axis: Axis) -> Axis | None:
    """What an axis is a number of equal parts of, next to each other; None where it is no such."""
    terms = resolve(axis)
    if len(terms) == 1:
        return (terms[0][1:],) if len(terms[0]) > 1 and terms[0][0].fixed else None
    for period in range(1, len(terms) // 2 + 1):
        if len(terms) % period == 0 and terms == terms[:period] * (len(terms) // period):
            return terms[:period]
    return None


def _has(module: nn.Module, path: str) -> bool:
    """Whether something lies at a path."""
    prefix, _, name = path.rpartition(".")
    try:
        return hasattr(module.get_submodule(prefix), name)
    except AttributeError:
        return False
