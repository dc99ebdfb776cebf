"""Types every axis of a traced graph: one walk over the nodes, calling the rule of each operator.

The trace has left the value of every node (a meta tensor, or a size) in `node.meta["value"]`, so typing runs no
operator. A rule mirrors the signature of its operator; where the operator takes a tensor, the rule gets its type.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis, Clash
from graphsurgery.axes.findings import Findings
from graphsurgery.axes.types import (
    Frozen,
    TensorType,
    Typing,
    all_axes,
    tensor_types,
)
from graphsurgery.network.operators import is_in_place, key_of
from graphsurgery.network.outputs.records import held_by, is_record
from graphsurgery.network.paths import has_tensors

Rule = Callable[..., Any]

RULES: dict[Any, Rule] = {}


def rule(*keys: Any) -> Callable[[Rule], Rule]:
    """Register a rule for exact functions, module classes, method names, or paths of torchvision's (`key_of`).

    A second rule for a key is an error.
    """

    def register(function: Rule) -> Rule:
        for key in dict.fromkeys(keys):
            if key in RULES:
                raise ValueError(f"{key} has a rule already: {RULES[key]}")
            RULES[key] = function
        return function

    return register


def rule_of(key: Any) -> Rule | None:
    """The rule of an operator; one in place has that of the one out of place, unless it has one of its own."""
    function = RULES.get(key_of(key))
    if function is not None or not is_in_place(key):
        return function
    plain = key[:-1] if isinstance(key, str) else getattr(torch, str(getattr(key, "__name__", "_"))[:-1], None)
    return RULES.get(plain)


class Inference(Findings):
    """One typing run: the walk over the nodes. What rules call is in `Findings`."""

    def run(self) -> Typing:
        """Type every node."""
        for node in self.module.graph.nodes:
            self.node = node
            self.types[node] = getattr(self, node.op)()
        # Every refinement is followed: a product with a dim that became a sum later fixes its outer dims only then.
        for axis in all_axes(self.parameters, self.types):
            ax.resolve(axis)
        self._settle_moves()
        self._check_weights()
        return Typing(
            module=self.module,
            types=self.types,
            parameters=self.parameters,
            canonical=self.canonical,
            writers=tuple(self.writers),
            readers=tuple(self.readers),
            mixings=tuple(self.mixings),
            products=self.products,
            frozen=tuple(self.frozen),
            rewrites=self.rewrites,
            attributes=self.attributes,
            sized=self.sized,
        )

    def _settle_moves(self) -> None:
        """What is moved to places that stay, such as outputs, stays too."""
        waiting = self.moves
        while settled := [move for move in waiting if any(dim.fixed for dim in ax.dims_of(move.to))]:
            waiting = [move for move in waiting if move not in settled]
            for move in settled:
                if ax.freeze(move.axis):
                    self.frozen.append(Frozen(move.place, move.reason))

    def _check_weights(self) -> None:
        """A factor cannot be folded into a weight that also stands elsewhere, where it does not read that axis so."""
        users: dict[str, set[fx.Node]] = {}
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and str(node.target) in self.canonical:
                users.setdefault(self.canonical[str(node.target)], set()).update(self._using(node))
            elif node.op == "call_module":
                module = self._modules[str(node.target)]
                names = module.named_parameters() if module._modules else module._parameters.items()
                for name, parameter in names:
                    if parameter is None:
                        continue
                    users.setdefault(self.canonical[f"{node.target}.{name}"], set()).add(node)
        readers: dict[tuple[str, int], set[fx.Node]] = {}
        read: dict[tuple[str, int], set[Axis]] = {}
        for access in self.readers:
            if access.weight is not None:
                readers.setdefault(access.weight, set()).add(access.node)
                read.setdefault(access.weight, set()).add(ax.resolve(access.axis))
        torn = {weight for weight, nodes in readers.items() if users[weight[0]] != nodes or len(read[weight]) > 1}
        self.readers = [replace(a, weighted=False) if a.weight in torn else a for a in self.readers]

    def _using(self, weight: fx.Node) -> Iterator[fx.Node]:
        """Who uses the numbers of a weight, whose axes may be put in another order first."""
        own = self.types[weight]
        for user in weight.users:
            typed = self.types[user]
            if isinstance(typed, TensorType) and typed.parameter == own.parameter and typed is not own:
                yield from self._using(user)
            elif has_tensors(user.meta["value"]) or user.op == "output":  # and not who asks for its device or its size
                yield user

    def placeholder(self) -> Any:
        return self.untyped()

    def get_attr(self) -> Any:
        path = str(self.node.target)
        return self._parameter(path) if path in self.canonical else self.untyped()

    def output(self) -> Any:
        result = self._typed(self.node.args[0])
        if not self.open_outputs:
            for typed in tensor_types(result):
                ax.freeze(*typed.axes)
        return result

    def call_function(self) -> Any:
        return self._apply(self.node.target)

    def call_method(self) -> Any:
        return self._apply(self.node.target)

    def call_module(self) -> Any:
        self.submodule = self._modules[str(self.node.target)]
        if "parametrizations" in self.submodule._modules and parametrize.is_parametrized(self.submodule):
            return self._opaque("its weights are computed (a parametrization)", *self._given())
        kind = type(self.submodule)
        return self._apply(nn.Identity if "identity" in self.node.meta and key_of(kind) not in RULES else kind)

    def _given(self) -> tuple[Any, Any]:
        return self._typed(self.node.args), self._typed(self.node.kwargs)

    def _typed(self, argument: Any) -> Any:
        return fx.map_arg(argument, lambda node: self.types[node])

    def _apply(self, key: Any) -> Any:
        """Call the rule of an operator; without one, or on a clash, freeze what it touches."""
        if not has_tensors(self.value) and key is not operator.setitem:
            return self.value
        args, kwargs = self._typed(self.node.args), self._typed(self.node.kwargs)
        if self.node.op == "call_function" and is_record(key):
            return held_by(key, args, kwargs)
        function = rule_of(key)
        if function is None:
            unfollowed = self.node.meta.get("unfollowed")
            reason = f"is kept whole: {unfollowed}" if unfollowed else f"no rule for {self.operator()}"
            return self._opaque(reason, args, kwargs)
        try:
            result = function(self, *args, **kwargs)
        except Clash as clash:
            return self._opaque(f"{self.operator()}: {clash}", args, kwargs)
        except TypeError:
            if _accepts(function, self, args, kwargs):
                raise
            return self._opaque(f"{self.operator()} is called in a form that its rule does not know", args, kwargs)
        if not _is_as_foreseen(result, self.value):
            return self._opaque(f"{self.operator()} gives a shape that its rule does not foresee", args, kwargs)
        return result

    def _opaque(self, reason: str, args: Any, kwargs: Any) -> Any:
        parameters = []
        if self.node.op == "call_module":
            tensors = (*self.submodule.named_parameters(), *self.submodule.named_buffers())
            parameters = [self._parameter(f"{self.node.target}.{name}") for name, _ in tensors]
        self.freeze(reason, args, kwargs, parameters)
        return self.untyped()


def _is_as_foreseen(typed: Any, value: Any) -> bool:
    """Whether a rule gives the shapes that the operator gave."""
    if isinstance(typed, TensorType):
        return isinstance(value, Tensor) and typed.shape == tuple(value.shape)
    several = isinstance(typed, (tuple, list)) and isinstance(value, (tuple, list)) and len(typed) == len(value)
    return not several or all(map(_is_as_foreseen, typed, value))


def _accepts(function: Rule, infer: Inference, args: Any, kwargs: Any) -> bool:
    """Whether a rule takes these arguments."""
    try:
        inspect.signature(function).bind(infer, *args, **kwargs)
    except TypeError:
        return False
    return True
