import pytest
import torch
from torch import fx, nn

from graphsurgery.models import build, input_shape

SPECS = [
    "paper/mlp",
    "paper/lenet_300_100",
    "paper/lenet5",
    "paper/lenet5?image_size=12",
    "paper/conv2",
    "paper/conv4?image_size=8",
    "paper/conv6?image_size=8&in_channels=1",
    "paper/vgg11",
    "paper/vgg11?image_size=8&bias=true",
    "paper/vgg11_bn",
    "paper/resnet20",
    "paper/resnet18?small_stem=true&width=8",
    "paper/resnet18?width=8&classes=10",
    "paper/cnn",
]


@pytest.mark.parametrize("spec", SPECS)
def test_traces_and_gives_one_number_per_class(spec):
    torch.manual_seed(0)
    module = build(spec).eval()
    x = torch.randn(2, *input_shape(spec))
    traced = fx.symbolic_trace(module)
    out = module(x)
    assert out.shape[0] == 2
    assert out.isfinite().all()
    torch.testing.assert_close(traced(x), out, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("paper/lenet_300_100", 266_200),
        ("paper/conv2", 4_300_992),
        ("paper/conv4", 2_425_024),
        ("paper/conv6", 2_261_184),
        ("paper/resnet20", 270_896),
    ],
)
def test_weight_counts_of_the_papers(spec, weights):
    with torch.device("meta"):
        module = build(spec)
    layers = (m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert sum(layer.weight.numel() for layer in layers) == weights


def test_vgg_has_no_biases_by_default():
    assert all(m.bias is None for m in build("paper/vgg11").modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_widths():
    assert build("paper/cnn?width=4").conv3.out_channels == 16
    assert build("paper/resnet20?width=8").head.in_features == 32
    assert build("paper/vgg11_bn?width=12").head.in_features == build("paper/vgg11?width=12").head.in_features == 96
    assert build("paper/mlp?inputs=2&hidden=7&outputs=3").head.weight.shape == (3, 7)
