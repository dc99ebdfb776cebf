"""Float64 twins: a whole copy, and one layer at a time."""

import pytest
import torch
from zoo import NAMES, traced

from graphsurgery.surgery.deviation import InDouble, double


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
