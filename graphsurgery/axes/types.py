"""What inference finds out: types of tensors, who reads and writes what, what is mixed, what is frozen and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import fx, nn

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis


class TensorType:
    """The type of a tensor: one axis type for each of its axes.

    Attributes:
        axes: these.
        parameter: the name of the parameter that it is, if it is one, its axes perhaps in another order.
        order: the number that each axis has in the parameter.
    """

    __slots__ = ("axes", "order", "parameter")

    def __init__(
        self, axes: tuple[Axis, ...] | list[Axis], parameter: str | None = None, order: Sequence[int] | None = None
    ) -> None:
        self.axes = tuple(axes)
        self.parameter = parameter
        self.order = tuple(range(len(axes)) if order is None else order)

    def __getitem__(self, index: int) -> Axis:
        return self.axes[index]

    def __len__(self) -> int:
        return len(self.axes)

    def replace(self, index: int, axis: Axis) -> TensorType:
        """The same type with one axis replaced."""
        axes = list(self.axes)
        axes[index] = axis
        return TensorType(axes)

    def permuted(self, order: Sequence[int]) -> TensorType:
        """The axes in another order; a parameter is still that parameter."""
        return TensorType([self.axes[d] for d in order], self.parameter, [self.order[d] for d in order])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(ax.size_of(axis) for axis in self.axes)

    def __repr__(self) -> str:
        return f"TensorType{self.axes}"


@dataclass
class ParameterType:
    """The axes of one parameter or buffer.

    Attributes:
        name: its first name.
        axes: their types.
        reads: by the number of an axis that a contraction sums over, what it sums over: the axis, or what is inside its
            groups where it sums group by group, as a grouped transposed convolution does.
        counts: whether it says how much each index of its first axis counts in groups that are normalised, its second
            axis; copies of an index share what it counted.
    """

    name: str
    axes: tuple[Axis, ...]
    reads: dict[int, Axis] = field(default_factory=dict)
    counts: bool = False


@dataclass(frozen=True)
class Access:
    """A node that writes an axis with its parameters, or sums over it.

    Attributes:
        node: where.
        axis: what is written, or summed over.
        value: the node whose tensor is read; None for a write, and for what a layer reads of itself.
        dim: the axis number, in that tensor, that holds `axis`; where groups stand around it, once in each of them.
        weighted: whether a parameter stands at every summand, so that a factor on the axis can be folded into it.
        weight: that parameter, and the number of its axis.
        given: how often the node is given that tensor; a factor on it would count as often.
    """

    node: fx.Node
    axis: Axis
    value: fx.Node | None = None
    dim: int = 0
    weighted: bool = True
    weight: tuple[str, int] | None = None
    given: int = 1


def is_inside(access: Access) -> bool:
    """Whether a layer reads what it has written, by weights of its own, as a recurrent one does."""
    return access.value is None and access.weight is not None


@dataclass(frozen=True)
class Mixing:
    """A node that mixes the indices of an axis without parameters; what cuts or grows the axis changes its result.

    Attributes:
        node: where.
        axis: what is mixed.
        kind: how.
        dim: the number of the axis, in the node's first tensor, that holds it; None where that is not one axis alone.
    """

    node: fx.Node
    axis: Axis
    kind: str
    dim: int | None = None


class Frozen(NamedTuple):
    """A node around which axes may not change, and why."""

    node: str
    reason: str


class Resize(Protocol):
    """What a rebuild asks: the new sizes of old types."""

    def size(self, axis: Axis) -> int:
        """New number of indices of the axis."""


Rewrite = Callable[[fx.Node, Resize], None]
ModuleRewrite = Callable[[nn.Module, Resize], None]


@dataclass(frozen=True, eq=False)
class Typing:
    """What is known of a graph when all of it has been typed.

    Attributes:
        module: the network.
        types: the type of every node's value; sizes and other plain values stand for themselves.
        parameters: the type of every parameter and buffer that the graph uses, by its first name.
        canonical: the first name of every parameter and buffer, by each of its names.
        writers, readers: where channels are written and read with parameters.
        mixings: where indices are mixed without parameters.
        products: the multiply-accumulates of nodes, each as a sum of products of axes, up to a fixed factor.
        frozen: what could not be typed, and why.
        rewrites: how a node's literal sizes follow from its types.
        attributes: how a module's attributes follow from its types.
        sized: the arguments of nodes that are sizes, by position or name; all others keep their values on a rebuild.
    """

    module: fx.GraphModule
    types: Mapping[fx.Node, Any]
    parameters: Mapping[str, ParameterType]
    canonical: Mapping[str, str]
    writers: tuple[Access, ...]
    readers: tuple[Access, ...]
    mixings: tuple[Mixing, ...]
    products: Mapping[fx.Node, list[tuple[Axis, ...]]]
    frozen: tuple[Frozen, ...]
    rewrites: Mapping[fx.Node, list[Rewrite]]
    attributes: Mapping[str, list[ModuleRewrite]]
    sized: Mapping[fx.Node, frozenset[int | str]]

    def names_of(self, access: Access) -> list[str]:
        """The names, in the layer that an access stands in, of the weight that it reads with."""
        first = "" if access.weight is None else access.weight[0]
        names = (name.rpartition(".") for name, tied in self.canonical.items() if tied == first)
        return [name for layer, _, name in names if layer == str(access.node.target)]

    def axes(self) -> list[Axis]:
        """Every axis of the parameters and of the values of nodes; one that many share is there once."""
        return all_axes(self.parameters, self.types)


def all_axes(parameters: Mapping[str, ParameterType], types: Mapping[fx.Node, Any]) -> list[Axis]:
    """Every axis of parameters and of the values of nodes; one that many share is there once."""
    found = {id(axis): axis for typed in parameters.values() for axis in typed.axes}
    for value in types.values():
        for typed in (value,) if isinstance(value, TensorType) else tensor_types(value):
            for axis in typed.axes:
                found[id(axis)] = axis
    return list(found.values())


def tensor_types(value: Any) -> list[TensorType]:
    """Every tensor type in a nested value, in order."""
    if isinstance(value, TensorType):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensor_types(v)]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensor_types(v)]
    return []
