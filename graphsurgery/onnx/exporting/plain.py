"""Operators in forms that the exporter takes: what it refuses, or writes down wrongly, is said with plainer ones."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphsurgery.network.operators import argument_of
from graphsurgery.network.paths import has_tensors

_CLAMPS = (torch.clamp, torch.clip, "clamp", "clip")
_SORTS = (torch.sort, "sort", torch.argsort, "argsort")
_HISTOGRAMS = (torch.histc, "histc")


def make_plain(module: fx.GraphModule) -> None:
    """Rewrite a network, in place, so that the exporter takes it; it computes the same in evaluation mode.

    - Attention on more or fewer than four axes is refused, and attention with a mask is taken to pieces whose strides
      do not fit the views behind it; both become matrix products and a softmax. Where an input says what is masked,
      a query may see nothing: it gets zeros, as in torch, while a softmax would give what is no number.
    - A pool to one pixel is a mean, which the exporter does not turn into a lookup of every number.
    - Bounds that a clamp reads from buffers become numbers: of several clamps of one tensor by such bounds the
      optimiser keeps the bounds of one.
    - A stable sort is refused, though sorts of ONNX are stable; a histogram is refused, and becomes a sum of flags.
    """
    for node in module.graph.nodes:
        if node.target is F.scaled_dot_product_attention:
            node.target = attention_that_may_see_nothing if _has_mask_of_inputs(node) else attention
        elif node.op == "call_module" and _is_mean(module.get_submodule(str(node.target))):
            node.op, node.target = "call_function", spatial_mean
        elif node.target in _CLAMPS:
            node.args = fx.map_arg(node.args, lambda operand: _number(module, operand))
            node.kwargs = fx.map_arg(node.kwargs, lambda operand: _number(module, operand))
        elif node.target in _SORTS:
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "stable"}
        elif node.target in _HISTOGRAMS and _has_ends(*node.args, **node.kwargs):
            node.op, node.target = "call_function", histogram
    module.recompile()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`, in plain operators where the exporter needs it; all queries see something."""
    if dropout_p > 0 or (query.dim() == key.dim() == value.dim() == 4 and attn_mask is None):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    weights, value = _weights_and_values(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    return weights @ value


def attention_that_may_see_nothing(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` in evaluation, in plain operators: a query from which all is hidden gets 0."""
    weights, value = _weights_and_values(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -math.inf
    return torch.where(seen.any(-1, keepdim=True), weights, 0.0) @ value


def _weights_and_values(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor]:
    """The share `[..., queries, keys]` of every value in every result, and the values of every head."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1), value


def _has_mask_of_inputs(node: fx.Node) -> bool:
    """Whether the mask of an attention is computed from what is in an input."""
    mask: Any = argument_of(node, 3, "attn_mask")
    waiting, met = [mask] if isinstance(mask, fx.Node) else [], set()
    while waiting:
        source = waiting.pop()
        if source.op == "placeholder":
            return True
        if source not in met and has_tensors(source.meta["value"]):
            met.add(source)
            waiting += source.all_input_nodes
    return False


def _is_mean(layer: nn.Module) -> bool:
    """Whether a layer gives the mean of all pixels."""
    return isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1))


def spatial_mean(x: Tensor) -> Tensor:
    """The mean of all pixels `[..., C, 1, 1]` of `[..., C, H, W]`."""
    return x.mean((-2, -1), keepdim=True)


def _has_ends(input: Any, bins: Any = 100, min: Any = 0, max: Any = 0) -> bool:  # noqa: ARG001
    """Whether the ends of a histogram are numbers of their own, and not those of the data."""
    return all(isinstance(end, int | float) for end in (min, max)) and min < max


def histogram(input: Tensor, bins: int, min: float, max: float) -> Tensor:
    """`torch.histc`: how many numbers lie in each of some bins of one width, the largest in the last of them."""
    x = input.flatten()
    places = ((x - min) * bins / (max - min)).floor().clamp(max=bins - 1)
    inside = ((x >= min) & (x <= max)).unsqueeze(1)
    found = (places.unsqueeze(1) == torch.arange(bins, device=x.device)) & inside
    return found.to(x.dtype).sum(0)


def _number(module: fx.GraphModule, operand: fx.Node) -> Any:
    """A buffer of no axes as a number; every other operand as it is."""
    if operand.op != "get_attr":
        return operand
    owner, _, name = str(operand.target).rpartition(".")
    tensor = getattr(module.get_submodule(owner), name)
    return tensor.item() if isinstance(tensor, Tensor) and tensor.dim() == 0 else operand
