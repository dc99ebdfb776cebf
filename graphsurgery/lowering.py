"""The normal form: what tracing leaves is made of fewer, plainer operators.

Before the trace `nn.MultiheadAttention` becomes projections and `scaled_dot_product_attention`; after it, assertions
and unused sizes go, and functional dropout becomes a module, so that it follows `train()` and `eval()`.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn

from graphsurgery.errors import TraceError


class LoweredAttention(nn.Module):
    """`nn.MultiheadAttention` written with plain layers, over the same parameters; it is traced through."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if attention.bias_k is not None or attention.add_zero_attn:
            raise TraceError("nn.MultiheadAttention with bias_k or add_zero_attn is not supported")
        self.heads = attention.num_heads
        self.width = attention.embed_dim
        self.batch_first = attention.batch_first
        self.dropout = nn.Dropout(attention.dropout) if attention.dropout else None
        self.packed = attention.in_proj_weight is not None
        self.q_proj: nn.Linear
        self.k_proj: nn.Linear
        self.v_proj: nn.Linear
        if self.packed:
            self.in_proj = _linear(attention.in_proj_weight, attention.in_proj_bias)
        elif attention.in_proj_bias is not None:
            raise TraceError("nn.MultiheadAttention with kdim or vdim and a bias is not supported")
        else:
            self.q_proj = _linear(attention.q_proj_weight, None)
            self.k_proj = _linear(attention.k_proj_weight, None)
            self.v_proj = _linear(attention.v_proj_weight, None)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`: `[batch, tokens, channels]` in and out."""
        if key_padding_mask is not None:
            raise TraceError("nn.MultiheadAttention with a key_padding_mask is not supported")
        q, k, v = (self._heads(x) for x in self._project(query, key, value))
        weights = None
        if self.dropout is None and not need_weights:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        else:
            scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(self.width // self.heads))
            weights = torch.softmax(scores if attn_mask is None else scores + attn_mask, -1)
            mixed = torch.matmul(weights if self.dropout is None else self.dropout(weights), v)
            weights = weights.mean(1) if average_attn_weights else weights
        joined = mixed.transpose(1, 2).flatten(2)
        output = self.out_proj(joined)
        return output if self.batch_first else output.transpose(0, 1), weights if need_weights else None

    def _project(self, query: Any, key: Any, value: Any) -> tuple[Tensor, ...]:
        same = query is key and key is value
        if not self.batch_first:
            query = query.transpose(0, 1)
            key = query if same else key.transpose(0, 1)
            value = query if same else value.transpose(0, 1)
        if not self.packed:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if same:
            return torch.split(self.in_proj(query), [self.width] * 3, -1)
        sources, pieces = (query, key, value), []
        for index, source in enumerate(sources):
            rows = slice(index * self.width, (index + 1) * self.width)
            bias = None if self.in_proj.bias is None else self.in_proj.bias[rows]
            pieces.append(F.linear(source, self.in_proj.weight[rows], bias))
        return tuple(pieces)

    def _heads(self, x: Tensor) -> Tensor:
        """`[batch, tokens, heads · d]` to `[batch, heads, tokens, d]`."""
        return x.unflatten(-1, (self.heads, self.width // self.heads)).transpose(1, 2)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias
    return layer


def lower_attention(root: nn.Module, modes: dict[str, bool]) -> None:
    """Replace every `nn.MultiheadAttention` below `root`, in place; `modes` learns the modes of the new modules."""
    found = [(path, m) for path, m in root.named_modules() if isinstance(m, nn.MultiheadAttention)]
    for path, attention in found:
        lowered = LoweredAttention(attention).eval()
        parent, _, name = path.rpartition(".")
        setattr(root.get_submodule(parent), name, lowered)
        for below, _ in lowered.named_modules():
            modes[f"{path}.{below}" if below else path] = modes[path]


_DROPOUTS: dict[Any, Any] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
}
_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def normalize(graph: fx.Graph, root: nn.Module, modes: dict[str, bool]) -> None:
    """Bring a traced graph into normal form, in place; new modules are added to `root`."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is torch._assert:
            graph.erase_node(node)
        elif node.target in _OUT_OF_PLACE and _is_last_use(node):
            node.target = _OUT_OF_PLACE[node.target]
        elif node.target in _DROPOUTS:
            _dropout_module(node, root, modes)
        elif node.target is torchvision.ops.stochastic_depth:
            _stochastic_depth_module(node, root, modes)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("call_function", "call_method", "get_attr") and not _acts_in_place(node):
            graph.erase_node(node)


def _is_last_use(node: fx.Node) -> bool:
    """Whether nothing else looks at the operand that an in-place operator would overwrite."""
    operand = node.args[0]
    return isinstance(operand, fx.Node) and len(operand.users) == 1 and operand.op not in ("get_attr", "placeholder")


def _acts_in_place(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    return name == "setitem" or name.endswith("_") or node.target in _OUT_OF_PLACE


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _dropout_module(node: fx.Node, root: nn.Module, modes: dict[str, bool]) -> None:
    """`F.dropout(x, p, training=self.training)`, traced in eval mode, becomes `nn.Dropout`."""
    if _argument(node, 2, "training", True):
        return
    _as_module(node, root, modes, _DROPOUTS[node.target](_argument(node, 1, "p", 0.5)))


def _stochastic_depth_module(node: fx.Node, root: nn.Module, modes: dict[str, bool]) -> None:
    if _argument(node, 3, "training", True):
        return
    module = torchvision.ops.StochasticDepth(_argument(node, 1, "p", 0.0), _argument(node, 2, "mode", "row"))
    _as_module(node, root, modes, module)


def _as_module(node: fx.Node, root: nn.Module, modes: dict[str, bool], module: nn.Module) -> None:
    path = node.name
    while hasattr(root, path):
        path += "_"
    root.add_module(path, module)
    modes[path] = modes.get("", False)
    node.op, node.target, node.args, node.kwargs = "call_module", path, (node.args[0],), {}
