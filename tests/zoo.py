"""The networks on which contracts are proved: one of each family, small, with random statistics and affine values.

A family whose smallest member is deep has fewer blocks here, with every kind of block and every stride that it has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

import graphsurgery as gs
from graphsurgery.models import build, input_shape

PAPER = (
    "paper/mlp",
    "paper/lenet_300_100",
    "paper/lenet5",
    "paper/conv2?image_size=8",
    "paper/conv4?image_size=8",
    "paper/conv6?image_size=16",
    "paper/vgg11?bias=True",
    "paper/vgg11_bn",
    "paper/resnet20?width=8",
    "paper/resnet18?width=8",
    "paper/cnn",
)


def _convnext() -> nn.Module:
    blocks = [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)]
    return ConvNeXt(blocks, num_classes=10, layer_scale=0.5)


def _vit() -> nn.Module:
    return VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)


def _resnext() -> nn.Module:
    return ResNet(Bottleneck, [1, 2, 1, 1], num_classes=10, groups=8, width_per_group=4)


def _densenet() -> nn.Module:
    return DenseNet(growth_rate=8, block_config=(2, 3, 3, 2), num_init_features=16, num_classes=10)


def _mobilenet_v2() -> nn.Module:
    stages = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 64, 1, 2], [6, 96, 2, 1], [6, 160, 1, 2]]
    return MobileNetV2(num_classes=10, width_mult=0.5, inverted_residual_setting=stages)


def _mobilenet_v3() -> nn.Module:
    blocks = [
        (16, 3, 16, 16, True, "RE", 2, 1, 1.0),
        (16, 3, 72, 24, False, "RE", 2, 1, 1.0),
        (24, 3, 88, 24, False, "RE", 1, 1, 1.0),
        (24, 5, 96, 40, True, "HS", 2, 1, 1.0),
        (40, 5, 240, 40, True, "HS", 1, 1, 1.0),
    ]
    return MobileNetV3([InvertedResidualConfig(*block) for block in blocks], last_channel=128, num_classes=10)


def _efficientnet() -> nn.Module:
    stages = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 1)]
    return EfficientNet([MBConvConfig(*stage) for stage in stages], dropout=0.2, num_classes=10)


def _torchvision(name: str, **options: object) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=10, **options)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (partial(_torchvision, "resnet18"), (3, 32, 32)),
    "resnext": (_resnext, (3, 32, 32)),
    "densenet": (_densenet, (3, 32, 32)),
    "mobilenet_v2": (_mobilenet_v2, (3, 32, 32)),
    "mobilenet_v3": (_mobilenet_v3, (3, 32, 32)),
    "efficientnet": (_efficientnet, (3, 32, 32)),
    "squeezenet1_1": (partial(_torchvision, "squeezenet1_1"), (3, 64, 64)),
    "googlenet": (partial(_torchvision, "googlenet", aux_logits=False, init_weights=False), (3, 64, 64)),
    "inception_v3": (partial(_torchvision, "inception_v3", aux_logits=False, init_weights=False), (3, 75, 75)),
    "mnasnet0_5": (partial(_torchvision, "mnasnet0_5"), (3, 32, 32)),
    "regnet_y_400mf": (partial(_torchvision, "regnet_y_400mf"), (3, 32, 32)),
    "shufflenet_v2_x0_5": (partial(_torchvision, "shufflenet_v2_x0_5"), (3, 64, 64)),
    "convnext": (_convnext, (3, 32, 32)),
    "vit": (_vit, (3, 32, 32)),
}
# Families whose trace has the values of some parameters and buffers in another order.
SHUFFLING = ("shufflenet_v2_x0_5",)
# Families of which one or two stand for the others where a test is slow.
FEW = ("resnet18", "mobilenet_v3", "convnext", "vit")
NAMES = (*PAPER, *FAMILIES)


def model(name: str, seed: int = 0) -> nn.Module:
    """A network of the zoo, float64, in eval mode, with every value random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FAMILIES[name][0]() if name in FAMILIES else build(name)
        randomize(network)
    return network.double().eval()


def randomize(network: nn.Module) -> None:
    """Random BatchNorm statistics and affine values, and no zero initialisation, from the global generator."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for name, parameter in network.named_parameters():
            if parameter.dim() <= 1 or "scale" in name:
                parameter.uniform_(0.5, 1.5) if name.endswith(("weight", "scale")) else parameter.normal_(0, 0.1)
            elif not parameter.any():
                parameter.normal_(0, 0.1)


def example(name: str, batch: int = 2, seed: int = 7) -> Tensor:
    """Random inputs `[batch, ...]`, float64."""
    shape = FAMILIES[name][1] if name in FAMILIES else input_shape(name)
    assert shape is not None
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def traced(name: str, seed: int = 0) -> tuple[gs.ModelGraph, Tensor]:
    """A traced network of the zoo and inputs for it; the tests of tracing compare it with the network."""
    return gs.trace(model(name, seed), example(name), check=False), example(name)
