"""Tensors of one value."""

import pytest
import torch
from contracts import Network, assert_contracts
from torch import nn


def between(make, after=8):
    return Network(lambda n, x: n.b(make(torch.tanh(n.a(x)))), a=nn.Linear(3, 8), b=nn.Linear(after, 2))


CONSTANTS = {
    "zeros_like": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
    "ones_like": lambda h: h + torch.ones_like(h),
    "full_like": lambda h: h + torch.full_like(h, 0.5),
    "zeros": lambda h: torch.maximum(h, torch.zeros(h.shape[0], 8, dtype=h.dtype)),
    "ones": lambda h: h + torch.ones((h.shape[0], h.shape[1]), dtype=h.dtype),
    "ones of a size": lambda h: h + torch.ones(h.shape, dtype=h.dtype),
    "full": lambda h: h + torch.full((h.shape[0], 8), 0.5, dtype=h.dtype),
    "full by name": lambda h: h + torch.full(size=(h.shape[0], 8), fill_value=0.5, dtype=h.dtype),
    "new_zeros": lambda h: torch.maximum(h, h.new_zeros(h.shape[0], 8)),
    "new_ones": lambda h: h + h.new_ones((8,)),
    "new_full": lambda h: h + h.new_full((h.shape[0], 8), 0.25),
    "written over": lambda h: h.new_zeros(h.shape[0], 8).copy_(h),
    "empty_like": lambda h: torch.empty_like(h).copy_(h),
    "new_empty": lambda h: h.new_empty(h.shape).copy_(h, non_blocking=True),
    "empty": lambda h: torch.empty(h.shape[0], 8, dtype=h.dtype).copy_(h),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_fit_any_channels(name):
    graph = assert_contracts(between(CONSTANTS[name]), (3,))
    assert [(s.size, s.mixed) for s in graph.spaces] == [(8, ())]
    assert not graph.frozen


def test_constants_beside_channels_are_channels_too():
    graph = assert_contracts(between(lambda h: torch.cat([h, h.new_ones(h.shape[0], 3)], 1), 11), (3,))
    assert [s.size for s in graph.spaces] == [8, 3]


NOTHING = {
    "zeros": lambda h: torch.zeros(h.shape[0], 0, dtype=h.dtype),
    "empty, sizes in a list": lambda h: torch.empty([h.shape[0], 0], dtype=h.dtype),
    "full": lambda h: torch.full((h.shape[0], 0), 0.5, dtype=h.dtype),
    "new_zeros": lambda h: h.new_zeros(h.shape[0], 0),
    "a slice of none": lambda h: h[:, :0],
    "behind the end": lambda h: torch.zeros_like(h[:, 8:]),
    "a constant": lambda h: torch.zeros(1, 0, dtype=h.dtype).expand(h.shape[0], 0),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_tensor_of_no_channels_stays_one(name):
    graph = assert_contracts(between(lambda h: torch.cat([NOTHING[name](h), h], 1)), (3,))
    assert [s.size for s in graph.spaces] == [8]
    assert not graph.frozen
