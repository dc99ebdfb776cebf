"""Norms."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from graphsurgery.onnx.importing.operators.registry import UnlikeTorchError, Value, rank, rule, shape_of
from graphsurgery.onnx.importing.program import Operator

_LEAST_NORM = torch.finfo(torch.float32).tiny
"""Zeros stay zeros when they are normalised."""


@rule("BatchNormalization")
def _batch_norm(operator: Operator, x: Value, scale: Value, shift: Value, mean: Value, var: Value) -> Value:
    return F.batch_norm(x, mean, var, scale, shift, False, 0.0, operator.attributes.get("epsilon", 1e-5))


def _inner(operator: Operator, x: Value) -> int:
    """The first axis that is normalised; not the batch."""
    axis = operator.attributes.get("axis", -1) % rank(x)
    if axis == 0:
        raise UnlikeTorchError("a norm over the batch")
    return int(axis)


@rule("LayerNormalization")
def _layer_norm(operator: Operator, x: Value, scale: Value, shift: Value | None = None) -> Value:
    axis = _inner(operator, x)
    return F.layer_norm(x, shape_of(x)[axis:], scale, shift, operator.attributes.get("epsilon", 1e-5))


@rule("RMSNormalization")
def _rms_norm(operator: Operator, x: Value, scale: Value) -> Value:
    axis = _inner(operator, x)
    return F.rms_norm(x, shape_of(x)[axis:], scale, operator.attributes.get("epsilon", 1e-5))


@rule("GroupNormalization")
def _group_norm(operator: Operator, x: Value, scale: Value, shift: Value) -> Value:
    if operator.opset < 21:
        raise UnlikeTorchError("a group norm with one scale for each group")
    return F.group_norm(x, operator.attributes["num_groups"], scale, shift, operator.attributes.get("epsilon", 1e-5))


@rule("InstanceNormalization")
def _instance_norm(operator: Operator, x: Value, scale: Value, shift: Value) -> Value:
    return F.instance_norm(x, weight=scale, bias=shift, eps=operator.attributes.get("epsilon", 1e-5))


@rule("LpNormalization")
def _lp_normalization(operator: Operator, x: Value) -> Value:
    return F.normalize(x, operator.attributes.get("p", 2), operator.attributes.get("axis", -1), eps=_LEAST_NORM)


@rule("LRN")
def _local_response(operator: Operator, x: Value) -> Value:
    given = operator.attributes
    if given["size"] % 2 == 0:
        raise UnlikeTorchError("a response norm over an even number of channels")
    alpha, beta, bias = given.get("alpha", 1e-4), given.get("beta", 0.75), given.get("bias", 1.0)
    return F.local_response_norm(x, given["size"], alpha, beta, bias)
