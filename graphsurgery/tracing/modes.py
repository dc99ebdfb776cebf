"""Train and eval in one graph: two traces of a network, one in each mode, become one that follows the mode.

A flag (`layers.TrainingFlag`) is a node that gives the mode; `layers.either` takes one value or the other. Where the
two traces agree, which is nearly everywhere, there is one node.
"""

from __future__ import annotations

import bisect
import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from graphsurgery.network.aliasing import acts_in_place, makes_new
from graphsurgery.network.layers import TrainingFlag, either
from graphsurgery.network.outputs.records import held_by, is_mapping
from graphsurgery.network.paths import has_tensors

FLAG = "training_flag"


class ModesDifferError(Exception):
    """What one mode does cannot stand in a graph that also runs in the other."""


def same_graph(a: fx.Graph, b: fx.Graph) -> bool:
    """Whether two traces are one, node by node."""
    if len(a.nodes) != len(b.nodes):
        return False
    twins: dict[fx.Node, fx.Node] = {}
    for left, right in zip(a.nodes, b.nodes, strict=True):
        twins[left] = right
        if (left.op, left.target) != (right.op, right.target):
            return False
        if fx.map_arg((left.args, left.kwargs), twins.__getitem__) != (right.args, right.kwargs):
            return False
    return True


def join(evaluating: fx.Graph, training: fx.Graph, skeletons: Sequence[nn.Module]) -> fx.Graph:
    """One graph that does what each of two traces does, in its mode.

    Nodes that only one of them has run in both modes, and what they give is used in one.

    Args:
        evaluating: the trace in eval mode.
        training: the trace in train mode, of the same network.
        skeletons: where each finds its modules.

    Raises:
        ModesDifferError: a node of only one mode writes into memory or into statistics.
    """
    return _Join(evaluating, training, skeletons).run()


def shared_runs(left: Sequence[Any], right: Sequence[Any]) -> Iterator[tuple[int, int, int]]:
    """Where two lists are alike, in order: the beginning of each run in both, and its length; last what is behind all.

    A search takes the square of what it looks through, so it goes from one thing to the next that both have once.
    """
    begins = 0, 0
    for ends in [*_landmarks(left, right), (len(left), len(right))]:
        between = left[begins[0] : ends[0]], right[begins[1] : ends[1]]
        for first, second, length in difflib.SequenceMatcher(None, *between, autojunk=False).get_matching_blocks():
            yield begins[0] + first, begins[1] + second, length
        yield *ends, int(ends[0] < len(left))
        begins = ends[0] + 1, ends[1] + 1


def _landmarks(left: Sequence[Any], right: Sequence[Any]) -> list[tuple[int, int]]:
    """The places of what each of two lists has once: as many as can be in the order of both."""
    counts, place = (Counter(left), Counter(right)), {item: number for number, item in enumerate(right)}
    once = [n for n, item in enumerate(left) if counts[0][item] == counts[1][item] == 1]
    tails: list[int] = []  # where the shortest chains of each length end in the right list
    chains: list[Any] = []  # these: the last place, and the chain before it
    for number in once:
        other = place[left[number]]
        at = bisect.bisect_left(tails, other)
        chain = ((number, other), chains[at - 1] if at else None)
        tails[at : at + 1], chains[at : at + 1] = [other], [chain]
    found, rest = [], chains[-1] if chains else None
    while rest is not None:
        last, rest = rest
        found.append(last)
    return found[::-1]


class _Join:
    def __init__(self, evaluating: fx.Graph, training: fx.Graph, skeletons: Sequence[nn.Module]) -> None:
        self.nodes = (list(evaluating.nodes), list(training.nodes))
        self.skeletons = skeletons
        self.graph = fx.Graph()
        self.copies: tuple[dict[fx.Node, fx.Node], dict[fx.Node, fx.Node]] = ({}, {})
        self.shared: dict[tuple[str, str], fx.Node] = {}
        self.flag: fx.Node | None = None
        self.own: tuple[set[fx.Node], set[fx.Node]] = (set(), set())
        """The nodes whose memory only one mode looks at."""

    def run(self) -> fx.Graph:
        in_evaluation, in_training = ([(node.op, node.target) for node in nodes] for nodes in self.nodes)
        done = [0, 0]
        for e, t, length in shared_runs(in_evaluation, in_training):
            for mode, end in ((0, e), (1, t)):
                for node in self.nodes[mode][done[mode] : end]:
                    self._alone(node, mode)
            for k in range(length):
                self._pair(self.nodes[0][e + k], self.nodes[1][t + k])
            done = [e + length, t + length]
        return self.graph

    def _alone(self, node: fx.Node, mode: int) -> None:
        if not self._is_shared(node, mode):
            self._check_statistics(node, mode)
            if acts_in_place(self.skeletons[mode], node):
                self._separate(node, mode)
            self.own[mode].add(node)
            self._add(node, (mode,), self.copies[mode].__getitem__)

    def _check_statistics(self, node: fx.Node, mode: int) -> None:
        skeleton = self.skeletons[mode]
        if (
            node.op == "call_module"
            and mode == 0
            and any(True for _ in skeleton.get_submodule(str(node.target)).buffers())
        ):
            raise ModesDifferError(f"{node.target} is used in evaluation only, and would learn statistics in training")

    def _separate(self, node: fx.Node, mode: int) -> None:
        """Let a node that only one mode has write into a copy, which all that this mode reads later is taken from.

        Raises:
            ModesDifferError: it writes into a parameter, a buffer or an input.
        """
        skeleton = self.skeletons[mode]
        base = node.all_input_nodes[0]
        while base.all_input_nodes and not makes_new(skeleton, base):
            base = base.all_input_nodes[0]
        if base in self.own[mode]:
            return
        if base.op in ("get_attr", "placeholder"):
            raise ModesDifferError(f"{node.name} writes into memory in one of the modes only")
        copies = self.copies[mode]
        self.own[mode].add(base)
        clone = self.graph.call_method("clone", (copies[base],))
        clone.meta["value"] = base.meta["value"]
        copies[base] = clone
        views = {base}
        for before in self.nodes[mode]:
            if before is node:
                return
            source = before.all_input_nodes[0] if before.all_input_nodes else None
            if source not in views or makes_new(skeleton, before) or not has_tensors(before.meta["value"]):
                continue
            views.add(before)
            if acts_in_place(skeleton, before):
                copies[before] = copies[source]  # the copy has what it wrote
            else:
                self._check_statistics(before, 0)
                self._add(before, (mode,), copies.__getitem__)

    def _is_shared(self, node: fx.Node, mode: int) -> bool:
        """Parameters and flags are one node each, wherever a trace first asks for them."""
        if node.op != "get_attr" and not (node.op == "call_module" and str(node.target).endswith(FLAG)):
            return False
        key = (node.op, str(node.target))
        if node.op == "get_attr" and not self._same_constant(str(node.target)):
            raise ModesDifferError(f"{node.target} is one constant in training and another in evaluation")
        if key not in self.shared:
            self._add(node, (mode,), lambda n: self.copies[mode][n])
            self.shared[key] = self.copies[mode][node]
        self.copies[mode][node] = self.shared[key]
        return True

    def _same_constant(self, path: str) -> bool:
        """Whether a tensor that both traces name, and hold each for itself, is the same in both."""
        if "." in path or not all(hasattr(skeleton, path) for skeleton in self.skeletons):
            return True
        a, b = (getattr(skeleton, path) for skeleton in self.skeletons)
        return a.is_meta or b.is_meta or bool(torch.equal(a, b))

    def _pair(self, in_evaluation: fx.Node, in_training: fx.Node) -> None:
        if self._is_shared(in_evaluation, 0):
            self._is_shared(in_training, 1)
            return
        if in_evaluation.op == "placeholder":
            self._add(in_evaluation, (0, 1), self.copies[0].__getitem__)
            self.copies[1][in_training] = self.copies[0][in_evaluation]
            return
        if _have_other_keys(in_evaluation, in_training):
            self._alone(in_evaluation, 0)
            self._alone(in_training, 1)
            return
        args = self._meet(in_evaluation.args, in_training.args)
        kwargs = self._meet(in_evaluation.kwargs, in_training.kwargs)
        new = self.graph.create_node(in_evaluation.op, in_evaluation.target, (), {}, in_evaluation.name)
        if not isinstance(args, tuple) or not isinstance(kwargs, Mapping):
            raise ModesDifferError(f"{in_evaluation.name} is called in another form in training")
        new.args, new.kwargs = args, dict(kwargs)
        new.meta = dict(in_evaluation.meta)
        self.copies[0][in_evaluation] = self.copies[1][in_training] = new

    def _add(self, node: fx.Node, modes: Sequence[int], copies: Any) -> None:
        new = self.graph.node_copy(node, copies)
        new.meta = dict(node.meta)
        for mode in modes:
            self.copies[mode][node] = new

    def _meet(self, e: Any, t: Any) -> Any:
        """One argument for both modes: itself where they agree, a choice by the flag where they do not."""
        mapped = [fx.map_arg(value, self.copies[mode].__getitem__) for mode, value in enumerate((e, t))]
        if _equal(*mapped):
            return mapped[0]
        alike = type(e) is type(t) and isinstance(e, (tuple, list, Mapping)) and len(e) == len(t)
        if alike and isinstance(e, Mapping) and list(e) == list(t):
            return {key: self._meet(e[key], t[key]) for key in e}
        if alike and not isinstance(e, Mapping):
            return type(e)(self._meet(a, b) for a, b in zip(e, t, strict=True))
        choice = self.graph.call_function(either, (self._mode(), mapped[1], mapped[0]))
        choice.meta["value"] = fx.map_arg(mapped[0], lambda node: node.meta["value"])
        return choice

    def _mode(self) -> fx.Node:
        """The flag of the whole network."""
        if self.flag is None:
            key = ("call_module", FLAG)
            if key not in self.shared:
                for skeleton in self.skeletons:
                    if not hasattr(skeleton, FLAG):
                        skeleton.add_module(FLAG, TrainingFlag())
                self.shared[key] = self.graph.call_module(FLAG)
                self.shared[key].meta["value"] = False
            self.flag = self.shared[key]
        return self.flag


def _have_other_keys(a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes make mappings of one class with unlike keys."""
    if not (isinstance(a.target, type) and is_mapping(a.target)):
        return False
    keys = [list(held_by(node.target, node.args, node.kwargs)) for node in (a, b)]
    return keys[0] != keys[1]


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (RuntimeError, ValueError):
        return False
