"""Weights that are read, or read and written, group by group: what is read is scaled, what is handed on is not."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts, masked, random_choice, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import graphsurgery as gs
from graphsurgery.onnx.exporting import check_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.prune_dead import prune_dead
from graphsurgery.passes.slim import slim
from graphsurgery.passes.widen import EXACT, undo, widen
from graphsurgery.surgery.deviation import deviation
from graphsurgery.training.loop.optimizer_state import follow_gradient

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CALLS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED_CALLS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
FORMS = ("module", "function", "computed groups", "computed weight")
SHAPES = [(2, 4), (4, 2), (8, 1), (2, 1), (1, 8)]
"""Groups, and channels that each of them reads."""


def between(rank, groups, inner, outer, *, transposed, form="module", size=3):
    """A convolution, one with groups, and one that reads it; a weight may be computed, and so may the groups."""
    read, written = groups * inner, groups * outer
    layers = {"a": CONVOLUTIONS[rank](3, read, 1), "b": CONVOLUTIONS[rank](written, 2, 1)}
    if form == "module":
        kind = (TRANSPOSED if transposed else CONVOLUTIONS)[rank]
        return Network(
            lambda n, x: n.b(torch.tanh(n.c(torch.tanh(n.a(x))))), **layers, c=kind(read, written, size, groups=groups)
        )
    call = (TRANSPOSED_CALLS if transposed else CALLS)[rank]
    shape = (read, outer) if transposed else (written, inner)

    def forward(net, x):
        h = torch.tanh(net.a(x))
        weight = net.w * 2 if form == "computed weight" else net.w
        count = h.shape[1] // inner if form == "computed groups" else groups
        return net.b(torch.tanh(call(h, weight, net.v, groups=count)))

    return Network(forward, {"w": torch.zeros(*shape, *[size] * rank), "v": torch.zeros(written)}, **layers)


def assert_grows(graph, x, seed=0):
    """Every space alone by one of the exact inits, all together by each, and back."""
    inits = itertools.islice(itertools.cycle(EXACT), seed, None)
    alone = [({space.name: space.size + 1 + seed % 3}, next(inits)) for space in graph.spaces]
    every = {space.name: 2 * space.size + seed % 3 for space in graph.spaces}
    expected = graph(*x)
    for sizes, init in (*alone, *((every, init) for init in EXACT)):
        wide = widen(graph, to=sizes, init=init, seed=seed)
        assert deviation(wide(*x), expected) < 1e-12
        assert deviation(undo(wide)(*x), expected) < 1e-12


def gradients(graph, x):
    graph.module.zero_grad()
    graph(*x).square().sum().backward()
    return {name: parameter.grad for name, parameter in graph.module.named_parameters()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_networks_with_groups_grow(rank, groups, transposed, form):
    graph, x, _ = typed(between(rank, *groups, 3, transposed=transposed, form=form), (3, *[3] * rank), seed=rank)
    assert not graph.frozen
    with torch.no_grad():
        assert_grows(graph, x, seed=rank)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", SHAPES)
def test_all_contracts_hold_of_transposed_ones(groups, form):
    graph = assert_contracts(between(2, *groups, 3, transposed=True, form=form), (3, 3, 3))
    read = {space.size for space in graph.spaces if "c" in space.readers or "conv_transpose2d" in space.readers}
    assert read == ({groups[1]} if groups[1] > 1 else set())


@pytest.mark.parametrize("groups", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_gradients_of_a_wider_network_are_the_mapped_ones(groups, transposed):
    graph, x, _ = typed(between(1, *groups, 3, transposed=transposed), (3, 3))
    wide = widen(graph, to={space.name: 2 * space.size + 1 for space in graph.spaces})
    old, new = gradients(graph, x), gradients(wide, x)
    for name, gradient in new.items():
        axes, folded = graph.types.parameters[name].axes, wide.origin.folded.get(name, {})
        assert deviation(gradient, follow_gradient(wide.origin.edit, axes, folded, old[name])) < 1e-10


@pytest.mark.parametrize("groups", SHAPES)
@pytest.mark.parametrize("form", ["module", "function"])
def test_two_of_them_become_the_mean(groups, form):
    graphs = [typed(between(2, *groups, 3, transposed=True, form=form), (3, 3, 3), seed=seed)[0] for seed in range(2)]
    x = torch.randn(3, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert deviation(concatenate(graphs)(x), (graphs[0](x) + graphs[1](x)) / 2) < 1e-12


def test_two_of_them_become_the_mean_where_their_groups_are_outputs():
    """The groups are fixed then, and what each of them reads stands side by side."""
    network = nn.Sequential(nn.Conv1d(3, 8, 1), nn.Tanh(), nn.ConvTranspose1d(8, 4, 2, groups=2))
    graphs = [typed(copy.deepcopy(network), (3, 5), seed=seed)[0] for seed in range(2)]
    assert [(space.size, space.outer) for space in graphs[0].spaces] == [(4, True)]
    x = torch.randn(3, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert deviation(concatenate(graphs)(x), (graphs[0](x) + graphs[1](x)) / 2) < 1e-12
        assert_grows(graphs[0], [x])


@pytest.mark.parametrize("groups", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_dead_channels_go(groups, transposed):
    graph, x, _ = typed(between(2, *groups, 3, transposed=transposed, size=1), (3, 3, 3))
    with torch.no_grad():
        graph.module.a.weight[: groups[1]] = 0
        graph.module.c.weight[-1] = 0
        graph.module.c.weight[:, -1] = 0
        small = prune_dead(graph)
        assert deviation(small(*x), graph(*x)) < 1e-12


@pytest.mark.parametrize("groups", SHAPES)
def test_slimming_orders_their_channels(groups):
    graph, x, _ = typed(between(1, *groups, 3, transposed=True), (3, 5))
    with torch.no_grad():
        assert deviation(slim(graph)(*x), graph(*x)) < 1e-12


@given(
    st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 3]), st.booleans(), st.sampled_from(FORMS),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_random_groups(seed, rank, groups, inner, outer, transposed, form):
    network = between(rank, groups, inner, outer, transposed=transposed, form=form, size=2 if transposed else 1)
    graph, x, _ = typed(network, (3, *[3] * rank), seed=seed)
    with torch.no_grad():
        assert_grows(graph, x, seed)
        kept = random_choice(graph, seed)
        if kept:
            assert deviation(compress(graph, kept)(*x), masked(graph, kept)(*x)) < 1e-10


def test_a_tied_weight_that_is_read_whole_and_in_groups_takes_no_factor():
    """One weight `[8, 3]` sums over its first axis as a product, and over four channels in each of two groups."""

    def forward(net, x):
        h = torch.tanh(net.a(x))
        return net.b(F.conv_transpose1d(h, net.w[:, :, None], groups=2)) + net.c(h.transpose(1, 2) @ net.w).mT

    network = Network(forward, {"w": torch.zeros(8, 3)}, a=nn.Conv1d(3, 8, 1), b=nn.Conv1d(6, 2, 1), c=nn.Linear(3, 2))
    graph, x, _ = typed(network, (3, 5))
    with torch.no_grad():
        assert_grows(graph, x)


def test_every_example_has_a_convolution_of_its_own():
    """Dynamic convolutions: the groups are the examples, so factors stand once for each of them."""

    def forward(net, x):
        h = torch.tanh(net.a(x))
        batch, channels, length = h.shape
        weight = net.d(x.mean(2)).reshape(batch * 6, channels, 1)
        y = F.conv1d(h.reshape(1, batch * channels, length), weight, groups=batch)
        return net.b(torch.tanh(y.reshape(batch, 6, length)))

    network = Network(forward, a=nn.Conv1d(3, 4, 1), b=nn.Conv1d(6, 2, 1), d=nn.Linear(3, 24))
    graph, x, _ = typed(network, (3, 5))
    with torch.no_grad():
        for space in graph.spaces:
            wide = widen(graph, to={space.name: space.size + 3})
            assert deviation(wide(*x), graph(*x)) < 1e-12


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_onnx_runtime_agrees(transposed, form, tmp_path):
    graph, _, _ = typed(between(2, 2, 4, 3, transposed=transposed, form=form), (3, 4, 4))
    wide = widen(graph, to={space.name: 2 * space.size + 1 for space in graph.spaces})
    wide.module.float()
    gs.export_onnx(wide, tmp_path / "wide.onnx", check=False)
    graph.module.float()
    assert check_onnx(graph, tmp_path / "wide.onnx", batches=(1, 3)).deviation < 1e-5
