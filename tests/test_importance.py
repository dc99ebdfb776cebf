"""Importance: each criterion is what its formula says, also for channels inside sums and products."""

import pytest
import torch
from contracts import Network, typed
from torch import nn

import graphsurgery as gs
from graphsurgery.importance import CRITERIA, importance


def sample(seed=0):
    network = Network(
        lambda net, x: net.head(torch.cat([torch.relu(net.norm(net.a(x))), net.b(x)], 1).flatten(1)),
        a=nn.Conv2d(3, 4, 1),
        norm=nn.BatchNorm2d(4),
        b=nn.Conv2d(3, 5, 1),
        head=nn.Linear(9 * 4, 2),
    )
    return typed(network, (3, 2, 2), seed=seed)


def test_l1_and_l2_sum_over_all_weights_that_touch_a_channel():
    graph, _, net = sample()
    read = net.head.weight.reshape(2, 9, 4).permute(1, 0, 2).flatten(1)
    rows = {
        "a": torch.cat([net.a.weight.flatten(1), read[:4]], 1),
        "b": torch.cat([net.b.weight.flatten(1), read[4:]], 1),
    }
    for criterion, order in (("l1", 1), ("l2", 2)):
        scores = importance(graph, graph.spaces, criterion)
        assert set(scores) == {"a", "b"}
        for name, weights in rows.items():
            torch.testing.assert_close(scores[name], torch.linalg.vector_norm(weights.detach(), order, dim=1))


def test_bn_is_the_scale_of_the_norms_or_l2():
    graph, _, net = sample()
    scores = importance(graph, graph.spaces, "bn")
    torch.testing.assert_close(scores["a"], net.norm.weight.detach().abs())
    torch.testing.assert_close(scores["b"], importance(graph, graph.spaces, "l2")["b"])


def test_taylor_is_weight_times_gradient():
    graph, x, _ = sample()
    with pytest.raises(gs.SurgeryError, match=r"a\.weight\.grad is None; run a backward pass first"):
        importance(graph, graph.spaces, "taylor")
    graph(*x).square().sum().backward()
    module = graph.module
    conv, head = module.get_submodule("b"), module.get_submodule("head")
    change = (conv.weight * conv.weight.grad).flatten(1).sum(1) + conv.bias * conv.bias.grad
    change += (head.weight * head.weight.grad).reshape(2, 9, 4).sum((0, 2))[4:]
    torch.testing.assert_close(importance(graph, graph.spaces, "taylor")["b"], change.detach().abs())


def test_random_follows_the_seed_and_the_name_of_the_space():
    graph, *_ = sample()
    one, again, other = (importance(graph, graph.spaces, "random", seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["a"], one["b"][:4])


def test_channels_of_groups_and_heads_are_summed_over_their_inside():
    graph, _, net = typed(
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), (3, 2, 2)
    )
    groups = next(s for s in graph.spaces if s.outer)
    assert groups.size == 2
    weights = [
        net[0].weight.reshape(2, -1),
        net[1].weight.reshape(2, -1),
        net[2].weight.reshape(2, 2, 2).transpose(0, 1),
    ]
    expected = torch.cat([w.reshape(2, -1) for w in weights], 1).norm(dim=1)
    torch.testing.assert_close(importance(graph, [groups], "l2")[groups.name], expected.detach())


def test_scores_are_float64_and_of_any_dtype_the_same():
    graph, *_ = sample()
    scores = {c: importance(graph, graph.spaces, c) for c in CRITERIA if c != "taylor"}
    graph.module.float()
    for criterion, expected in scores.items():
        for name, score in importance(graph, graph.spaces, criterion).items():
            assert score.dtype == torch.float64
            torch.testing.assert_close(score, expected[name], rtol=1e-6, atol=1e-6)


def test_refuses_an_unknown_criterion():
    graph, *_ = sample()
    with pytest.raises(gs.SurgeryError, match="importance largest is unknown; choose from l2, l1, bn, taylor, gate"):
        importance(graph, graph.spaces, "largest")
