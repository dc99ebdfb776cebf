"""Normalisations: per channel (batch, instance) and across channels (layer, group)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
import torchvision
from torch import fx, nn

from graphsurgery import axes as ax
from graphsurgery.facts import Resize, TensorType
from graphsurgery.inference import Inference, rule
from graphsurgery.layers import ChannelGate, SegmentedLayerNorm, segmented_layer_norm
from graphsurgery.rules.contraction import set_argument

PER_CHANNEL_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


@rule(*PER_CHANNEL_NORMS)
def batch_norm(infer: Inference, input: TensorType) -> TensorType:
    """Per-channel affine: weight, bias and both running statistics follow axis 1 of the input."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        infer.tie(name, input[1])
    infer.tie("num_batches_tracked")
    infer.attribute("num_features", input[1])
    return TensorType(input.axes)


@rule(torchvision.ops.FrozenBatchNorm2d)
def frozen_batch_norm(infer: Inference, x: TensorType) -> TensorType:
    """Per-channel affine by four buffers."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        infer.tie(name, x[1])
    return TensorType(x.axes)


@rule(F.batch_norm, F.instance_norm)
def batch_norm_function(infer: Inference, input: TensorType, *vectors: Any, **options: Any) -> TensorType:
    """The functional form."""
    for vector in (*vectors, *options.values()):
        if isinstance(vector, TensorType):
            infer.unify(vector[0], input[1])
    return TensorType(input.axes)


@rule(nn.LayerNorm)
def layer_norm(infer: Inference, input: TensorType) -> TensorType:
    """Mixes the last axes; weight and bias follow them."""
    module = infer.submodule
    assert isinstance(module, nn.LayerNorm)
    normalized = input.axes[-len(module.normalized_shape) :]
    infer.tie("weight", *normalized)
    infer.tie("bias", *normalized)
    _mixes_last(infer, normalized)

    def resize(new_module: nn.Module, new: Resize) -> None:
        assert isinstance(new_module, nn.LayerNorm)
        new_module.normalized_shape = tuple(new.size(axis) for axis in normalized)

    infer.on_module(resize)
    return TensorType(input.axes)


@rule(F.layer_norm)
def layer_norm_function(
    infer: Inference,
    input: TensorType,
    normalized_shape: Sequence[int],
    weight: TensorType | None = None,
    bias: TensorType | None = None,
    eps: float = 1e-5,  # noqa: ARG001
) -> TensorType:
    """The functional form; its normalised shape is a literal."""
    normalized = input.axes[-len(normalized_shape) :]
    for vector in (weight, bias):
        if vector is not None:
            for own, axis in zip(vector.axes, normalized, strict=True):
                infer.unify(own, axis)
    _mixes_last(infer, normalized)

    def resize(node: fx.Node, new: Resize) -> None:
        set_argument(node, 1, "normalized_shape", tuple(new.size(axis) for axis in normalized))

    infer.on_rebuild(resize)
    return TensorType(input.axes)


def _mixes_last(infer: Inference, normalized: Sequence[ax.Axis]) -> None:
    if len(normalized) > 1:
        infer.freeze_axis("a LayerNorm over several axes", *normalized)
    for axis in normalized:
        infer.mixes(axis, "layer_norm")


@rule(SegmentedLayerNorm)
def segmented_norm(infer: Inference, x: TensorType) -> TensorType:
    """Mixes the last axis within each segment; the segments' sizes follow what is left of each."""
    infer.tie("weight", x[-1])
    infer.tie("bias", x[-1])
    infer.mixes(x[-1], "segmented_layer_norm")

    def resize(module: nn.Module, new: Resize) -> None:
        assert isinstance(module, SegmentedLayerNorm)
        module.segments = new.segments(x[-1], module.segments)

    infer.on_module(resize)
    return TensorType(x.axes)


@rule(segmented_layer_norm)
def segmented_norm_function(
    infer: Inference,
    x: TensorType,
    segments: Sequence[int],
    weight: TensorType | None = None,
    bias: TensorType | None = None,
    eps: float = 1e-5,  # noqa: ARG001
) -> TensorType:
    """The functional form."""
    for vector in (weight, bias):
        if vector is not None:
            infer.unify(vector[0], x[-1])
    infer.mixes(x[-1], "segmented_layer_norm")
    infer.on_rebuild(lambda node, new: set_argument(node, 1, "segments", new.segments(x[-1], tuple(segments))))
    return TensorType(x.axes)


@rule(nn.GroupNorm)
def group_norm(infer: Inference, input: TensorType) -> TensorType:
    """Channels are `g·k`: each group is normalised alone, so cutting groups is exact and cutting in a group is not."""
    module = infer.submodule
    assert isinstance(module, nn.GroupNorm)
    groups = ax.free(module.num_groups) if module.num_groups > 1 else ax.UNIT
    inner = ax.free(module.num_channels // module.num_groups)
    infer.unify(input[1], ax.product([groups, inner]))
    infer.tie("weight", input[1])
    infer.tie("bias", input[1])
    infer.mixes(inner, "group_norm")
    infer.attribute("num_groups", groups)
    infer.attribute("num_channels", input[1])
    return TensorType(input.axes)


@rule(F.normalize)
def normalize(infer: Inference, input: TensorType, p: float = 2.0, dim: int = 1, **options: Any) -> TensorType:  # noqa: ARG001
    """Divides by a norm over one axis, which it mixes."""
    infer.mixes(input[dim], "normalize")
    return TensorType(input.axes)


@rule(ChannelGate)
def channel_gate(infer: Inference, reference: TensorType) -> TensorType:
    """Gives a mask `[batch, channels]` whose channels are the gate's own."""
    loc = infer.parameter("loc")
    assert loc is not None
    infer.attribute("channels", loc[0])
    return TensorType([reference[0], loc[0]])
