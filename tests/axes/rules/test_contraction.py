"""Contractions: linear layers, convolutions, matrix products, embeddings."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts, assert_direct_sum, assert_gates, typed
from torch import nn

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.gate import gate
from graphsurgery.surgery.deviation import deviation

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def assert_mean(network, *shapes):
    """The direct sum of two networks of this form is their mean."""
    graphs = [typed(network, *shapes, seed=seed)[0] for seed in range(2)]
    x = [torch.randn(3, *shape, dtype=torch.float64) for shape in shapes]
    with torch.no_grad():
        assert deviation(concatenate(graphs)(*x), (graphs[0](*x) + graphs[1](*x)) / 2) < 1e-12


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_with_groups(rank, groups, multiplier):
    kind = CONVOLUTIONS[rank]
    network = nn.Sequential(
        kind(3, 8, 1), kind(8, 8 * multiplier, 3, padding=1, groups=groups), nn.Tanh(), kind(8 * multiplier, 2, 1)
    )
    graph = assert_contracts(network, (3, *[4] * rank))
    assert not graph.frozen
    assert_mean(network, (3, *[4] * rank))


def test_channels_within_a_group_are_cut_alike_in_all():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1, groups=2), nn.Conv2d(12, 2, 1))
    graph, x, network = typed(network, (3, 4, 4))
    assert [(s.size, s.outer) for s in graph.spaces] == [(2, True), (4, False), (6, False)]
    small = compress(graph, {graph.spaces[1].name: [1, 2], graph.spaces[2].name: [0, 5]})
    layer = small.module.get_submodule("1")
    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, 4, 2)
    with torch.no_grad():
        network[1].weight[:, [0, 3]] = 0
        network[2].weight.unflatten(1, (2, 6))[:, :, 1:5] = 0
        assert deviation(small(*x), network(*x)) < 1e-12


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_as_functions(rank):
    shape = [1] * rank

    def forward(net, x):
        h = FUNCTIONS[rank](FUNCTIONS[rank](x, net.a, net.c), net.d, None, groups=8)
        return FUNCTIONS[rank](torch.tanh(h), net.b, padding=1)

    parameters = {"a": (8, 3, *shape), "b": (2, 8, *shape), "c": (8,), "d": (8, 1, *shape)}
    network = Network(forward, {name: torch.zeros(size) for name, size in parameters.items()})
    graph = assert_contracts(network, (3, *[4] * rank))
    assert [s.size for s in graph.spaces] == [8]
    assert_mean(network, (3, *[4] * rank))


def test_kernels_of_each_example():
    def forward(net, x):
        batch, width, height, _ = net.a(x).shape
        routes = torch.sigmoid(net.r(x.mean((2, 3))))
        weight = (routes @ net.w).view(batch * 6, width, 3, 3)
        h = F.conv2d(torch.tanh(net.a(x)).reshape(1, batch * width, height, -1), weight, padding=1, groups=batch)
        h = torch.tanh(h).view(batch, 6, height, -1)
        weight = (routes @ net.d).view(batch * 6, 1, 3, 3)
        h = F.conv2d(h.reshape(1, batch * 6, height, -1), weight, padding=1, groups=batch * 6)
        return net.b(h.permute(1, 0, 2, 3).view(batch, 6, height, -1))

    network = Network(
        forward,
        {"w": torch.zeros(3, 6 * 8 * 9), "d": torch.zeros(3, 6 * 9)},
        a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(6, 2, 1), r=nn.Linear(3, 3),
    )  # fmt: skip
    graph = assert_contracts(network, (3, 4, 4))
    assert [s.size for s in graph.spaces] == [8, 3, 6]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions(rank):
    kind = TRANSPOSED[rank]
    network = nn.Sequential(kind(3, 8, 2, stride=2), nn.Tanh(), kind(8, 6, 3), nn.Tanh(), CONVOLUTIONS[rank](6, 2, 1))
    graph = assert_contracts(network, (3, *[3] * rank))
    assert [s.size for s in graph.spaces] == [8, 6]
    assert_mean(network, (3, *[3] * rank))


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_grouped_transposed_convolutions(groups):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Tanh(), nn.ConvTranspose2d(8, 16, 2, groups=groups), nn.Tanh(), nn.Conv2d(16, 2, 1)
    )
    graph = assert_contracts(network, (3, 4, 4))
    assert not graph.frozen
    assert graph.space("0").size == groups
    assert_mean(network, (3, 4, 4))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_as_functions(rank, groups):
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    network = Network(
        lambda n, x: n.b(function(torch.tanh(n.a(x)), n.w, n.v, 2, groups=groups)),
        {"w": torch.zeros(8, 6 // groups, *[2] * rank), "v": torch.zeros(6)},
        a=CONVOLUTIONS[rank](3, 8, 1),
        b=CONVOLUTIONS[rank](6, 2, 1),
    )
    graph = assert_contracts(network, (3, *[3] * rank))
    assert not graph.frozen
    assert len(graph.spaces) == 2 if groups == 1 else 3


def test_channels_that_a_convolution_slides_over_are_frozen():
    network = Network(
        lambda n, x: n.b(torch.tanh(n.c(n.a(x)[:, None])).mean(-1)),
        a=nn.Linear(3, 8), c=nn.Conv1d(1, 5, 3, padding=1), b=nn.Linear(5, 2),
    )  # fmt: skip
    graph = assert_contracts(network, (3,))
    assert [s.name for s in graph.spaces] == ["c"]
    assert graph.frozen[0] == ("c", "an axis that a convolution slides over")


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 5, 1), nn.Conv1d(4, 5, 1, padding="same")])
def test_a_kernel_of_one_leaves_what_it_slides_over(layer):
    network = Network(
        lambda n, x: n.b(torch.tanh(n.c(torch.tanh(n.a(x)))).mean(1)), a=nn.Linear(3, 8), c=layer, b=nn.Linear(8, 2)
    )
    graph = assert_contracts(network, (4, 3))
    assert [(s.size, bool(s.mixed)) for s in graph.spaces] == [(8, False), (5, True)]


def test_heads_beside_the_batch_pass_a_convolution():
    def forward(net, x):
        heads = torch.tanh(net.a(x)).unflatten(1, (4, 2)).flatten(0, 1)
        pooled = torch.tanh(net.c(heads))
        return net.b(pooled.unflatten(0, (-1, 4)).flatten(1, 2))

    network = Network(forward, a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(2, 2, 3, padding=1, groups=2), b=nn.Conv2d(8, 2, 1))
    graph = assert_contracts(network, (3, 4, 4))
    assert sorted((s.size, s.outer) for s in graph.spaces) == [(2, False), (4, True)]


def test_a_computed_weight_is_no_place_for_factors():
    def forward(net, x):
        weight = net.a / net.a.flatten(1).norm(dim=1)[:, None, None, None]
        return net.b(F.conv2d(net.c(x), net.d * 2) + F.conv2d(x, weight))

    parameters = {"a": torch.ones(8, 3, 1, 1), "d": torch.ones(8, 5, 1, 1)}
    network = Network(forward, parameters, b=nn.Conv2d(8, 2, 1), c=nn.Conv2d(3, 5, 1))
    graph = assert_contracts(network, (3, 4, 4))
    assert {s.name: s.scalable for s in graph.spaces}["c"] is False


PRODUCTS = {
    "x @ w": (lambda n, h: h @ n.w, {"w": (8, 5)}),
    "matmul(x, w)": (lambda n, h: torch.matmul(h, n.w), {"w": (8, 5)}),
    "w @ x": (lambda n, h: (n.w @ h.transpose(1, 2)).transpose(1, 2), {"w": (5, 8)}),
    "x @ a batch of w": (lambda n, h: torch.matmul(h, n.w), {"w": (1, 8, 5)}),
    "F.linear": (lambda n, h: F.linear(h, n.w, n.v), {"w": (5, 8), "v": (5,)}),
    "F.linear by name": (lambda n, h: F.linear(input=h, weight=n.w, bias=n.v), {"w": (5, 8), "v": (5,)}),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_parameters(name):
    product, parameters = PRODUCTS[name]
    network = Network(
        lambda n, x: n.b(torch.tanh(product(n, torch.tanh(n.a(x))))),
        {key: torch.zeros(size) for key, size in parameters.items()},
        a=nn.Linear(3, 8),
        b=nn.Linear(5, 2),
    )
    graph = assert_contracts(network, (4, 3))
    assert [s.size for s in graph.spaces] == [8, 5]
    assert all(s.scalable for s in graph.spaces)
    assert_mean(network, (4, 3))


def test_products_with_a_vector():
    network = Network(lambda n, x: n.a(x) @ n.w, {"w": torch.zeros(8)}, a=nn.Linear(3, 8))
    graph = assert_contracts(network, (3,))
    assert [s.size for s in graph.spaces] == [8]
    assert_mean(network, (3,))


ADDED = {
    "addmm": (lambda n, h: torch.addmm(n.v, h, n.w), (3,)),
    "addmm with factors": (lambda n, h: n.v.addmm(h, n.w, beta=0.5, alpha=2), (3,)),
    "baddbmm": (lambda n, h: torch.baddbmm(n.v[None, None], h, n.w[None].expand(h.shape[0], 8, 5)), (4, 3)),
    "mm": (lambda n, h: torch.mm(h, n.w) + h.mm(n.w) * n.v, (3,)),
}


@pytest.mark.parametrize("name", ADDED)
def test_added_products(name):
    product, shape = ADDED[name]
    network = Network(
        lambda n, x: n.b(torch.tanh(product(n, torch.tanh(n.a(x))))),
        {"w": torch.zeros(8, 5), "v": torch.zeros(5)},
        a=nn.Linear(3, 8),
        b=nn.Linear(5, 2),
    )
    graph = assert_contracts(network, shape)
    assert [s.size for s in graph.spaces] == [8, 5]


def test_a_value_that_is_read_and_added_takes_no_factor():
    def forward(net, x):
        h = torch.tanh(net.a(x))
        return net.b(torch.addmm(h, h, net.w))

    network = Network(forward, {"w": torch.zeros(8, 8)}, a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    graph = assert_contracts(network, (3,))
    assert [(s.size, s.scalable) for s in graph.spaces] == [(8, False)]


def test_outer_products_and_vectors():
    network = Network(
        lambda n, x: n.b(torch.tanh(n.a(x)) @ torch.outer(n.v, n.w) + torch.tanh(n.a(x)).mv(n.v)[:, None]),
        {"v": torch.zeros(8), "w": torch.zeros(5)},
        a=nn.Linear(3, 8),
        b=nn.Linear(5, 2),
    )
    graph = assert_contracts(network, (3,))
    assert [s.size for s in graph.spaces] == [8, 5]
    assert not graph.frozen


@pytest.mark.parametrize("function", [torch.bmm, lambda a, b: a.bmm(b), lambda a, b: a.matmul(b), lambda a, b: a @ b])
def test_products_of_two_values(function):
    network = Network(
        lambda n, x: n.b(function(function(n.q(x), n.k(x).transpose(1, 2)), n.v(x))),
        q=nn.Linear(3, 8), k=nn.Linear(3, 8), v=nn.Linear(3, 6), b=nn.Linear(6, 2),
    )  # fmt: skip
    graph = assert_contracts(network, (5, 3))
    assert [(s.size, s.scalable) for s in graph.spaces] == [(8, False), (6, True)]


def test_a_tied_weight_that_is_read_and_written_is_gated_by_a_factor_in_front():
    network = Network(lambda n, x: torch.matmul(torch.relu(n.a(x)), n.a.weight), a=nn.Linear(4, 8))
    graph = assert_contracts(network, (4,))
    graphs = [typed(network, (4,), seed=seed)[0] for seed in range(2)]
    x = [torch.randn(3, 4, dtype=torch.float64)]
    assert_direct_sum(graphs, x, apart="a")
    with torch.no_grad():
        assert_gates(graph, x, ["a"])


def test_streams_on_two_axes_are_kept_apart():
    network = Network(
        lambda n, x: n.h(torch.relu(n.b(torch.relu(n.a(n.c(x).flatten(2))))).flatten(1)),
        c=nn.Conv2d(3, 8, 1),
        a=nn.Linear(16, 6),
        b=nn.Linear(6, 5),
        h=nn.Linear(40, 2),
    )
    assert_contracts(network, (3, 4, 4))
    graphs = [typed(network, (3, 4, 4), seed=seed)[0] for seed in range(2)]
    assert_direct_sum(graphs, [torch.randn(3, 3, 4, 4, dtype=torch.float64)], apart="a")


def test_embeddings():
    network = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 2)).double()
    x = torch.tensor([[0, 3, 6], [1, 1, 2]])
    graph = gs.trace(network, x)
    assert [s.size for s in graph.spaces] == [8]
    with torch.no_grad():
        expected = F.linear(network[0](x)[..., [1, 5]], network[1].weight[:, [1, 5]], network[1].bias)
        small = compress(graph, {"0": [1, 5]})
        assert deviation(small(x), expected) < 1e-12
    assert small.module.get_submodule("0").embedding_dim == 2


def test_a_read_where_each_example_has_several_rows_is_gated_by_example():
    network = Network(
        lambda n, x: n.b(torch.tanh(n.a(x.flatten(0, 1)))).unflatten(0, (-1, 5)), a=nn.Linear(3, 8), b=nn.Linear(8, 2)
    )
    assert_contracts(network, (5, 3))
    apart = Network(lambda n, x: n.b(torch.tanh(n.a(x))), a=network.a, b=network.b)
    outputs = []
    for each in (network, apart):
        gated = gate(gs.trace(each.double(), torch.zeros(4, 5, 3)), loc=0.0)
        gated.module.train()
        torch.manual_seed(0)
        outputs.append(gated(torch.ones(4, 5, 3, dtype=torch.float64)))
    assert deviation(*outputs) < 1e-12
    assert not torch.equal(outputs[0][0], outputs[0][1])


def test_a_read_where_the_rows_of_the_examples_alternate_is_not_gated():
    network = Network(
        lambda n, x: n.b(torch.tanh(n.a(x.transpose(0, 1).flatten(0, 1)))).unflatten(0, (5, -1)),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 2),
    )
    graph, x, _ = typed(network, (5, 3))
    with pytest.raises(gs.SurgeryError, match="b reads space a where the batch is no axis of its own"):
        gate(graph, ["a"])
    with pytest.raises(gs.SurgeryError, match="every read merges the batch with other axes"):
        gate(graph)
    assert compress(graph, 0.5)(*x).shape == (5, 3, 2)


def test_a_read_of_constants_is_gated_once_for_the_batch():
    def forward(net, x):
        bias = net.c(torch.tanh(net.d(net.table)))
        return net.b(torch.tanh(net.a(x))) + bias

    table = {"table": torch.rand(5, 3)}
    layers = {"a": nn.Linear(3, 8), "b": nn.Linear(8, 2), "c": nn.Linear(6, 2), "d": nn.Linear(3, 6)}
    network = Network(forward, table, **layers)
    assert_contracts(network, (5, 3))
    gated = gate(gs.trace(network, torch.zeros(4, 5, 3, dtype=torch.float64)), ["d"], loc=0.0)
    gated.module.train()
    rows = gated(torch.zeros(4, 5, 3, dtype=torch.float64))
    assert torch.equal(rows[0], rows[3])

    def both(net, x):
        return net.b(torch.tanh(net.a(x))) + net.b(torch.tanh(net.a(net.table)))

    graph, *_ = typed(Network(both, {"table": torch.rand(5, 3)}, a=nn.Linear(3, 8), b=nn.Linear(8, 2)), (5, 3))
    with pytest.raises(gs.SurgeryError, match="reads space a where the batch is no axis of its own"):
        gate(graph, ["a"])


def test_tokens_before_the_batch_are_gated():
    network = Network(
        lambda n, x: n.b(torch.tanh(n.a(x.transpose(0, 1)))).transpose(0, 1), a=nn.Linear(3, 8), b=nn.Linear(8, 2)
    )
    assert_contracts(network, (5, 3))


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 6, 3, padding=1), nn.ConvTranspose2d(4, 6, 1)], ids=lambda layer: type(layer).__name__
)
def test_a_convolution_of_heads_merged_with_the_batch_keeps_the_heads(layer):
    def forward(net, x):
        y = net.a(x).reshape(x.shape[0] * 2, 4, 4, 4)
        return net.out(net.c(y).reshape(x.shape[0], 12, 4, 4))

    network = Network(forward, a=nn.Conv2d(3, 8, 1), c=layer, out=nn.Conv2d(12, 2, 1))
    graph = assert_contracts(network, (3, 4, 4))
    assert {s.name: (s.size, s.outer) for s in graph.spaces} == {"a": (2, True), "a:2": (4, False), "c": (6, False)}
    graph, x, _ = typed(network, (3, 4, 4))
    with torch.no_grad():
        assert compress(graph, {"a": 1, "a:2": 3, "c": 5})(*x).shape == (3, 2, 4, 4)
