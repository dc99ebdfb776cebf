"""Mixtures of experts whose weights are one tensor `[experts, in, out]`, in the spellings that a graph can follow."""

import pytest
import torch
import torch.nn.functional as F
from contracts import assert_permutes, typed
from torch import nn

import graphsurgery as gs
from graphsurgery.errors import SurgeryError
from graphsurgery.network.layers import grouped_product
from graphsurgery.passes.gate import gate
from graphsurgery.recipes.contracts.edit_checks import check_cut
from graphsurgery.surgery.gates import gates

EXPERTS, WIDE, INNER, CHOSEN = 4, 8, 16, 2
"""torch multiplies groups whose rows are multiples of 16 bytes, halved ones too."""


class Experts(nn.Module):
    """A router and gated experts over tokens `[batch, tokens, 8]`; how tokens meet experts is in the subclasses."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, WIDE)
        self.router = nn.Linear(WIDE, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDE, 2 * INNER) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, WIDE) / 3)
        self.head = nn.Linear(WIDE, 3)

    def forward(self, x):
        hidden = self.embed(x)
        tokens = hidden.reshape(-1, WIDE)
        shares, chosen = torch.topk(torch.softmax(self.router(tokens), -1), CHOSEN, -1)
        shares = shares / shares.sum(-1, keepdim=True)
        return self.head(hidden + self.mixed(tokens, shares, chosen).view(hidden.shape))

    def gated(self, both):
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up

    def offsets(self, chosen):
        """Where each expert's tokens end, when they are sorted."""
        counts = torch.bincount(chosen.reshape(-1), minlength=EXPERTS)
        return counts.cumsum(0).to(torch.int32)

    def product(self, x, weight, offsets):
        return F.grouped_mm(x, weight, offs=offsets)

    def mixed(self, tokens, shares, chosen):
        order = torch.argsort(chosen.reshape(-1), stable=True)
        offsets = self.offsets(chosen)
        inner = self.gated(self.product(tokens[order // CHOSEN], self.up, offsets))
        outer = self.product(inner, self.down, offsets) * shares.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0])
        return outer[back].view(-1, CHOSEN, WIDE).sum(1)


class ByHistogram(Experts):
    def offsets(self, chosen):
        counts = torch.histc(chosen.reshape(-1).float(), EXPERTS, 0, EXPERTS - 1)
        return counts.cumsum(0, dtype=torch.int32)


class Transposed(Experts):
    """Weights as those of linear layers, `[experts, out, in]`."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, WIDE) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDE, INNER) / 3)

    def product(self, x, weight, offsets):
        return torch._grouped_mm(x, weight.transpose(-2, -1), offs=offsets)


class Added(Experts):
    """Tokens are added where they belong, in place."""

    def mixed(self, tokens, shares, chosen):
        order = torch.argsort(chosen.reshape(-1), stable=True)
        offsets, places = self.offsets(chosen), order // CHOSEN
        inner = self.gated(self.product(tokens[places], self.up, offsets))
        outer = self.product(inner, self.down, offsets) * shares.reshape(-1)[order].unsqueeze(-1)
        return torch.zeros_like(tokens).index_add_(0, places, outer)


class Each(Experts):
    """A loop over all experts, of which each sees all tokens."""

    def mixed(self, tokens, shares, chosen):
        found = torch.zeros_like(tokens)
        for expert in range(EXPERTS):
            share = (shares * (chosen == expert)).sum(-1, keepdim=True)
            found = found + share * (self.gated(tokens @ self.up[expert]) @ self.down[expert])
        return found


class AllAtOnce(Experts):
    """A batch of products over all experts."""

    def mixed(self, tokens, shares, chosen):
        weights = torch.zeros(tokens.shape[0], EXPERTS, dtype=tokens.dtype).scatter(1, chosen, shares)
        inner = self.gated(torch.bmm(tokens.unsqueeze(0).expand(EXPERTS, -1, -1), self.up))
        return (torch.bmm(inner, self.down) * weights.t().unsqueeze(-1)).sum(0)


class LookedUp(Experts):
    """Each token gets the matrices of its experts."""

    def mixed(self, tokens, shares, chosen):
        experts, repeated = chosen.reshape(-1), tokens.repeat_interleave(CHOSEN, 0)
        inner = self.gated(torch.bmm(repeated.unsqueeze(1), self.up[experts]))
        outer = torch.bmm(inner, self.down[experts]).squeeze(1) * shares.reshape(-1, 1)
        return outer.view(-1, CHOSEN, WIDE).sum(1)


GROUPED = [Experts, ByHistogram, Transposed, Added]
SPELLINGS = [*GROUPED, Each, AllAtOnce, LookedUp]


def network(kind):
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize("kind", SPELLINGS)
def test_the_hidden_width_and_the_inner_one_are_spaces(kind):
    graph = gs.trace(network(kind), torch.randn(2, 7, 5))
    assert not any("unfollowed" in node.meta for node in graph.module.graph.nodes)
    sizes = {name: tuple(axis for axis in graph.tensors()[name].shape) for name in ("up", "down")}
    assert {space.size for space in graph.spaces if space.outer} == {WIDE, INNER}
    small = gs.compress(graph, 0.5)
    halved = {
        name: tuple(n if n == EXPERTS and i == 0 else n // 2 for i, n in enumerate(s)) for name, s in sizes.items()
    }
    assert {name: tuple(small.tensors()[name].shape) for name in sizes} == halved


@pytest.mark.parametrize("kind", SPELLINGS)
def test_a_cut_is_the_network_with_masked_reads(kind):
    graph = gs.trace(network(kind), torch.randn(2, 7, 5), check=False)
    inner = next(space for space in graph.spaces if space.size == INNER)
    checked = check_cut(graph, gs.compress(graph, {inner.name: 0.5}))
    assert checked.check is not None
    assert checked.check.holds


@pytest.mark.parametrize("kind", SPELLINGS)
def test_the_order_of_channels_means_nothing(kind):
    graph, x, _ = typed(network(kind), (7, 5))
    assert_permutes(graph, x)


@pytest.mark.parametrize("kind", SPELLINGS)
def test_merges_and_grows(kind, tmp_path):
    graph, x, _ = typed(network(kind), (7, 5))
    other, _, _ = typed(network(kind), (7, 5), seed=1)
    torch.testing.assert_close(gs.widen(graph, 2)(*x), graph(*x), rtol=1e-10, atol=1e-12)
    both = gs.concatenate([graph, other])
    assert torch.allclose(both(*x), (graph(*x) + other(*x)) / 2, rtol=1e-10)
    gs.save(both, tmp_path / "both.pt")
    assert torch.equal(gs.load(tmp_path / "both.pt")(*x), both(*x))


@pytest.mark.parametrize("kind", SPELLINGS)
def test_merges_where_the_hidden_width_is_an_output(kind):
    """Only the read axis of a weight is summed then, and what reads it is kept apart: it is no mean of theirs."""
    model = network(kind)
    model.head = nn.Identity()
    graph, x, _ = typed(model, (7, 5))
    other, _, _ = typed(model, (7, 5), seed=1)
    both = gs.concatenate([graph, other])
    torch.testing.assert_close(both(*x), (graph(*x) + other(*x)) / 2, rtol=1e-10, atol=1e-12)


def test_gates_need_to_know_whose_rows_they_scale():
    """Which example a row belongs to is lost when rows are sorted by their experts."""
    graph = gs.trace(network(Each), torch.randn(2, 7, 5), check=False)
    gated = gate(graph)
    assert {space.size for space in graph.spaces if space.name in gates(gated)} == {WIDE, INNER}
    with pytest.raises(SurgeryError, match=r"every read merges the batch with other axes"):
        gate(gs.trace(network(Experts), torch.randn(2, 7, 5), check=False))


@pytest.mark.parametrize("kind", SPELLINGS)
def test_costs_what_the_types_say(kind):
    graph = gs.trace(network(kind), torch.randn(2, 7, 5), check=False)
    small = gs.compress(graph, target="macs=0.5x")
    assert gs.cost(small).macs <= gs.cost(graph).macs / 2


@pytest.mark.parametrize("kind", SPELLINGS)
def test_goes_back_into_its_class(kind):
    model = network(kind)
    graph = gs.trace(model, torch.randn(2, 7, 5), check=False)
    inner = next(space for space in graph.spaces if space.size == INNER)
    small = gs.compress(graph, {inner.name: 0.5})
    x = torch.randn(2, 7, 5)
    torch.testing.assert_close(gs.install(small, model)(x), small(x))


@pytest.mark.parametrize("kind", SPELLINGS)
def test_is_exported(kind, tmp_path):
    graph = gs.trace(network(kind), torch.randn(2, 7, 5), check=False)
    gs.export_onnx(graph, tmp_path / "experts.onnx")
    gs.check_onnx(graph, tmp_path / "experts.onnx", batches=(1, 3))


def test_trains_as_the_class_does():
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(3, 7, 5)
    graph = gs.trace(model, x)
    for net in (model, graph.module):
        net(x).square().sum().backward()
    for name, tensor in graph.tensors().items():
        torch.testing.assert_close(tensor.grad, model.get_parameter(name).grad)


def test_rows_behind_the_last_group_give_nothing():
    x, weight = torch.randn(6, 3), torch.randn(2, 3, 4)
    found = grouped_product(x, weight, torch.tensor([2, 4], dtype=torch.int32))
    expected = torch.cat([x[:2] @ weight[0], x[2:4] @ weight[1], torch.zeros(2, 4)])
    torch.testing.assert_close(found, expected)
    dense = grouped_product(x.to("meta"), weight.to("meta"), torch.empty(2, dtype=torch.int32, device="meta"))
    assert dense.shape == expected.shape


def test_indices_beyond_those_that_were_said_are_refused():
    class Count(nn.Module):
        def forward(self, x):
            return torch.bincount(x[:, 0].abs().long(), minlength=4)

    graph = gs.trace(Count(), torch.zeros(2, 1))
    assert graph(torch.tensor([[0.0], [2.0], [2.0]])).tolist() == [1, 0, 2, 0]
    with pytest.raises(RuntimeError, match=r"smaller than num_classes"):
        graph(torch.tensor([[4.0], [0.0]]))
