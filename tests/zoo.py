"""The networks on which contracts are proved: one of each family, small, with random statistics and affine values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
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


def _torchvision(name: str, **options: object) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=10, **options)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (partial(_torchvision, "resnet18"), (3, 32, 32)),
    "resnext50_32x4d": (partial(_torchvision, "resnext50_32x4d"), (3, 32, 32)),
    "densenet121": (partial(_torchvision, "densenet121"), (3, 32, 32)),
    "mobilenet_v2": (partial(_torchvision, "mobilenet_v2"), (3, 32, 32)),
    "mobilenet_v3_small": (partial(_torchvision, "mobilenet_v3_small"), (3, 32, 32)),
    "efficientnet_b0": (partial(_torchvision, "efficientnet_b0"), (3, 32, 32)),
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
FEW = ("resnet18", "mobilenet_v3_small", "convnext", "vit")
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
    """A traced network of the zoo and inputs for it."""
    return gs.trace(model(name, seed), example(name)), example(name)
