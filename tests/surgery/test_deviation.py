"""Float64 twins: a whole copy, and one layer at a time."""

import pytest
import torch
from contracts import Network, typed
from torch import nn
from zoo import NAMES, traced

import graphsurgery as gs
from graphsurgery.passes.widen import widen
from graphsurgery.surgery.deviation import InDouble, beginning_of_nan, changed_by, double


@pytest.mark.parametrize("name", NAMES)
def test_one_layer_at_a_time_gives_what_a_copy_gives(name):
    graph, x = traced(name)
    graph.module.train()
    before = [tensor.clone() for tensor in graph.tensors().values()]
    with torch.no_grad():
        assert torch.equal(InDouble(graph)(x), double(graph).module(x.double()))
    after = list(graph.tensors().values())
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(before, after, strict=True))
    assert graph.module.training


class Bytes(torch.nn.Module):
    """Takes bytes, and names the precision that it computes in."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(5, 8)
        self.second = torch.nn.Linear(8, 3)

    def forward(self, x):
        start = torch.zeros(x.shape[0], 8)
        hidden = torch.relu(self.first(x.to(torch.float32) / 255)) + start + torch.full((8,), 0.1)
        return self.second(hidden.float() * torch.linspace(0.1, 1.0, 8, dtype=torch.float32))


def test_dtypes_that_a_network_names_are_double_too():
    torch.manual_seed(0)
    module, x = Bytes(), torch.randint(0, 256, (4, 5), dtype=torch.uint8)
    graph = gs.trace(module, x)
    with torch.no_grad():
        found, copied = InDouble(graph)(x), double(graph).module(x)
        hidden = module.first.double()(x / torch.tensor(255.0, dtype=torch.float64)).relu() + 0.1
        hidden = hidden * torch.linspace(0.1, 1.0, 8, dtype=torch.float64)
        expected = module.second.double()(hidden)
    assert found.dtype == copied.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    torch.testing.assert_close(found, copied, rtol=1e-15, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert changed_by(graph, widen(graph, 2)) < 1e-6


def test_nan_that_no_weight_holds_begins_where_it_is_computed():
    network = Network(lambda net, x: net.b(torch.log(net.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    graph, x, _ = typed(network, (3,))
    assert beginning_of_nan(graph, x) == "NaN from log on"
    graph.module.get_submodule("b").weight.data[0, 0] = torch.nan
    with torch.no_grad():
        graph.module.get_submodule("a").weight.zero_()
        graph.module.get_submodule("a").bias.fill_(1.0)
    assert beginning_of_nan(graph, x) == "NaN from b on, whose b.weight holds NaN"
