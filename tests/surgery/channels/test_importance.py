"""Importance: each criterion is what its formula says, also for channels inside sums and products."""

import pytest
import torch
from contracts import Network, typed
from torch import nn

import graphsurgery as gs
from graphsurgery.surgery.channels.importance import CHANNEL_CRITERIA, Scores, importance
from graphsurgery.surgery.channels.nesting import Nesting


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
    scores = {c: importance(graph, graph.spaces, c) for c in CHANNEL_CRITERIA if c != "taylor"}
    graph.module.float()
    for criterion, expected in scores.items():
        for name, score in importance(graph, graph.spaces, criterion).items():
            assert score.dtype == torch.float64
            torch.testing.assert_close(score, expected[name], rtol=1e-6, atol=1e-6)


def test_refuses_an_unknown_criterion():
    graph, *_ = sample()
    with pytest.raises(gs.SurgeryError, match="importance largest is unknown; choose from l2, l1, bn, taylor, gate"):
        importance(graph, graph.spaces, "largest")


def grouped():
    """A grouped convolution between two others: groups `g`, and inside them `i` in front of it and `o` behind it."""
    layers = [nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 5, 1)]
    graph, x, net = typed(nn.Sequential(*layers), (3, 2, 2))
    inner = [s for s in graph.spaces if not s.outer]
    assert [s.size for s in inner] == [3, 2]
    return graph, x, net, inner


def test_channels_in_each_group_count_what_writes_and_reads_them_there():
    graph, _, net, (i, o) = grouped()
    outers = Nesting(graph).outers(i)
    assert [dim.size for dim in outers] == [2]
    by_group = net[2].weight.reshape(2, 2, 3).detach()
    read = net[3].weight.reshape(5, 2, 2).detach()
    for criterion, order in (("l1", 1), ("l2", 2)):
        scores = Scores(graph, criterion)
        parts = [net[0].weight.reshape(2, 3, 3).detach(), by_group.transpose(1, 2)]
        torch.testing.assert_close(scores.of(i, outers), torch.cat(parts, 2).norm(order, dim=2))
        parts = [by_group, read.permute(1, 2, 0)]
        torch.testing.assert_close(scores.of(o, outers), torch.cat(parts, 2).norm(order, dim=2))
    torch.testing.assert_close(Scores(graph, "bn").of(i, outers), net[1].weight.detach().abs().reshape(2, 3))
    torch.testing.assert_close(Scores(graph, "bn").of(o, outers), Scores(graph, "l2").of(o, outers))


def test_groups_sum_up_to_the_score_of_a_channel():
    graph, x, _, inner = grouped()
    graph(*x).square().sum().backward()
    for space in inner:
        outers = Nesting(graph).outers(space)
        for criterion, order in (("l1", 1), ("l2", 2)):
            scores = Scores(graph, criterion)
            torch.testing.assert_close(scores.of(space, outers).norm(order, dim=0), scores.of(space))
        scores = Scores(graph, "random", 3)
        assert scores.of(space, outers).shape == (2, space.size)
        assert torch.equal(scores.of(space, outers), Scores(graph, "random", 3).of(space, outers))


def test_taylor_in_each_group():
    graph, x, _, (_, o) = grouped()
    graph(*x).square().sum().backward()
    module = graph.module
    conv, reader = module.get_submodule("2"), module.get_submodule("3")
    change = (conv.weight * conv.weight.grad).reshape(2, 2, 3).sum(2) + (conv.bias * conv.bias.grad).reshape(2, 2)
    change += (reader.weight * reader.weight.grad).reshape(5, 2, 2).sum(0)
    torch.testing.assert_close(Scores(graph, "taylor").of(o, Nesting(graph).outers(o)), change.detach().abs())


def test_a_parameter_that_tells_no_group_counts_for_all_alike():
    network = Network(
        lambda n, x: n.out((n.a(x).unflatten(-1, (2, 3)) @ n.w).flatten(-2)),
        {"w": torch.zeros(3, 3)},
        a=nn.Linear(4, 6),
        out=nn.Linear(6, 2),
    )
    graph, _, net = typed(network, (5, 4))
    space = next(s for s in graph.spaces if "a" in s.writers and not s.outer)
    outers = Nesting(graph).outers(space)
    shared = net.w.detach().abs().sum(1) / 2
    expected = net.a.weight.detach().reshape(2, 3, 4).abs().sum(2) + shared
    torch.testing.assert_close(Scores(graph, "l1").of(space, outers), expected)


@pytest.mark.parametrize("shape", [(700, 500), (64, 128, 6, 7)])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_a_large_weight_is_read_once_for_both_of_its_axes(criterion, shape):
    generator = torch.Generator().manual_seed(0)
    weight, found = torch.randn(shape, generator=generator), CHANNEL_CRITERIA[criterion]
    sums = found.sums("weight", weight, (1,))
    assert list(sums) == [(0,), (1,)]
    powers = weight.double().abs() if criterion == "l1" else weight.double().square()
    for (axis,), total in sums.items():
        torch.testing.assert_close(total.double(), powers.transpose(0, axis).flatten(1).sum(1), rtol=1e-5, atol=0)
        torch.testing.assert_close(total.double(), found.sum("weight", weight, (axis,)).double(), rtol=1e-5, atol=0)
