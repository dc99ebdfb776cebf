"""Tables that are looked up: embeddings, and means of them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.types import TensorType


@rule(nn.Embedding)
def embedding(infer: Inference, input: TensorType) -> TensorType:
    """`weight [rows, channels]`: the rows are fixed, the channels are written."""
    weight = infer.parameter("weight")
    assert weight is not None
    infer.fix(weight[0])
    infer.writes(weight[1])
    infer.attribute("embedding_dim", weight[1])
    return TensorType([*input.axes, weight[1]])


@rule(F.embedding)
def embedding_function(infer: Inference, input: TensorType, weight: TensorType, **options: Any) -> TensorType:  # noqa: ARG001
    """The functional form."""
    infer.freeze_axis("the rows of an embedding", weight[0])
    infer.writes(weight[1])
    return TensorType([*input.axes, weight[1]])


@rule(nn.EmbeddingBag)
def embedding_bag(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """As `embedding`, of which the sum, the mean or the largest of each bag is given, channel by channel."""
    weight = infer.parameter("weight")
    assert weight is not None
    infer.fix(weight[0])
    infer.writes(weight[1])
    infer.attribute("embedding_dim", weight[1])
    return _bags(infer, input, weight)


@rule(F.embedding_bag)
def embedding_bag_function(
    infer: Inference,
    input: TensorType,
    weight: TensorType,
    *others: Any,  # noqa: ARG001
    **options: Any,  # noqa: ARG001
) -> TensorType:
    """The functional form."""
    infer.freeze_axis("the rows of an embedding", weight[0])
    infer.writes(weight[1])
    return _bags(infer, input, weight)


def _bags(infer: Inference, input: TensorType, weight: TensorType) -> TensorType:
    """A bag is a row of the input; where offsets say how long each is, there are as many as they say."""
    if len(input) == 2:
        infer.freeze_axis("indices whose rows are summed up", input[1])
    bags = input[0] if len(input) == 2 else ax.fixed(infer.value.shape[0])
    return TensorType([bags, weight[1]])
