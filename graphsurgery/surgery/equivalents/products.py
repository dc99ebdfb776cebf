"""Products with a matrix that is a parameter, written as the linear layers that they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphsurgery.axes.maps import Edit
from graphsurgery.graph import ModelGraph
from graphsurgery.network.operators import operator_of
from graphsurgery.network.values.evaluation import propagate
from graphsurgery.surgery.remapping.remap import follow, rebuild


@dataclass(frozen=True)
class Product:
    """One product that a linear layer computes too.

    Attributes:
        node: which computes it: `F.linear(x, W, b)`, `torch.addmm(b, x, W)`, `x @ W` or `x @ W.T`.
        read: what is multiplied.
        weight: the node that reads the matrix.
        bias: the node that reads the bias, where there is one.
        transposed: whether the matrix is `[in, out]`, and not `[out, in]` as in a layer.
    """

    node: fx.Node
    read: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    transposed: bool

    @property
    def parameters(self) -> list[str]:
        """The names of the matrix and the bias."""
        return [str(node.target) for node in (self.weight, self.bias) if node is not None]


def with_layers(graph: ModelGraph, paths: Collection[str] | None = None) -> ModelGraph:
    """The same network, on the same memory, with linear layers in the place of products.

    A layer takes the place of the module that holds nothing but its parameters, or else of the matrix.

    Args:
        graph: typed network; it is not modified.
        paths: of the layers that are wanted; by default all.
    """
    wanted = [path for path in _products(graph.module) if paths is None or path in paths]
    if not wanted:
        return graph
    new = rebuild(graph, Edit({}), lambda _, tensor: tensor)
    found = _products(new.module)
    for path in wanted:
        _write_as_layer(new.module, path, found[path])
    return refreshed(graph, new)


def refreshed(graph: ModelGraph, new: ModelGraph) -> ModelGraph:
    """A network that was made of another by other layers, with values at its new nodes."""
    new.module.graph.lint()
    new.module.recompile()
    inputs = [torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in new.inputs]
    for node in new.module.graph.nodes:
        node.meta.pop("value", None)
    propagate(new.module, inputs)
    return follow(graph, ModelGraph(new.module, new.inputs, new.lineage, graph.open_outputs), Edit({}))


def _products(module: fx.GraphModule) -> dict[str, Product]:
    """The products whose parameters nothing else reads, by the path that their layer has."""
    names: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    layers = tuple(f"{node.target}." for node in module.graph.nodes if node.op == "call_module")
    found = {}
    for product in _written(module):
        alone = all(names[id(module.get_parameter(name))] == 1 for name in product.parameters)
        once = all(len(_reads(module, name)) == 1 and not name.startswith(layers) for name in product.parameters)
        if alone and once:
            found[_path(module, product)] = product
    return found


def _written(module: fx.GraphModule) -> Iterator[Product]:
    for node in module.graph.nodes:
        operands = _operands(module, node)
        if operands is None:
            continue
        read, factor, bias, transposed = operands
        weight = flipped(factor)
        if weight is not factor and len(factor.users) > 1:
            continue
        transposed = transposed == (weight is factor)
        matrix = _parameter(module, weight)
        if isinstance(read, fx.Node) and read.op != "get_attr" and matrix is not None and matrix.dim() == 2:
            vector = _parameter(module, bias)
            outputs = matrix.shape[int(transposed)]
            if bias is None or (vector is not None and vector.shape == (outputs,)):
                yield Product(node, read, weight, bias, transposed)


def _operands(module: fx.GraphModule, node: fx.Node) -> tuple[Any, Any, Any, bool] | None:
    """What is multiplied, the matrix, the bias, and whether the matrix is `[in, out]`; None of other nodes."""
    if node.op not in ("call_function", "call_method") or node.kwargs:
        return None
    if node.target is F.linear:
        return node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None, False
    known = operator_of(module, node)
    if known is not None and known.name == "matmul" and len(node.args) == 2:
        return *node.args, None, True
    if node.target in (torch.addmm, "addmm") and len(node.args) == 3:
        return node.args[1], node.args[2], node.args[0], True
    return None


def flipped(node: Any) -> Any:
    """What a matrix is the transposed of, as `W` in `W.T`; the node itself where it is none."""
    if not isinstance(node, fx.Node) or not isinstance(node.meta.get("value"), Tensor):
        return node
    attribute = node.target is getattr and node.args[1] in ("T", "mT")
    turned = node.target in ("t", torch.t, torch.transpose, "transpose", torch.swapaxes, "swapaxes")
    return node.args[0] if node.meta["value"].dim() == 2 and (attribute or turned) and not node.kwargs else node


def _parameter(module: fx.GraphModule, node: Any) -> nn.Parameter | None:
    """The parameter that a node reads."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    return module.get_submodule(owner)._parameters.get(name)


def _reads(module: fx.GraphModule, name: str) -> list[fx.Node]:
    """The nodes that read a parameter, each as often as it does."""
    return [user for node in module.graph.nodes if node.op == "get_attr" and node.target == name for user in node.users]


def _path(module: fx.GraphModule, product: Product) -> str:
    owner = str(product.weight.target).rpartition(".")[0]
    held = module.get_submodule(owner)
    own = [f"{owner}.{name}" for name in held._parameters]
    whole = owner and not held._modules and not held._buffers and set(own) == set(product.parameters)
    return owner if whole else str(product.weight.target)


def _write_as_layer(module: fx.GraphModule, path: str, product: Product) -> None:
    """Put a layer in the place of a product, in place."""
    matrix, *bias = (module.get_parameter(name).detach() for name in product.parameters)
    layer = _linear(matrix.t() if product.transposed else matrix, *bias)
    layer.train(module.training)
    for read, name in zip((product.weight, product.bias), product.parameters, strict=False):
        assert read is not None
        owner, _, attribute = name.rpartition(".")
        layer._parameters["weight" if read is product.weight else "bias"].requires_grad_(  # type: ignore[union-attr]
            module.get_parameter(name).requires_grad
        )
        delattr(module.get_submodule(owner), attribute)
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, layer)
    with module.graph.inserting_before(product.node):
        call = module.graph.call_module(path, (product.read,))
    product.node.replace_all_uses_with(call)
    factor = next(iter(product.weight.users))  # the product itself, or the transposed of the matrix
    for node in dict.fromkeys((product.node, factor, product.weight, product.bias)):
        if node is not None:
            module.graph.erase_node(node)


def _linear(matrix: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer of these values, `[out, in]` and `[out]`."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(matrix)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer
