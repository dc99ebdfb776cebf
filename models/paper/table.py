"""The table of the papers' networks: what `paper/NAME` can build."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from graphsurgery.models.paper import resnet, small, vgg

PAPER_NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "cnn": small.cnn,
    "conv2": small.conv2,
    "conv4": small.conv4,
    "conv6": small.conv6,
    "lenet5": small.lenet5,
    "lenet_300_100": small.lenet_300_100,
    "mlp": small.mlp,
    "resnet18": resnet.resnet18,
    "resnet20": resnet.resnet20,
    "vgg11": vgg.vgg11,
    "vgg11_bn": vgg.vgg11_bn,
}
