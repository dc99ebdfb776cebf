"""Types every axis of a traced graph: one walk over the nodes, calling the rule of each operator.

The trace has left the value of every node (a meta tensor, or a size) in `node.meta["value"]`, so typing runs no
operator. A rule mirrors the signature of its operator; where the operator takes a tensor, the rule gets its type.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis, Clash
from graphsurgery.axes.types import (
    Access,
    Frozen,
    Mixing,
    ModuleRewrite,
    ParameterType,
    Rewrite,
    TensorType,
    Typing,
    all_axes,
    tensor_types,
)
from graphsurgery.network.outputs.records import held_by, is_record
from graphsurgery.network.paths import has_tensors, map_values, modules_of, named_tensors, place_of
from graphsurgery.network.values.dtypes import holds_numbers

Rule = Callable[..., Any]

RULES: dict[Any, Rule] = {}


def rule(*keys: Any) -> Callable[[Rule], Rule]:
    """Register a rule for exact functions, module classes, or method names; a second one for a key is an error."""

    def register(function: Rule) -> Rule:
        for key in dict.fromkeys(keys):
            if key in RULES:
                raise ValueError(f"{key} has a rule already: {RULES[key].__name__}")
            RULES[key] = function
        return function

    return register


class Inference:
    """One typing run: what rules call, and what it has found so far, under the names of `Typing`."""

    def __init__(self, module: fx.GraphModule, *, open_outputs: bool = False) -> None:
        self.module = module
        self.open_outputs = open_outputs
        self._modules = modules_of(module)
        # For shapes and identities only: moving or casting the module replaces its buffers.
        self._tensors = named_tensors(module)
        self.canonical: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, tensor in self._tensors.items():
            self.canonical[name] = first.setdefault(id(tensor), name)
        self.types: dict[fx.Node, Any] = {}
        self.parameters: dict[str, ParameterType] = {}
        self.writers: list[Access] = []
        self.readers: list[Access] = []
        self.mixings: list[Mixing] = []
        self.products: dict[fx.Node, list[tuple[Axis, ...]]] = {}
        self.frozen: list[Frozen] = []
        self.rewrites: dict[fx.Node, list[Rewrite]] = {}
        self.attributes: dict[str, list[ModuleRewrite]] = {}
        self.sized: dict[fx.Node, frozenset[int | str]] = {}
        self.node: fx.Node = next(iter(module.graph.nodes))
        self.submodule: nn.Module = module

    # What rules ask -------------------------------------------------------------------------------------------------

    def parameter(self, name: str) -> TensorType | None:
        """The type of a parameter or buffer of the node's own module; None where the module has none."""
        if getattr(self.submodule, name, None) is None:
            return None
        return self._parameter(f"{self.node.target}.{name}")

    def _parameter(self, path: str) -> TensorType:
        name = self.canonical[path]
        found = self.parameters.get(name)
        if found is None:
            tensor = self._tensors[name]
            make = ax.free if holds_numbers(tensor) else ax.fixed
            found = self.parameters[name] = ParameterType(name, tuple(make(n) for n in tensor.shape))
        return TensorType(found.axes, name)

    def tie(self, name: str, *axes: Axis) -> None:
        """Say that a parameter of the node's module, if it exists, has these axes."""
        parameter = self.parameter(name)
        if parameter is not None:
            for own, axis in zip(parameter.axes, axes, strict=True):
                ax.unify(own, axis)

    def writes(self, axis: Axis) -> None:
        """The node's parameters write this axis."""
        self.writers.append(Access(self.node, axis))

    def reads(self, argument: Any, dim: int, axis: Axis, weight: TensorType | None, weight_axis: int) -> None:
        """The node sums over `axis` in its tensor argument, a number or a node, with axis `weight_axis` of a weight.

        Where it sums group by group, the axes of the tensor and of the weight may have `axis` once for each group.
        """
        value = self.node.args[argument] if isinstance(argument, int) and len(self.node.args) > argument else argument
        source = value if isinstance(value, fx.Node) else None
        given: list[fx.Node] = []
        fx.map_arg((self.node.args, self.node.kwargs), given.append)
        times = 1 if source is None else given.count(source)
        # A value that is given twice would be scaled twice.
        if weight is None or weight.parameter is None or times > 1:
            self.readers.append(Access(self.node, axis, source, dim, weighted=False, given=times))
            return
        self.readers.append(Access(self.node, axis, source, dim, weight=(weight.parameter, weight_axis)))
        self.parameters[weight.parameter].reads[weight_axis] = axis

    def reads_inside(self, axis: Axis, weight: TensorType, weight_axis: int) -> None:
        """The node sums over `axis` of a value of its own, where no other node can reach it."""
        assert weight.parameter is not None
        self.readers.append(Access(self.node, axis, weight=(weight.parameter, weight_axis)))
        self.parameters[weight.parameter].reads[weight_axis] = axis

    def multiplies(self, *factors: Axis) -> None:
        """The node takes as many multiply-accumulates as these axes have indices together.

        A factor that no surgery changes (positions, a kernel) may be left out, of all products of a node alike.
        """
        self.products.setdefault(self.node, []).append(factors)

    def mixes(self, axis: Axis, kind: str, dim: int | None = None) -> None:
        """The node mixes the indices of this axis, which is number `dim` of its first tensor; see `Mixing`."""
        if not ax.is_fixed(axis):
            self.mixings.append(Mixing(self.node, axis, kind, dim))

    def attribute(self, name: str, axis: Axis) -> None:
        """The attribute `name` of the node's module is the size of this axis."""
        self.on_module(lambda module, new: setattr(module, name, new.size(axis)))

    def on_module(self, rewrite: ModuleRewrite) -> None:
        """Run `rewrite` on the rebuilt module, with the new sizes."""
        self.attributes.setdefault(str(self.node.target), []).append(rewrite)

    def on_rebuild(self, rewrite: Rewrite, sizes: Iterable[int | str] = ()) -> None:
        """Run `rewrite` on the rebuilt node, with the new sizes.

        Args:
            rewrite: gets the node with its arguments as they are, but for numbers computed from widths: those have
                their old values.
            sizes: the arguments, by position and by name, that are sizes and get to `rewrite` as they are computed now.
        """
        self.rewrites.setdefault(self.node, []).append(rewrite)
        self.sized[self.node] = self.sized.get(self.node, frozenset()) | frozenset(sizes)

    def freeze(self, reason: str, *values: Any) -> None:
        """Freeze every axis of these types and say why, unless nothing was free."""
        count = 0
        for value in values:
            count += sum(ax.freeze(*typed.axes) for typed in tensor_types(value))
        if count:
            self.frozen.append(Frozen(self.where(), reason))

    def fix(self, *axes: Axis) -> None:
        """These axes are positions, not channels; nothing to report."""
        ax.freeze(*axes)

    def freeze_axis(self, reason: str, *frozen: Axis) -> None:
        """Freeze these axes and say why, unless nothing was free."""
        if ax.freeze(*frozen):
            self.frozen.append(Frozen(self.where(), reason))

    def unify(self, a: Axis, b: Axis) -> None:
        """Make two axes one; where they clash, freeze both and record the reason."""
        if a is b:
            return
        try:
            ax.unify(a, b)
        except Clash as clash:
            self.freeze_axis(f"{self.operator()} cannot give both sides one type: {clash}", a, b)

    @property
    def value(self) -> Any:
        """What the node gave when it was traced: meta tensors and plain values."""
        return self.node.meta["value"]

    def untyped(self) -> Any:
        """A fixed type for everything that the node gives."""
        return map_values(self.value, lambda t: TensorType([ax.fixed(n) for n in t.shape]))

    def where(self) -> str:
        return place_of(self.node)

    def operator(self) -> str:
        """A readable name of the node's operator."""
        if self.node.op == "call_module":
            return type(self.submodule).__name__
        return getattr(self.node.target, "__name__", str(self.node.target))

    # The walk -------------------------------------------------------------------------------------------------------

    def run(self) -> Typing:
        """Type every node."""
        for node in self.module.graph.nodes:
            self.node = node
            self.types[node] = getattr(self, node.op)()
        # Every refinement is followed: a product with a dim that became a sum later fixes its outer dims only then.
        for axis in all_axes(self.parameters, self.types):
            ax.resolve(axis)
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

    def _check_weights(self) -> None:
        """A factor cannot be folded into a weight that also stands elsewhere, where it does not read that axis so."""
        users: dict[str, set[fx.Node]] = {}
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and str(node.target) in self.canonical:
                # Who asks for the device or the size of a weight does not use its numbers.
                using = {user for user in node.users if has_tensors(user.meta["value"]) or user.op == "output"}
                users.setdefault(self.canonical[str(node.target)], set()).update(using)
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
        if parametrize.is_parametrized(self.submodule):
            return self._opaque("its weights are computed (a parametrization)", *self._given())
        kind = type(self.submodule)
        return self._apply(nn.Identity if "identity" in self.node.meta and kind not in RULES else kind)

    def _given(self) -> tuple[Any, Any]:
        return self._typed(self.node.args), self._typed(self.node.kwargs)

    def _typed(self, argument: Any) -> Any:
        return fx.map_arg(argument, lambda node: self.types[node])

    def _apply(self, key: Any) -> Any:
        """Call the rule of an operator; without one, or on a clash, freeze what it touches."""
        if not has_tensors(self.value) and key is not operator.setitem:
            return self.value
        args, kwargs = self._typed(self.node.args), self._typed(self.node.kwargs)
        if is_record(key):
            return held_by(key, args, kwargs)
        function = RULES.get(key)
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
        if isinstance(result, TensorType) and result.shape != tuple(self.value.shape):
            return self._opaque(f"{self.operator()} gives a shape that its rule does not foresee", args, kwargs)
        return result

    def _opaque(self, reason: str, args: Any, kwargs: Any) -> Any:
        parameters = []
        if self.node.op == "call_module":
            tensors = (*self.submodule.named_parameters(), *self.submodule.named_buffers())
            parameters = [self._parameter(f"{self.node.target}.{name}") for name, _ in tensors]
        self.freeze(reason, args, kwargs, parameters)
        return self.untyped()


def _accepts(function: Rule, infer: Inference, args: Any, kwargs: Any) -> bool:
    """Whether a rule takes these arguments."""
    try:
        inspect.signature(function).bind(infer, *args, **kwargs)
    except TypeError:
        return False
    return True
