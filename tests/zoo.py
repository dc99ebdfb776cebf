"""The networks on which contracts are proved: one of each family, small, with random statistics and affine values.

A family whose smallest member is deep has fewer blocks here, with every kind of block and every stride that it has, and
one whose smallest member is wide has fewer channels: what is proved does not depend on how many.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import GoogLeNet, Inception3, ShuffleNetV2, inception
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.googlenet import BasicConv2d, Inception, InceptionAux
from torchvision.models.mnasnet import MNASNet
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
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
    "paper/vgg11?bias=True&width=12",
    "paper/vgg11_bn?width=12",
    "paper/resnet20?width=8",
    "paper/resnet18?width=8",
    "paper/cnn",
)


def _convnext(*depths: int) -> nn.Module:
    blocks = [CNBlockConfig(16, 32, depths[0]), CNBlockConfig(32, None, depths[1])]
    return ConvNeXt(blocks, num_classes=10, layer_scale=0.5)


def _vit(depth: int) -> nn.Module:
    return VisionTransformer(32, 8, depth, 4, 32, 64, num_classes=10)


class _Narrow(ResNet):
    """Fewer channels in the later stages."""

    def __init__(self, block: type[nn.Module], depths: list[int], planes: tuple[int, ...], **options: int) -> None:
        self._planes = iter(planes)
        super().__init__(block, depths, num_classes=10, **options)
        self.fc = nn.Linear(self.inplanes, 10)

    def _make_layer(self, block, _, blocks, **options):
        planes = next(self._planes)
        return super()._make_layer(block, planes, blocks, **options) if blocks else nn.Sequential()


def _resnet18(*depths: int) -> nn.Module:
    return _Narrow(BasicBlock, list(depths), (64, 80, 96, 128))


def _resnext(*depths: int) -> nn.Module:
    return _Narrow(Bottleneck, list(depths), (32, 48, 64, 96), groups=8, width_per_group=4)


def _densenet() -> nn.Module:
    return DenseNet(growth_rate=8, block_config=(2, 3, 2, 1), num_init_features=16, num_classes=10)


def _mobilenet_v2() -> nn.Module:
    stages = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2], [6, 64, 1, 1], [6, 160, 1, 2]]
    return MobileNetV2(num_classes=10, width_mult=0.5, inverted_residual_setting=stages)


_MOBILE = (
    (16, 3, 16, 16, True, "RE", 2, 1, 1.0),
    (16, 3, 72, 24, False, "RE", 2, 1, 1.0),
    (24, 3, 88, 24, False, "RE", 1, 1, 1.0),
    (24, 5, 96, 40, True, "HS", 2, 1, 1.0),
    (40, 5, 240, 40, True, "HS", 1, 1, 1.0),
)


def _mobilenet_v3(*blocks: tuple) -> nn.Module:
    return MobileNetV3([InvertedResidualConfig(*block) for block in blocks], last_channel=128, num_classes=10)


def _efficientnet() -> nn.Module:
    stages = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 1), (6, 3, 2, 40, 80, 1)]
    return EfficientNet([MBConvConfig(*stage) for stage in stages], dropout=0.2, num_classes=10)


def _regnet_y() -> nn.Module:
    stages = BlockParams([1, 2, 1, 1], [24, 48, 64, 96], [8, 8, 8, 8], [1.0] * 4, [2] * 4, se_ratio=0.25)
    return RegNet(stages, num_classes=10)


def _shufflenet_v2() -> nn.Module:
    return ShuffleNetV2([2, 3, 1], [24, 48, 96, 192, 256], num_classes=10)


def _shallow_shufflenet_v2() -> nn.Module:
    network = ShuffleNetV2([2, 2, 1], [24, 48, 96, 2, 64], num_classes=10)
    network.stage4, network.conv5[0] = nn.Identity(), nn.Conv2d(96, 64, 1, bias=False)
    return network


def _shallow_squeezenet() -> nn.Module:
    network = _torchvision("squeezenet1_1")
    network.features, network.classifier[1] = network.features[:7], nn.Conv2d(256, 10, 1)
    return network


def _quarter(block: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A convolution of Inception with a quarter of the channels; the image keeps its three."""

    def built(in_channels: int, out_channels: int, **options: object) -> nn.Module:
        return block(in_channels if in_channels == 3 else in_channels // 4, out_channels // 4, **options)

    return built


def googlenet(*, aux: bool = False) -> nn.Module:
    """With or without auxiliary heads, which have but one narrow layer here."""
    convolution = _quarter(BasicConv2d)
    blocks = [convolution, partial(Inception, conv_block=convolution), InceptionAux]
    network = GoogLeNet(num_classes=10, aux_logits=False, init_weights=False, blocks=blocks)
    if aux:
        network.aux_logits = True
        for head, channels in (("aux1", 128), ("aux2", 132)):
            setattr(network, head, InceptionAux(channels, 10))
            getattr(network, head).fc1 = nn.Linear(2048, 64)
            getattr(network, head).fc2 = nn.Linear(64, 10)
    for name in ("inception4b", "inception4c", "inception5a"):  # as 4d and 5b
        setattr(network, name, nn.Identity())
    network.fc = nn.Linear(256, 10)
    return network


def _inception_v3() -> nn.Module:
    convolution = _quarter(inception.BasicConv2d)
    kinds = (getattr(inception, f"Inception{letter}") for letter in "ABCDE")
    blocks = [convolution, *(partial(kind, conv_block=convolution) for kind in kinds), inception.InceptionAux]
    network = Inception3(num_classes=10, aux_logits=False, init_weights=False, inception_blocks=blocks)
    for name in ("Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_7c"):  # as 5c, 6b, 6e and 7b
        setattr(network, name, nn.Identity())
    network.fc = nn.Linear(512, 10)
    return network


def _mnasnet() -> nn.Module:
    network = MNASNet(0.5, num_classes=10)
    for place, stack in enumerate(network.layers):
        if isinstance(stack, nn.Sequential):
            network.layers[place] = stack[:2]
    return network


def _torchvision(name: str, **options: object) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=10, **options)


class _Written(nn.Module):
    """A layer that is written as a product, with its matrix as `[in, out]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class _Turned(nn.Linear):
    """A linear layer that multiplies with its transposed weights, as Falcon's do."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class _Block(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), _Written(8, 12), _Written(12, 8)
        if not drop:
            self.up, self.down = _Turned(8, 12, bias=False), _Turned(12, 8, bias=False)
        self.drop = nn.Dropout(drop) if drop else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x + (self.drop(y) if self.drop else y)


class Products(nn.Module):
    """Two residual blocks of products with parameters, as GPT-2 has them; `[batch, 5, 6]` to `[batch, 5, 3]`.

    Without a dropout the blocks are as Falcon has them.
    """

    def __init__(self, drop: float = 0.1) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.randn(6, 8))
        self.blocks = nn.Sequential(_Block(drop), _Block(drop))
        self.head, self.offset = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.blocks(x @ self.embed), self.head, self.offset)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (partial(_resnet18, 2, 2, 2, 1), (3, 32, 32)),
    "resnext": (partial(_resnext, 1, 2, 1, 1), (3, 32, 32)),
    "densenet": (_densenet, (3, 32, 32)),
    "mobilenet_v2": (_mobilenet_v2, (3, 32, 32)),
    "mobilenet_v3": (partial(_mobilenet_v3, *_MOBILE), (3, 32, 32)),
    "efficientnet": (_efficientnet, (3, 32, 32)),
    "squeezenet1_1": (partial(_torchvision, "squeezenet1_1"), (3, 64, 64)),
    "googlenet": (googlenet, (3, 64, 64)),
    "inception_v3": (_inception_v3, (3, 75, 75)),
    "mnasnet0_5": (_mnasnet, (3, 32, 32)),
    "regnet_y": (_regnet_y, (3, 32, 32)),
    "shufflenet_v2": (_shufflenet_v2, (3, 64, 64)),
    "convnext": (partial(_convnext, 2, 1), (3, 32, 32)),
    "vit": (partial(_vit, 2), (3, 32, 32)),
}
# The whole of a family's smallest member, where numbers of channels are the point.
WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "whole resnet18": (partial(_torchvision, "resnet18"), (3, 32, 32)),
}
# A block of each kind, for what takes seconds where the others take hundredths: an export, training.
SHALLOW: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "shallow resnet18": (partial(_resnet18, 1, 1, 0, 0), (3, 32, 32)),
    "shallow resnext": (partial(_resnext, 1, 1, 0, 0), (3, 32, 32)),
    "shallow mobilenet_v3": (partial(_mobilenet_v3, _MOBILE[0], (16, 5, 64, 16, True, "HS", 1, 1, 1.0)), (3, 32, 32)),
    "shallow convnext": (partial(_convnext, 1, 1), (3, 32, 32)),
    "shallow vit": (partial(_vit, 1), (3, 32, 32)),
}
# The same for two more, which some tests of files need: a shuffle, and a concat of what several layers read.
_SHALLOW_TOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "shallow shufflenet_v2": (_shallow_shufflenet_v2, (3, 32, 32)),
    "shallow squeezenet1_1": (_shallow_squeezenet, (3, 32, 32)),
}
_BUILT = FAMILIES | WHOLE | SHALLOW | _SHALLOW_TOO
# Images on which a network that keeps their size for long takes a quarter of the time.
_SMALLER = {"paper/resnet18?width=8": (3, 16, 16)}
# Families whose trace has the values of some parameters and buffers in another order.
SHUFFLING = ("shufflenet_v2",)
# Families of which one or two stand for the others where a test is slow.
FEW = ("resnet18", "mobilenet_v3", "convnext", "vit")
EVERY = (*PAPER, *FAMILIES)
# What another one has every layer and block of: it is traced, typed and cut, but not taken through every pass.
_ALIKE = (
    "paper/lenet_300_100",
    "paper/conv4?image_size=8",
    "paper/conv6?image_size=16",
    "paper/vgg11?bias=True&width=12",
    "paper/resnet18?width=8",
    "mnasnet0_5",
)
NAMES = tuple(name for name in EVERY if name not in _ALIKE)


def model(name: str, seed: int = 0) -> nn.Module:
    """A network of the zoo, float64, in eval mode, with every value random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _BUILT[name][0]() if name in _BUILT else build(name)
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
    shape = _BUILT[name][1] if name in _BUILT else _SMALLER.get(name) or input_shape(name)
    assert shape is not None
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def traced(name: str, seed: int = 0) -> tuple[gs.ModelGraph, Tensor]:
    """A traced network of the zoo and inputs for it; the tests of tracing compare it with the network.

    It is traced once in a process, unless it is large; every test has a copy of its own.
    """
    if name in WHOLE:
        return _traced.__wrapped__(name, seed)
    graph, x = _traced(name, seed)
    return graph.copy(), x.clone()


@lru_cache(32)
def _traced(name: str, seed: int) -> tuple[gs.ModelGraph, Tensor]:
    return gs.trace(model(name, seed), example(name), copy=False, check=False), example(name)
