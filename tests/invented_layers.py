"""Layers of torch that do not take one tensor and its number of channels: how they are made and called."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from invented_arguments import Value, labels, like, positive, signs
from torch import Tensor, nn


def _with(*others: Value) -> Callable[[Tensor, Any], Any]:
    return lambda h, layer: layer(h, *(other(h) for other in others))


def _plain(h: Tensor, layer: Any) -> Any:
    return layer(h)


def _loss_layer(h: Tensor, layer: Any) -> Any:
    return layer(torch.sigmoid(h), torch.sigmoid(like(h)))


def _sized(*arguments: Any, **options: Any) -> Callable[[Any], nn.Module]:
    return lambda kind: kind(*arguments, **options)


LAYERS: dict[str, tuple[str, Callable[[Any], nn.Module], Callable[[Tensor, Any], Any]]] = {
    **{name: ("image", _sized(), _loss_layer) for name in (
        "BCELoss", "BCEWithLogitsLoss", "HingeEmbeddingLoss", "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss",
        "PoissonNLLLoss", "SmoothL1Loss", "MultiLabelSoftMarginLoss",
    )},
    **{name: ("vector", _sized(), _with(labels)) for name in ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss")},
    "NLLLoss2d": ("image", _sized(), _with(lambda h: (h.mean(1) > 0).long())),
    "MultiLabelMarginLoss": ("vector", _sized(), _with(lambda h: labels(h).unsqueeze(1).expand(h.shape))),
    "LinearCrossEntropyLoss": ("vector", _sized(8, 6), _with(lambda h: labels(h) % 6)),
    "CosineEmbeddingLoss": ("vector", _sized(), _with(like, signs)),
    "GaussianNLLLoss": ("image", _sized(), _with(like, positive)),
    "MarginRankingLoss": ("image", _sized(), _with(like, lambda h: torch.sign(like(h)))),
    "TripletMarginLoss": ("vector", _sized(), _with(like, lambda h: like(h.flip(0)))),
    "SoftMarginLoss": ("image", _sized(), _with(lambda h: torch.sign(like(h)).detach())),
    "CosineSimilarity": ("image", _sized(), _with(like)),
    "PairwiseDistance": ("vector", _sized(), _with(like)),
    "Bilinear": ("vector", _sized(8, 8, 6), _with(like)),
    "ChannelShuffle": ("image", _sized(2), lambda h, layer: h + layer(h)),
    "CrossMapLRN2d": ("image", _sized(3), _plain),
    "Embedding": ("image", _sized(2, 8), lambda h, layer: h + layer((h.mean(1) > 0).long()).permute(0, 3, 1, 2)),
    "EmbeddingBag": ("vector", _sized(2, 8), lambda h, layer: h + layer((h > 0).long())),
    "Fold": ("sequence", _sized((4, 4), 2, stride=2), _plain),
    "FractionalMaxPool2d": ("image", _sized(2, output_size=2), _plain),
    "FractionalMaxPool3d": ("volume", _sized((1, 2, 2), output_size=(1, 2, 2)), _plain),
    "Identity": ("image", _sized(), _plain),
    "LayerNorm": ("tokens", _sized(8), _plain),
    "RMSNorm": ("tokens", _sized(8), _plain),
    "LSTM": ("square", _sized(8, 6, batch_first=True), _plain),
    "GRU": ("square", _sized(8, 6, batch_first=True), _plain),
    "RNN": ("square", _sized(8, 6, batch_first=True), _plain),
    "LPPool3d": ("volume", _sized(2, 2), _plain),
    "LPPool2d": ("image", _sized(2, 2), _plain),
    "LPPool1d": ("sequence", _sized(2, 2), _plain),
    "MaxUnpool1d": ("sequence", _sized(2), lambda h, layer: layer(*F.max_pool1d(h, 2, return_indices=True))),
    "MaxUnpool2d": ("image", _sized(2), lambda h, layer: layer(*F.max_pool2d(h, 2, return_indices=True))),
    "MaxUnpool3d": ("volume", _sized(2), lambda h, layer: layer(*F.max_pool3d(h, 2, return_indices=True))),
    "MultiheadAttention": ("square", _sized(8, 2, batch_first=True), _with(like, lambda h: h)),
    "PixelUnshuffle": ("image", _sized(2), _plain),
    "Softmax": ("image", _sized(1), _plain),
    "LogSoftmax": ("image", _sized(1), _plain),
    "Softmin": ("image", _sized(1), _plain),
    "TransformerEncoderLayer": ("tokens", _sized(8, 2, 5, 0.0, batch_first=True), _plain),
    "Unflatten": ("image", _sized(1, (2, 4)), lambda h, layer: layer(h).flatten(1, 2)),
    "Unfold": ("image", _sized(2), _plain),
    "PReLU": ("image", _sized(8), _plain),
    "AdaptiveAvgPool1d": ("sequence", _sized(2), _plain),
    "SyncBatchNorm": ("image", _sized(8), _plain),
}  # fmt: skip
"""By name of a layer: the form of what it is given, how it is made, and how it is called."""
