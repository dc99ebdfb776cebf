"""What a typing run has found so far, and what the rules of operators ask of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import fx, nn

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
    tensor_types,
)
from graphsurgery.network.paths import map_values, modules_of, named_tensors, place_of
from graphsurgery.network.values.dtypes import holds_numbers


class Move(NamedTuple):
    """Channels that a node moves to places of its own: the axis that it reads, and the one that it gives."""

    place: str
    reason: str
    axis: Axis
    to: Axis


class Findings:
    """What is known of a graph while it is typed, under the names of `Typing`.

    Attributes:
        node: the one that is being typed.
        submodule: its module, where it calls one.
    """

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
        self.moves: list[Move] = []
        self.rewrites: dict[fx.Node, list[Rewrite]] = {}
        self.attributes: dict[str, list[ModuleRewrite]] = {}
        self.sized: dict[fx.Node, frozenset[int | str]] = {}
        self.node: fx.Node = next(iter(module.graph.nodes))
        self.submodule: nn.Module = module

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
        if self._is_new(name, axes):
            path = f"{self.node.target}.{name}"
            self.parameters[path] = ParameterType(path, axes)
            return
        parameter = self.parameter(name)
        if parameter is not None:
            for own, axis in zip(parameter.axes, axes, strict=True):
                ax.unify(own, axis)

    def _is_new(self, name: str, axes: tuple[Axis, ...]) -> bool:
        """Whether a vector was not met before, and can have this very axis, of one dim, for its own."""
        path = f"{self.node.target}.{name}"
        if len(axes) != 1 or self.canonical.get(path) != path or path in self.parameters:
            return False
        tensor, axis = self._tensors[path], ax.resolve(axes[0])
        return len(axis) == len(axis[0]) == 1 and holds_numbers(tensor) and tensor.shape == (axis[0][0].size,)

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
        place = weight.order[weight_axis]
        self.readers.append(Access(self.node, axis, source, dim, weight=(weight.parameter, place)))
        self.parameters[weight.parameter].reads[place] = axis

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

    def moves_to(self, reason: str, axis: Axis, to: Axis) -> None:
        """The indices of one axis are moved to those of another; where these are frozen in the end, so is it."""
        self.moves.append(Move(self.where(), reason, axis, to))

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
