"""Normalisations: per channel (batch, instance) and across channels (layer, group)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.kept import computes_at_size
from graphsurgery.axes.rules.contraction import resize_argument, set_argument
from graphsurgery.axes.rules.movement import write_sizes
from graphsurgery.axes.types import Resize, TensorType
from graphsurgery.network.layers import ChannelGate, grouped_norm, weigh
from graphsurgery.network.operators import Trait, argument_of, modules, spelled


@rule(*modules(Trait.PER_CHANNEL))
def batch_norm(infer: Inference, input: TensorType) -> TensorType:
    """Per-channel affine: weight, bias and both running statistics follow the channels of the input.

    These are axis 1; of one example without a batch, which an instance norm takes, axis 0.
    """
    name = type(infer.submodule).__name__
    if name.startswith("InstanceNorm") and len(input) == int(name[-2]) + 1:
        whole = batch_norm(infer, TensorType([ax.UNIT, *input.axes]))
        return TensorType(whole.axes[1:])
    for name in ("weight", "bias", "running_mean", "running_var"):
        infer.tie(name, input[1])
    infer.tie("num_batches_tracked")
    infer.attribute("num_features", input[1])
    stored = infer.submodule.running_mean is not None
    _mixes_positions(infer, input, "mean and variance of training" if stored else "mean and variance")
    return TensorType(input.axes)


def _mixes_positions(infer: Inference, input: TensorType, kind: str = "mean and variance") -> None:
    """Statistics over the axes behind the channels mix those that are no mere positions."""
    for axis in input.axes[2:]:
        infer.mixes(axis, kind)


@rule(*spelled("frozen_batch_norm"))
def frozen_batch_norm(infer: Inference, x: TensorType) -> TensorType:
    """Per-channel affine by four buffers."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        infer.tie(name, x[1])
    return TensorType(x.axes)


@rule(F.batch_norm, F.instance_norm)
def batch_norm_function(infer: Inference, input: TensorType, *vectors: Any, **options: Any) -> TensorType:
    """The functional form; statistics that it takes from its input mix the other axes."""
    names = ("running_mean", "running_var", "weight", "bias", "training")
    given = dict(zip(names, vectors, strict=False)) | options
    for name in names[:4]:
        if isinstance(given.get(name), TensorType):
            infer.unify(given[name][0], input[1])
    if infer.node.target is F.instance_norm and len(input.axes) == 3 and given.get("running_mean") is None:
        infer.mixes(input[2], "instance_norm", 2)
    elif infer.node.target is F.instance_norm:
        _mixes_positions(infer, input)
    elif given.get("training", False) is not False or given.get("running_mean") is None:
        infer.mixes(input[0], "mean and variance")
        _mixes_positions(infer, input)
    elif isinstance(argument_of(infer.node, 5, "training"), fx.Node):
        _mixes_positions(infer, input, "mean and variance of training")
    return TensorType(input.axes)


@rule(torch.batch_norm)
def batch_norm_of_torch(
    infer: Inference,
    input: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    running_mean: TensorType | None,
    running_var: TensorType | None,
    training: bool,
    *others: Any,  # noqa: ARG001
) -> TensorType:
    """The form of `torch` has its arguments in another order."""
    return batch_norm_function(infer, input, running_mean, running_var, weight, bias, training)


@rule(torch.instance_norm)
def instance_norm_of_torch(
    infer: Inference,
    input: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    running_mean: TensorType | None,
    running_var: TensorType | None,
    *others: Any,  # noqa: ARG001
) -> TensorType:
    """The same of the norm of each example."""
    for vector in (weight, bias, running_mean, running_var):
        if vector is not None:
            infer.unify(vector[0], input[1])
    _mixes_positions(infer, input)
    return TensorType(input.axes)


@rule(nn.LayerNorm)
def layer_norm(infer: Inference, input: TensorType) -> TensorType:
    """Mixes the last axes; weight and bias follow them."""
    module = infer.submodule
    assert isinstance(module, nn.LayerNorm)
    count = len(module.normalized_shape)
    if count > 1:
        return _over_several(infer, input, count, infer.parameter("weight"), infer.parameter("bias"))
    normalized = input.axes[-count:]
    infer.tie("weight", *normalized)
    infer.tie("bias", *normalized)
    infer.mixes(input[-1], "layer_norm", -1)

    def resize(new_module: nn.Module, new: Resize) -> None:
        assert isinstance(new_module, nn.LayerNorm)
        new_module.normalized_shape = tuple(new.size(axis) for axis in normalized)

    infer.on_module(resize)
    return TensorType(input.axes)


@rule(F.layer_norm, torch.layer_norm)
def layer_norm_function(
    infer: Inference,
    input: TensorType,
    normalized_shape: Sequence[int],
    weight: TensorType | None = None,
    bias: TensorType | None = None,
    eps: float = 1e-5,  # noqa: ARG001
    cudnn_enable: bool = True,  # noqa: ARG001
) -> TensorType:
    """The functional form; its normalised shape is an argument."""
    if len(normalized_shape) > 1:
        return _over_several(infer, input, len(normalized_shape), weight, bias)
    normalized = input.axes[-1:]
    for vector in (weight, bias):
        if vector is not None:
            infer.unify(vector[0], normalized[0])
    infer.mixes(input[-1], "layer_norm", -1)
    _write_shape(infer, normalized)
    return TensorType(input.axes)


def _write_shape(infer: Inference, normalized: Sequence[ax.Axis]) -> None:
    """On a rebuild, the normalised shape of a call becomes that of these axes."""

    def get(node: fx.Node) -> Any:
        return node.args[1] if len(node.args) > 1 else node.kwargs["normalized_shape"]

    def put(node: fx.Node, sizes: Sequence[Any]) -> None:
        set_argument(node, 1, "normalized_shape", tuple(sizes))

    write_sizes(infer, normalized, get, put, (1, "normalized_shape"))


def _over_several(infer: Inference, input: TensorType, count: int, *vectors: TensorType | None) -> TensorType:
    """A norm over the last axes computes at their old sizes, and has a weight for each of their places."""
    infer.fix(*(axis for vector in vectors if vector is not None for axis in vector.axes))
    dims = range(len(input) - count, len(input))
    computes_at_size(infer, "a norm over several axes", input, dims, {dim: input[dim] for dim in dims})
    return TensorType(input.axes)


@rule(nn.RMSNorm)
def rms_norm(infer: Inference, x: TensorType) -> TensorType:
    """Divides by the root mean square over the last axes, which it mixes; the weight follows them."""
    module = infer.submodule
    assert isinstance(module, nn.RMSNorm)
    count = len(module.normalized_shape)
    if count > 1:
        return _over_several(infer, x, count, infer.parameter("weight"))
    normalized = x.axes[-count:]
    infer.tie("weight", *normalized)
    infer.mixes(x[-1], "rms_norm", -1)

    def resize(new_module: nn.Module, new: Resize) -> None:
        new_module.normalized_shape = tuple(new.size(axis) for axis in normalized)  # type: ignore[assignment]

    infer.on_module(resize)
    return TensorType(x.axes)


@rule(F.rms_norm, torch.rms_norm)
def rms_norm_function(
    infer: Inference,
    input: TensorType,
    normalized_shape: Sequence[int],
    weight: TensorType | None = None,
    eps: float | None = None,  # noqa: ARG001
) -> TensorType:
    """The functional form; its normalised shape is an argument."""
    if len(normalized_shape) > 1:
        return _over_several(infer, input, len(normalized_shape), weight)
    normalized = input.axes[-1:]
    if weight is not None:
        infer.unify(weight[0], normalized[0])
    infer.mixes(input[-1], "rms_norm", -1)
    _write_shape(infer, normalized)
    return TensorType(input.axes)


@rule(weigh)
def weigh_function(infer: Inference, x: TensorType, dim: int, factors: TensorType) -> TensorType:
    """One factor for each index of an axis, or of what is inside its groups."""
    groups = ax.size_of(x[dim]) // ax.size_of(factors[0])
    infer.unify(x[dim], ax.product([ax.free(groups), factors[0]]) if groups > 1 else factors[0])
    return TensorType(x.axes)


@rule(nn.GroupNorm)
def group_norm(infer: Inference, input: TensorType) -> TensorType:
    """Channels are `g·k`: each group is normalised alone, so cutting groups is exact and cutting in a group is not."""
    module = infer.submodule
    assert isinstance(module, nn.GroupNorm)
    groups = _normalize_groups(infer, input, module.num_groups, infer.parameter("weight"), infer.parameter("bias"))
    infer.attribute("num_groups", groups)
    infer.attribute("num_channels", input[1])
    return TensorType(input.axes)


@rule(F.group_norm, torch.group_norm)
def group_norm_function(
    infer: Inference,
    input: TensorType,
    num_groups: int,
    weight: TensorType | None = None,
    bias: TensorType | None = None,
    eps: float = 1e-5,  # noqa: ARG001
    cudnn_enabled: bool = True,  # noqa: ARG001
) -> TensorType:
    """The functional form; the number of groups is a literal."""
    groups = _normalize_groups(infer, input, num_groups, weight, bias)
    infer.on_rebuild(
        lambda node, new: resize_argument(node, 1, "num_groups", new.size(groups)), sizes=(1, "num_groups")
    )
    return TensorType(input.axes)


def _normalize_groups(
    infer: Inference, input: TensorType, count: int, weight: TensorType | None, bias: TensorType | None
) -> ax.Axis:
    """Returns the axis of the groups."""
    groups = ax.free(count) if count > 1 else ax.UNIT
    inner = ax.free(ax.size_of(input[1]) // count)
    infer.unify(input[1], ax.product([groups, inner]))
    for vector in (weight, bias):
        if vector is not None:
            infer.unify(vector[0], input[1])
    infer.mixes(inner, "group_norm", 1)
    _mixes_positions(infer, input)
    return groups


@rule(F.normalize)
def normalize(infer: Inference, input: TensorType, p: float = 2.0, dim: Any = 1, **options: Any) -> TensorType:  # noqa: ARG001
    """Divides by a norm over some axes, which it mixes."""
    if isinstance(dim, int):
        infer.mixes(input[dim], "normalize", dim)
    else:
        named = [index % len(input) for index in dim]
        computes_at_size(infer, "a norm over several axes", input, named, {index: input[index] for index in named})
    return TensorType(input.axes)


@rule(grouped_norm)
def grouped_norm_function(
    infer: Inference,
    x: TensorType,
    members: TensorType,
    weight: TensorType | None = None,
    bias: TensorType | None = None,
    *,
    dim: int = -1,
    positions: bool = False,
    affine: int | None = None,
    blocks: bool = False,
    **options: Any,  # noqa: ARG001
) -> TensorType:
    """Mixes the channels of each group; its members follow the channels and, where these are blocks, the groups."""
    if members.parameter is None:
        raise ax.Clash("members that are computed")
    infer.parameters[members.parameter].counts = True
    mixed = x[dim]
    if blocks and ax.size_of(members[1]) > 1:
        mixed = ax.free(ax.size_of(x[dim]) // ax.size_of(members[1]))
        infer.unify(x[dim], ax.product([members[1], mixed]))
    else:
        infer.fix(members[1])
    infer.unify(members[0], x[dim])
    for vector in (weight, bias):
        if vector is not None:
            infer.unify(vector[0], x[dim if affine is None else affine])
    infer.mixes(mixed, "grouped_norm", dim)
    if positions:
        _mixes_positions(infer, x)
    return TensorType(x.axes)


@rule(ChannelGate)
def channel_gate(infer: Inference, reference: TensorType) -> TensorType:
    """Gives a mask `[batch, channels]` whose channels are the gate's own."""
    loc = infer.parameter("loc")
    assert loc is not None
    infer.attribute("channels", loc[0])
    return TensorType([reference[0], loc[0]])
