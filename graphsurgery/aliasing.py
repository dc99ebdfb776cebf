"""Which nodes of a traced graph write into memory that others read: in-place operators and views."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

_IN_PLACE_OPERATORS = frozenset(
    getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")
) | {operator.setitem}
_NEW_MODULES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.Embedding, nn.GELU, nn.Sigmoid, nn.Tanh, nn.ReLU,
    nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.MaxPool2d, nn.AvgPool2d,
)  # fmt: skip
_NEW_FUNCTIONS = frozenset(
    {
        operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.neg, operator.matmul,
        torch.add, torch.sub, torch.mul, torch.div, torch.cat, torch.stack, torch.matmul, torch.bmm, torch.relu,
        torch.sigmoid, torch.tanh, F.linear, F.conv1d, F.conv2d, F.conv3d, F.layer_norm, F.batch_norm, F.gelu, F.relu,
        F.softmax, torch.softmax, F.scaled_dot_product_attention, F.max_pool2d, F.avg_pool2d,
    }
)  # fmt: skip


def acts_in_place(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node may write into the memory of its first operand."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op != "call_function":
        return False
    if node.target in _IN_PLACE_OPERATORS or "out" in node.kwargs or node.kwargs.get("inplace", False):
        return True
    name, home = (str(getattr(node.target, part, "")) for part in ("__name__", "__module__"))
    positional = home == F.__name__ and any(argument is True for argument in node.args)
    return positional or (name.endswith("_") and not name.startswith("_"))


def owns_memory(module: nn.Module, node: fx.Node) -> bool:
    """Whether nobody but the one user of this node can look at its memory: it is new, and no view of it is used."""
    if len(node.users) != 1 or node.op in ("get_attr", "placeholder"):
        return False
    return _makes_new(module, node) or all(owns_memory(module, source) for source in node.all_input_nodes)


def _makes_new(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node gives memory of its own; False where that is not certain."""
    if acts_in_place(module, node):
        return False
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _NEW_MODULES)
    return node.op == "call_function" and node.target in _NEW_FUNCTIONS


def versions(module: fx.GraphModule) -> dict[fx.Node, dict[fx.Node, int]]:
    """For every node, how often each of its operands' memory had been written in place before the node ran."""
    roots: dict[fx.Node, frozenset[fx.Node]] = {}
    writes: dict[fx.Node, int] = {}
    found: dict[fx.Node, dict[fx.Node, int]] = {}
    for node in module.graph.nodes:
        sources = node.all_input_nodes
        found[node] = {source: sum(writes.get(root, 0) for root in roots[source]) for source in sources}
        shared: Any = frozenset() if _makes_new(module, node) else frozenset().union(*(roots[s] for s in sources))
        roots[node] = shared or frozenset({node})
        if sources and acts_in_place(module, node):
            for root in roots[sources[0]]:
                writes[root] = writes.get(root, 0) + 1
    return found
