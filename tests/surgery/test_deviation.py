"""Float64 twins: a whole copy, and one layer at a time."""

import pytest
import torch
from contracts import Network, typed
from torch import nn
from zoo import NAMES, traced

from graphsurgery.surgery.deviation import InDouble, beginning_of_nan, double


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


def test_nan_that_no_weight_holds_begins_where_it_is_computed():
    network = Network(lambda net, x: net.b(torch.log(net.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    graph, x, _ = typed(network, (3,))
    assert beginning_of_nan(graph, x) == "NaN from log on"
    graph.module.get_submodule("b").weight.data[0, 0] = torch.nan
    with torch.no_grad():
        graph.module.get_submodule("a").weight.zero_()
        graph.module.get_submodule("a").bias.fill_(1.0)
    assert beginning_of_nan(graph, x) == "NaN from b on, whose b.weight holds NaN"
