"""Operators that reduce axes to one value."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts
from torch import nn

REDUCTIONS = {
    "mean": lambda h: h.mean((2, 3)),
    "mean in NumPy's words": lambda h: h.mean(axis=(2, 3), keepdims=True).flatten(1),
    "torch.mean": lambda h: torch.mean(h, dim=[-1, -2]),
    "sum": lambda h: torch.sum(h.sum(-1), 2),
    "amax and amin": lambda h: h.amax((2, 3)) - torch.amin(h, dim=(2, 3), keepdim=True)[:, :, 0, 0],
    "var and std": lambda h: torch.var(h, (2, 3)) + h.flatten(2).std(-1, False),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_over_positions(name):
    network = Network(lambda n, x: n.b(REDUCTIONS[name](n.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 2))
    graph = assert_contracts(network, (3, 4, 4))
    assert [(s.size, s.mixed) for s in graph.spaces] == [(8, ())]


CHANNELS = {
    "mean": lambda h: h.mean(1, keepdim=True),
    "mean over everything": lambda h: torch.mean(h, (1, 2, 3))[:, None, None, None],
    "sum": lambda h: h.sum(1)[:, None],
    "sum over everything": lambda h: h.sum(),
    "maximum": lambda h: torch.amax(h, 1, True) + h.amin(1, True) + h.max() + torch.min(h),
    "maximum, no axis named": lambda h: torch.aminmax(h)[0] + h.aminmax(dim=1, keepdim=True).max,
    "maximum along an axis": lambda h: h.max(1, True)[0] + torch.min(h, dim=1, keepdim=True).values,
    "median": lambda h: h.median() + h.mean(1, True),
    "norm": lambda h: h.norm(dim=1, keepdim=True) + torch.norm(h, 1, 1, True),
    "norm in linalg": lambda h: torch.linalg.vector_norm(h, dim=1, keepdim=True),
    "norm of everything": lambda h: torch.linalg.norm(h),
    "variance": lambda h: torch.var_mean(h, 1, unbiased=False, keepdim=True)[0] + torch.std_mean(h, 1, False, True)[1],
    "variance of everything": lambda h: h.var() + torch.std(h),
    "product": lambda h: h.prod(1, True),
    "logsumexp": lambda h: torch.logsumexp(h, 1, True),
    "any and all": lambda h: (h > 0).any(1, True) * 0.5 + (h > 0).all(dim=1)[:, None],
    "cosine_similarity": lambda h: F.cosine_similarity(h, h.flip(-1), dim=1)[:, None],
}


@pytest.mark.parametrize("name", CHANNELS)
def test_reductions_over_channels_mix(name):
    network = Network(lambda n, x: n.b(n.a(x) * CHANNELS[name](n.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1))
    graph = assert_contracts(network, (3, 4, 4))
    assert [s.size for s in graph.spaces] == [8]
    assert graph.spaces[0].mixed
    assert not graph.frozen


def test_the_larger_of_two():
    network = Network(
        lambda n, x: n.b(torch.max(n.a(x), n.c(x))), a=nn.Linear(3, 8), b=nn.Linear(8, 2), c=nn.Linear(3, 8)
    )
    graph = assert_contracts(network, (3,))
    assert [(s.size, s.mixed) for s in graph.spaces] == [(8, ())]


def test_a_standardised_weight_mixes_what_it_reads():
    def forward(net, x):
        variance, mean = torch.var_mean(net.w, dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = (net.w - mean) * torch.rsqrt(variance + 1e-6)
        return net.b(torch.relu(F.conv2d(torch.relu(net.a(x)), weight, padding=1)))

    network = Network(forward, {"w": torch.zeros(6, 8, 3, 3)}, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(6, 2, 1))
    graph = assert_contracts(network, (3, 4, 4))
    assert [(s.size, s.scalable, s.mixed) for s in graph.spaces] == [
        (8, False, ("variance at var_mean",)),
        (6, True, ()),
    ]


def test_a_weight_standardised_by_batch_norm_mixes_what_it_reads():
    def forward(net, x):
        weight = F.batch_norm(
            net.w.reshape(1, 6, -1), None, None, weight=net.g.view(-1), training=True, momentum=0.0, eps=1e-6
        ).reshape_as(net.w)
        return net.b(torch.relu(F.conv2d(torch.relu(net.a(x)), weight)))

    network = Network(
        forward,
        {"w": torch.zeros(6, 8, 3, 3), "g": torch.zeros(6, 1, 1, 1)},
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(6, 2, 1),
    )
    graph = assert_contracts(network, (3, 4, 4))
    assert [(s.size, s.mixed) for s in graph.spaces] == [(8, ("mean and variance at batch_norm",)), (6, ())]
    assert not graph.frozen
