"""Layers of users that act in training only, as the graph of what they do there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.errors import TraceError
from graphsurgery.network.copying import meta_copy
from graphsurgery.network.training_only import InTraining, draw_alike
from graphsurgery.tracing.following.tracer import ValueTracer
from graphsurgery.tracing.normal_form import normalize

_MOST = 1 << 20
"""Numbers in an input on which two layers are compared."""


def in_training(layer: nn.Module, value: Tensor) -> nn.Module:
    """A layer without weights that gives its input in evaluation, as what it computes in training.

    Args:
        layer: of any class.
        value: what it was given in the trace; a meta tensor.

    Returns:
        An `InTraining` that computes the same, with the same random numbers, at several sizes of every axis; the layer
        itself where it cannot be followed or would be another.
    """
    try:
        found = _followed(layer, value)
    except TraceError:
        return layer
    found.training = layer.training
    return found if draw_alike(layer, found, list(_inputs(value))) else layer


def _followed(layer: nn.Module, value: Tensor) -> InTraining:
    """The layer by its trace in training."""
    skeleton = meta_copy(layer, {})
    skeleton.__dict__["training"] = False
    graph = ValueTracer([value], training=True).follow(skeleton)
    normalize(graph, skeleton, {})
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            parts[str(node.target)] = getattr(skeleton, str(node.target))
        node.meta = {}
    found = InTraining(type(layer).__name__, graph, parts)
    return found.train()


def _inputs(value: Tensor) -> Iterator[Tensor]:
    """Inputs of the shape that the trace has, and of others."""
    generator = torch.Generator().manual_seed(0)
    shape = list(value.shape)
    for axis in (None, *range(len(shape))):
        sizes = [n + 1 if index == axis else n for index, n in enumerate(shape)]
        while torch.Size(sizes).numel() > _MOST and sizes[0] > 1:
            sizes[0] = (sizes[0] + 1) // 2
        yield torch.randn(sizes, generator=generator).to(value.dtype)
