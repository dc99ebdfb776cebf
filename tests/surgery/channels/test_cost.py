"""Parameters, MACs and bytes, and the deviation of outputs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

import graphsurgery as gs
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import InputSpec, ModelGraph
from graphsurgery.network.operators import Trait, spellings
from graphsurgery.network.values.shapes import FUNCTIONS, METHODS, MODULES
from graphsurgery.surgery.channels.cost import _READS, _WRITES, cost
from graphsurgery.surgery.deviation import deviation


def graph_of(model: nn.Module, *shape: int) -> ModelGraph:
    return ModelGraph(fx.symbolic_trace(model), (InputSpec("x", shape),))


def test_cost_of_layers_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 5))
    found = cost(graph_of(model, 7, 3, 4, 4))
    assert found.parameters == 3 * 8 * 9 + 8 + 16 + 8 * 16 * 5 + 5
    assert found.macs == 3 * 8 * 9 * 16 + 8 * 16 * 5
    assert found.bytes == 4 * (found.parameters + 16) + 8


def test_cost_of_resnet18_leaves_it_alone():
    graph = graph_of(torchvision.models.resnet18().train(), 2, 3, 224, 224)
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    found = cost(graph)
    assert (found.parameters, found.macs) == (11_689_512, 1_814_073_344)
    assert graph.module.training
    torch.testing.assert_close(graph.module.state_dict(), before, rtol=0, atol=0)


def test_cost_counts_attention():
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert cost(graph_of(Attention(), 2, 4, 10, 8)).macs == 2 * 4 * 10 * 10 * 8


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2, batch_first=True),
        nn.GRU(3, 4, 2, batch_first=True),
        nn.RNN(3, 4, bias=False, bidirectional=True, batch_first=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_cost_of_recurrent_layers_is_what_torch_counts(layer):
    network = nn.Sequential(nn.Linear(3, 3), layer)
    graph = gs.trace(network, torch.zeros(2, 5, 3))
    with FlopCounterMode(display=False) as counter:
        network.to("meta")(torch.empty(1, 5, 3, device="meta"))
    assert cost(graph).macs == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose1d(6, 4, 3, stride=2), (6, 5)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), (6, 5, 4)),
        (nn.ConvTranspose2d(6, 9, 2, groups=3, dilation=2), (6, 5, 4)),
        (nn.ConvTranspose3d(2, 4, 2), (2, 3, 4, 5)),
        (nn.Conv2d(6, 9, 3, groups=3, dilation=2), (6, 5, 6)),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, nn.Module) else "",
)
def test_cost_of_convolutions_is_what_torch_counts(layer, shape):
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, *shape))
    assert cost(graph_of(nn.Sequential(layer), 2, *shape)).macs == counter.get_total_flops() // 2 > 0


class Calls(nn.Module):
    """A function of an input and of parameters."""

    def __init__(self, function, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("network", "macs"),
    [
        (Calls(lambda m, x: x @ m.v, v=(6,)), 5 * 6),
        (Calls(lambda m, x: m.v @ x.mT, v=(6,)), 5 * 6),
        (Calls(lambda m, x: torch.addmv(m.b, x[0], m.v), v=(6,), b=(5,)), 5 * 6),
        (Calls(lambda m, x: torch.addbmm(m.b, x.mT, x), b=(6, 6)), 5 * 6 * 6),
        (Calls(lambda m, x: x * torch.dot(m.v, m.w), v=(4,), w=(4,)), 4),
        (Calls(lambda m, x: F.conv_transpose1d(input=x, weight=m.w, stride=2), w=(5, 3, 2)), 5 * 6 * 3 * 2),
        (Calls(lambda m, x: F.linear(input=x, weight=m.w), w=(3, 6)), 5 * 6 * 3),
    ],
)
def test_cost_of_functions_by_hand(network, macs):
    assert cost(gs.trace(network, torch.zeros(2, 5, 6), check=False)).macs == macs


def test_every_operator_that_multiplies_has_a_count_where_its_shape_is_known():
    multiplying = set(spellings(Trait.MULTIPLIES)) & {*MODULES, *FUNCTIONS, *METHODS}
    counted = {nn.Linear, *(getattr(nn, f"Conv{way}{rank}d") for way in ("", "Transpose") for rank in (1, 2, 3))}
    assert counted < multiplying
    for operator in multiplying - {F.scaled_dot_product_attention}:  # which has a formula of its own
        assert operator in _READS or operator in _WRITES


def test_cost_of_a_network_that_makes_tensors():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            table = torch.zeros(x.shape[1], 3)
            table[0] = torch.ones(3)
            return self.layer(x * table.to(x.device))

    assert cost(gs.trace(Table(), torch.zeros(2, 5, 3))).macs == 5 * 3 * 4


def test_cost_of_a_layer_that_reads_a_parameter():
    class Query(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent = nn.Parameter(torch.zeros(1, 3))
            self.layer = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layer(self.latent.expand(x.shape[0], -1))

    assert cost(gs.trace(Query(), torch.zeros(2, 4))).macs == 3 * 4


class Experts(nn.Module):
    """Two of three experts for each token; how many tokens each gets depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares, chosen = torch.softmax(self.gate(x), 1).topk(2, 1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            out.index_add_(0, token, expert(x[token]) * shares[token, place, None])
        return out


def test_cost_of_a_part_that_needs_values():
    graph = gs.trace(nn.Sequential(nn.Linear(5, 4), Experts()), torch.randn(2, 5))
    assert "what it gives has a size that depends on the values of a tensor" in graph.frozen[0].reason
    assert cost(graph).macs == 5 * 4 + 4 * 3 + 2 * 4 * 4


def test_cost_names_the_shape_that_does_not_run():
    with pytest.raises(SurgeryError, match=r"cost: the network does not run on inputs of shape \[\(1, 4\)\]"):
        cost(graph_of(nn.Sequential(nn.Linear(3, 2)), 2, 4))


def test_deviation_is_relative_to_the_largest_output():
    expected = {"a": torch.tensor([1.0, -4.0]), "b": (torch.zeros(2), torch.tensor([]))}
    found = {"a": torch.tensor([1.5, -4.0]), "b": (torch.tensor([0.0, 0.25]), torch.tensor([]))}
    assert deviation(found, expected) == 0.125
    assert deviation(expected, expected) == 0
    assert deviation(torch.ones(1), torch.zeros(1)) == math.inf
    assert deviation(torch.tensor([math.nan]), torch.ones(1)) == math.inf
    with pytest.raises(SurgeryError, match=r"outputs have shapes \[\[2\]\] and \[\[1\]\]"):
        deviation(torch.ones(2), torch.ones(1))
