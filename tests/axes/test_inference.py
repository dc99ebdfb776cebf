"""Inference: spaces and their names, and what is frozen and why."""

import operator

import pytest
import torch
from contracts import Network
from torch import nn
from zoo import traced

import graphsurgery as gs
from graphsurgery.axes.inference import RULES, rule


def graph_of(forward, *shape, **layers):
    return gs.trace(Network(forward, **layers), torch.zeros(2, *shape))


def test_the_spaces_of_a_residual_network():
    graph, _ = traced("whole resnet18")
    assert len(graph.spaces) == 12
    assert not graph.frozen
    stream = graph.space("conv1")
    assert (stream.size, stream.outer, stream.scalable, stream.mixed) == (64, True, True, ())
    assert stream.writers == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    assert stream.readers == (
        "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0",
    )  # fmt: skip
    assert [s.size for s in graph.spaces] == [64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512]


def test_a_node_that_writes_several_spaces_numbers_them():
    graph = graph_of(
        lambda net, x: net.p(net.a(x)[:, :3]) + net.q(net.a(x)[:, 3:]),
        4,
        a=nn.Linear(4, 8),
        p=nn.Linear(3, 2),
        q=nn.Linear(5, 2),
    )
    assert [(s.name, s.size) for s in graph.spaces] == [("a", 3), ("a:2", 5)]


def test_heads_are_outer_and_head_sizes_inner():
    graph, _ = traced("vit")
    by_name = {s.name: s for s in graph.spaces}
    heads = next(s for s in graph.spaces if s.outer and s.size == 4)
    inner = [s for s in by_name.values() if not s.outer]
    assert heads.scalable
    assert len(inner) == 4
    assert not inner[0].scalable


def test_the_name_of_a_space_that_is_not_there():
    graph, _ = traced("whole resnet18")
    with pytest.raises(gs.SurgeryError, match=r"layer1\.0\.conv9 is not a space .* did you mean .*layer1\.0\.conv1"):
        graph.space("layer1.0.conv9")
    with pytest.raises(gs.SurgeryError, match="zzz is not a space of this model; it has 12 spaces; see inspect"):
        graph.space("zzz")


@pytest.mark.parametrize(
    ("forward", "node", "reason"),
    [
        (lambda net, x: net.b(torch.linalg.pinv(net.a(x)).T), "linalg_pinv", "with rows of zeros there is none"),
        (lambda net, x: net.b(net.a(x).put(torch.tensor([0]), x[0, :1])), "put", "in which they lie in memory"),
        (lambda net, x: net.b(net.a(x)) + net.a(x)[:, 3][:, None], "getitem", "an axis that is indexed by a constant"),
        (lambda net, x: net.b(torch.roll(net.a(x), 1)), "roll", "an axis that is rolled"),
        (lambda net, x: net.b(torch.stack(net.a(x).unbind(1), 1)), "unbind", "an axis that is unbound"),
        (lambda net, x: net.b(torch.swapaxes(net.a(x)[None], axis0=0, axis1=1)[:, 0]), "swapaxes", "a form that its"),
    ],
)  # fmt: skip
def test_what_cannot_be_typed_freezes_and_says_why(forward, node, reason):
    graph = graph_of(forward, 4, a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    assert [s.name for s in graph.spaces] == []
    assert graph.frozen[0].node == node
    assert reason in graph.frozen[0].reason


def test_a_clash_freezes_both_sides_and_says_why():
    graph = graph_of(
        lambda net, x: net.head(net.a(x).view(-1, 2, 3).flatten(1) + torch.cat([net.b(x), net.c(x)], 1)),
        4,
        a=nn.Linear(4, 6),
        b=nn.Linear(4, 2),
        c=nn.Linear(4, 4),
        head=nn.Linear(6, 2),
    )
    assert not graph.spaces
    (frozen,) = graph.frozen
    assert frozen.node == "add"
    assert frozen.reason == "add cannot give both sides one type: a border at 2 falls inside a block of 3"


def test_writing_where_a_tensor_says_freezes_what_is_written_to():
    def forward(net, x):
        h = net.a(x)
        h[:, torch.tensor([0, 3])] = 0
        return net.b(h)

    graph = graph_of(forward, 4, a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    assert not graph.spaces
    assert graph.frozen == (("setitem", "is written to by index"),)


def test_a_weight_that_is_tied_elsewhere_takes_no_factor():
    graph = graph_of(lambda net, x: torch.matmul(torch.relu(net.a(x)), net.a.weight), 4, a=nn.Linear(4, 8))
    (space,) = graph.spaces
    assert not space.scalable
    shared = graph_of(
        lambda net, x: net.b(net.s(net.s(net.a(x)))), 4, a=nn.Linear(4, 8), s=nn.Linear(8, 8), b=nn.Linear(8, 2)
    )
    assert [s.scalable for s in shared.spaces] == [True]


def test_mixing_operators_are_named():
    graph = graph_of(
        lambda net, x: net.c(torch.softmax(net.b(net.norm(net.a(x))), 1)),
        4,
        a=nn.Linear(4, 8),
        norm=nn.LayerNorm(8),
        b=nn.Linear(8, 6),
        c=nn.Linear(6, 2),
    )
    assert [s.mixed for s in graph.spaces] == [("layer_norm at norm",), ("softmax at softmax",)]


def test_what_is_fixed_late_is_no_space():
    """`2·3` meets `2 + 4` on one side: 3 becomes `1 + 2`, which fixes the 2 of a product that was typed before."""
    graph = graph_of(
        lambda net, x: net.c(
            torch.cat([net.a(x), net.b(x)], 1)
            * net.s(x).expand(-1, 6, -1, -1).unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)
        ),
        *(3, 4, 4),
        a=nn.Conv2d(3, 2, 1),
        b=nn.Conv2d(3, 4, 1),
        s=nn.Conv2d(3, 1, 1),
        c=nn.Conv2d(6, 2, 1),
    )
    assert [(s.name, s.dim.fixed) for s in graph.spaces] == [("b", False)]


def test_inputs_and_outputs_are_fixed_without_saying():
    graph = graph_of(lambda net, x: net.a(x), 4, a=nn.Linear(4, 8))
    assert not graph.spaces
    assert not graph.frozen


def test_a_second_rule_for_an_operator_is_an_error():
    with pytest.raises(ValueError, match=r"has a rule already: .*pointwise"):
        rule(operator.add)(lambda _, x: x)
    assert RULES[operator.add].__name__ == "pointwise"
