"""Losses that a forward computes: differences of two tensors, number by number, and what is made of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.rules.contraction import outputs_like
from graphsurgery.axes.rules.pointwise import broadcast
from graphsurgery.axes.rules.reductions import summed_up
from graphsurgery.axes.types import TensorType, tensor_types


@rule(
    F.mse_loss, nn.MSELoss, F.l1_loss, nn.L1Loss, F.smooth_l1_loss, nn.SmoothL1Loss, F.huber_loss, nn.HuberLoss,
    F.binary_cross_entropy, nn.BCELoss, F.binary_cross_entropy_with_logits, torch.binary_cross_entropy_with_logits,
    nn.BCEWithLogitsLoss, F.kl_div, torch.kl_div, nn.KLDivLoss, F.poisson_nll_loss, torch.poisson_nll_loss,
    nn.PoissonNLLLoss, F.soft_margin_loss, nn.SoftMarginLoss, F.hinge_embedding_loss, torch.hinge_embedding_loss,
    nn.HingeEmbeddingLoss, F.margin_ranking_loss, torch.margin_ranking_loss, nn.MarginRankingLoss,
    F.gaussian_nll_loss, nn.GaussianNLLLoss,
)  # fmt: skip
def loss_of_numbers(infer: Inference, *operands: Any, **options: Any) -> TensorType:
    """Number by number; all of them are summed up, or none."""
    whole = broadcast(infer, *tensor_types(operands), *tensor_types(options))
    if infer.value.shape == whole.shape and len(whole):
        return whole
    vectors = [*infer.submodule.buffers()] if infer.node.op == "call_module" else []
    if vectors:
        infer.freeze("a loss whose classes have weights", whole)
    return summed_up(infer, whole, "loss")


@rule(
    F.triplet_margin_loss, torch.triplet_margin_loss, nn.TripletMarginLoss, F.cosine_embedding_loss,
    torch.cosine_embedding_loss, nn.CosineEmbeddingLoss, F.multilabel_soft_margin_loss, nn.MultiLabelSoftMarginLoss,
)  # fmt: skip
def loss_of_rows(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:
    """A number for each example, or one of all; along their other axes numbers are summed up."""
    rows = [typed for typed in tensor_types((others, options)) if len(typed) == len(input)]
    whole = broadcast(infer, input, *rows)
    kept = len(infer.value.shape)
    for index, axis in list(enumerate(whole.axes))[kept:]:
        infer.mixes(axis, "loss", index - len(whole))
    return TensorType(whole.axes[:kept])


@rule(
    F.cross_entropy, nn.CrossEntropyLoss, F.nll_loss, nn.NLLLoss, F.multi_margin_loss, nn.MultiMarginLoss,
    F.multilabel_margin_loss, nn.MultiLabelMarginLoss,
)  # fmt: skip
def loss_of_classes(
    infer: Inference, input: TensorType, target: TensorType, *others: Any, **options: Any
) -> TensorType:
    """A label names a class, which fixes their axis; labels by shares are summed up with it."""
    shares = F.cross_entropy, nn.CrossEntropyLoss
    kind = type(infer.submodule) if infer.node.op == "call_module" else infer.node.target
    buffers = infer.submodule.buffers() if kind is nn.CrossEntropyLoss else iter(())
    weighed = bool(tensor_types((others, options))) or any(True for _ in buffers)
    if kind in shares and len(target) == len(input) and not weighed:
        whole = broadcast(infer, input, target)
    else:
        infer.freeze_axis("classes that labels name", input[1 if len(input) > 1 else 0])
        infer.fix(*(axis for typed in tensor_types((target, others, options)) for axis in typed.axes))
        whole = input
    result = summed_up(infer, whole, "loss")
    return outputs_like(infer) if infer.value.shape else result
