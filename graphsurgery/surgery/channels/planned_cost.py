"""What a network would cost at other widths, counted from its types: nothing is built and nothing is run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from math import gcd, prod
from typing import NamedTuple

from torch import Tensor, fx, nn

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis
from graphsurgery.axes.maps import Widths
from graphsurgery.axes.polynomials import Polynomial, product, total
from graphsurgery.axes.types import tensor_types
from graphsurgery.errors import UnsupportedError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.paths import place_of
from graphsurgery.surgery.channels.cost import Cost, held, macs_by_node


class _Counted(NamedTuple):
    """A parameter or buffer: its axes where it is typed, times the elements that no axis tells."""

    axes: tuple[Axis, ...]
    elements: int
    element_size: int
    is_parameter: bool


class _Product(NamedTuple):
    """A node's multiply-accumulates at batch 1, and what they are proportional to: a sum of products of axes."""

    node: str
    macs: int
    products: tuple[tuple[Axis, ...], ...]
    indices: int


class NodeCost(NamedTuple):
    """What a node costs at any widths.

    Attributes:
        parameters: of its layer; a tied one counts where it is used first.
        bytes: of its parameters and buffers.
        macs: its multiply-accumulates at batch 1, times `over`; the quotient is rounded down.
        over: a divisor, mostly 1.
    """

    parameters: Polynomial
    bytes: Polynomial
    macs: Polynomial
    over: int


class PlannedCost:
    """Counts a network at widths that it does not have; equal to `cost` of the network that a rebuild would give.

    One evaluation on meta tensors says how many multiply-accumulates each node takes now. How they change follows from
    the axes that the node's rule has named.
    """

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        tensors = graph.tensors()
        self._owners = _owners(graph)
        self._tensors = [_counted(graph, name, tensors[name]) for name in self._owners]
        self._held = held(graph)

    def at(self, widths: Widths) -> Cost:
        """The whole cost at these widths; raises as `macs` does."""
        return Cost(self.parameters(widths), self.macs(widths), self.bytes(widths), self._held.uncounted)

    def parameters(self, widths: Widths) -> int:
        """Number of parameters at these widths, tied ones once."""
        own = sum(_elements(tensor, widths) for tensor in self._tensors if tensor.is_parameter)
        return own + self._held.parameters

    def bytes(self, widths: Widths) -> int:
        """Size of all parameters and buffers at these widths."""
        own = sum(_elements(tensor, widths) * tensor.element_size for tensor in self._tensors)
        return own + self._held.bytes

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates per image at these widths.

        Raises:
            SurgeryError: the network does not run.
            UnsupportedError: an operator's multiply-accumulates do not follow from the types.
        """
        return sum(p.macs * _indices(p.products, widths) // p.indices for p in self._products)

    def by_node(self) -> dict[str, NodeCost]:
        """The same as polynomials, for every node by its name; what is kept whole (`held`) comes on top.

        Raises:
            SurgeryError, UnsupportedError: as for `macs`.
        """
        tensors: dict[str, list[_Counted]] = {}
        for name, tensor in zip(self._owners.values(), self._tensors, strict=True):
            tensors.setdefault(name, []).append(tensor)
        products = {p.node: p for p in self._products}
        return {name: _node_cost(tensors.get(name, ()), products.get(name)) for name in {**tensors, **products}}

    @property
    def held(self) -> Cost:
        """What no surgery changes, as operators hold it inside."""
        return self._held

    @cached_property
    def _products(self) -> list[_Product]:
        return _products(self._graph)


def _owners(graph: ModelGraph) -> dict[str, str]:
    """The first node that uses every parameter and buffer, tied ones once; a rebuild keeps no others."""
    canonical, owners = graph.types.canonical, dict[str, str]()
    for node in graph.module.graph.nodes:
        names = []
        if node.op == "get_attr":
            names = [str(node.target)]
        elif node.op == "call_module":
            leaf = graph.module.get_submodule(str(node.target))
            names = [f"{node.target}.{name}" for name, _ in (*leaf.named_parameters(), *leaf.named_buffers())]
        for name in names:
            if name in canonical:
                owners.setdefault(canonical[name], node.name)
    return owners


def _node_cost(tensors: Iterable[_Counted], multiplied: _Product | None) -> NodeCost:
    counts = [(tensor, product(tensor.axes, tensor.elements)) for tensor in tensors]
    parameters = total(count for tensor, count in counts if tensor.is_parameter)
    size = total(product(tensor.axes, tensor.elements * tensor.element_size) for tensor, _ in counts)
    if multiplied is None:
        return NodeCost(parameters, size, {}, 1)
    common = gcd(multiplied.macs, multiplied.indices)
    factor = multiplied.macs // common
    macs = total(product(factors, factor) for factors in multiplied.products or ((),))
    return NodeCost(parameters, size, macs, multiplied.indices // common)


def _counted(graph: ModelGraph, name: str, tensor: Tensor) -> _Counted:
    typed = graph.types.parameters.get(name)
    axes = () if typed is None else typed.axes
    elements = tensor.numel() if typed is None else 1
    return _Counted(axes, elements, tensor.element_size(), isinstance(tensor, nn.Parameter))


def _elements(tensor: _Counted, widths: Widths) -> int:
    return tensor.elements * prod(map(widths.size, tensor.axes))


def _products(graph: ModelGraph) -> list[_Product]:
    found = []
    for node, macs in macs_by_node(graph).items():
        products = tuple(graph.types.products.get(node, ()))
        if not products and not _is_fixed(graph, node):
            raise UnsupportedError(
                f"{place_of(node)}: how its multiply-accumulates change with the widths is not known before the "
                "network is built; give --keep, or a target of params, size or width"
            )
        found.append(_Product(node.name, macs, products, _indices(products, Widths({}))))
    return found


def _indices(products: tuple[tuple[Axis, ...], ...], widths: Widths) -> int:
    """The sum of the products; 1 where there are none, for what no surgery changes."""
    return sum(prod(map(widths.size, factors)) for factors in products) if products else 1


def _is_fixed(graph: ModelGraph, node: fx.Node) -> bool:
    """Whether everything that a node reads and gives is fixed."""
    types = graph.types
    values = [types.types[n] for n in (node, *node.all_input_nodes)]
    axes = [axis for value in values for typed in tensor_types(value) for axis in typed.axes]
    if node.op == "call_module":
        leaf = graph.module.get_submodule(str(node.target))
        names = [types.canonical[f"{node.target}.{name}"] for name, _ in leaf.named_parameters()]
        axes += [axis for name in names if name in types.parameters for axis in types.parameters[name].axes]
    return all(map(ax.is_fixed, axes))
