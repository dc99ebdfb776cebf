"""Writes into a part of a tensor, diagonals, and forms of calls that were typed wrongly."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts, typed
from torch import nn

from graphsurgery.passes.widen import widen
from graphsurgery.surgery.deviation import deviation

ROWS = torch.tensor([2, 0])


def between(operator, after=8):
    return Network(lambda n, x: n.b(operator(torch.tanh(n.a(x)))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(after, 4, 1))


PIXELS = {
    "index_add": lambda h: h.index_add(2, ROWS, h[:, :, 1:3]),
    "index_copy": lambda h: torch.index_copy(h, 3, ROWS, h[..., :2]),
    "index_fill": lambda h: h.index_fill(2, ROWS, 0.5),
    "in place": lambda h: (h * 1).index_add_(2, ROWS, h[:, :, 1:3]),
    "scatter": lambda h: h.scatter(2, ROWS.view(1, 1, 2, 1).expand(h.shape[0], 8, 2, 4), h[:, :, :2]),
    "scatter a number": lambda h: h.scatter(2, ROWS.view(1, 1, 2, 1).expand(h.shape[0], 8, 2, 4), 0.5),
    "scatter_reduce": lambda h: h.scatter_reduce(3, ROWS.expand(h.shape[0], 8, 4, 2), h[..., :2], "amax"),
    "select_scatter": lambda h: torch.select_scatter(h, h[:, :, 0] * 2, 2, 1),
    "slice_scatter": lambda h: h.slice_scatter(h[:, :, 1:3], 2, 2, 4),
    "every other": lambda h: h.slice_scatter(h[:, :, 1:3], 2, 0, 4, 2),
    "diagonal": lambda h: h + h.diagonal(dim1=2, dim2=3)[..., None],
    "diagonal_scatter": lambda h: torch.diagonal_scatter(h, h[:, :, 0], dim1=2, dim2=3),
    "diag_embed": lambda h: h + torch.diag_embed(h.mean((2, 3))).sum(1)[..., None, None],
    "max_unpool2d": lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
    "hsplit": lambda h: torch.cat(torch.hsplit(h, [3])[::-1], 1),
    "searchsorted": lambda h: h + torch.searchsorted(torch.tensor([-0.5, 0.0, 0.5], dtype=h.dtype), h),
    "isin": lambda h: h * torch.isin(h.round(), torch.tensor([0.0], dtype=h.dtype)),
    "take_along_dim": lambda h: h.take_along_dim(h.argsort(-1), -1),
    "kron": lambda h: torch.kron(h, torch.ones(1, 1, 2, 2, dtype=h.dtype)),
}


@pytest.mark.parametrize("name", PIXELS)
def test_what_is_written_at_positions_leaves_channels_free(name):
    graph = assert_contracts(between(PIXELS[name]), (3, 4, 4))
    assert sum(space.size for space in graph.spaces) == 8
    assert not graph.frozen


def test_a_slice_of_channels_is_one_space_with_what_is_written_there():
    graph = assert_contracts(between(lambda h: torch.slice_scatter(h, h[:, :4] * 2, 1, 4, 8)), (3, 4, 4))
    assert [space.size for space in graph.spaces] == [4]
    assert not graph.frozen


CHANNELS = {
    "index_add": (lambda h: h.index_add(1, ROWS, h[:, 1:3]), "an axis that is written by indices"),
    "scatter": (
        lambda h: h.scatter(1, ROWS.view(1, 2, 1, 1).expand(h.shape[0], 2, 4, 4), h[:, :2]),
        "written by indices",
    ),
    "index_put": (lambda h: h.index_put((torch.tensor([0]), torch.tensor([3])), h[:1].mean(1)), "written by indices"),
    "select_scatter": (lambda h: torch.select_scatter(h, h.mean(1), 1, 3), "an axis that is indexed by a constant"),
    "diagonal": (lambda h: h[:, :, :, :1] + h.diagonal(dim1=1, dim2=2).unsqueeze(1), "an axis of a diagonal"),
    "take": (lambda h: h * h.take(ROWS).mean(), "take reads numbers in the order in which they lie in memory"),
    "strided": (lambda h: h.contiguous().as_strided(h.shape, h.contiguous().stride()), "lie in memory"),
    "inverse": (lambda h: h * torch.linalg.pinv(h[:, :, 0]).mean(), "of one with rows of zeros there is none"),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_that_are_written_or_read_by_place_are_frozen_and_say_why(name):
    operator, reason = CHANNELS[name]
    graph, x, network = typed(between(operator), (3, 4, 4))
    assert any(reason in frozen.reason for frozen in graph.frozen)
    with torch.no_grad():
        torch.testing.assert_close(graph(*x), network(*x), rtol=0, atol=0)


class Unbatched(nn.Module):
    """An instance norm of `[channels, depth, height, width]`, whose channels are the batch of what is around it."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 1), nn.InstanceNorm3d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


def test_an_instance_norm_of_one_example_mixes_what_lies_behind_its_first_axis():
    graph, _, _ = typed(Unbatched(), (3, 4, 4))
    assert [space.mixed for space in graph.spaces] == [("mean and variance at norm",)]


def test_indices_whose_rows_are_summed_up_are_as_many_as_they_were():
    network = Network(
        lambda n, x: n.b((h := n.a(x)) + n.bag((h > 0).long())), a=nn.Linear(3, 8), bag=nn.EmbeddingBag(2, 8),
        b=nn.Linear(8, 4),
    )  # fmt: skip
    graph, _, _ = typed(network, (3,))
    assert graph.frozen == (("bag", "indices whose rows are summed up"),)


def test_a_linear_function_of_one_vector():
    network = Network(
        lambda n, x: n.b(x * F.linear(n.a(x), n.v).unsqueeze(-1)), {"v": torch.ones(8)}, a=nn.Linear(3, 8),
        b=nn.Linear(3, 4),
    )  # fmt: skip
    assert [space.size for space in assert_contracts(network, (3,)).spaces] == [8]


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_a_softmax_without_an_axis_takes_that_of_torch():
    graph, x, network = typed(between(lambda h: F.softmax(h)), (3, 4, 4))
    assert [space.mixed for space in graph.spaces] == [("softmax at softmax",)]
    with torch.no_grad():
        assert deviation(widen(graph, 1.5)(*x), network(*x)) < 1e-12


def test_a_mean_over_the_batch_too_is_weighed_at_every_batch():
    graph, x, network = typed(between(lambda h: h + h.flatten().mean()), (3, 4, 4))
    with torch.no_grad():
        assert deviation(widen(graph, 1.5)(*x), network(*x)) < 1e-12  # traced at another batch


def test_an_operator_that_is_kept_whole_still_lets_the_rest_be_cut():
    network = Network(
        lambda n, x: n.c(torch.relu(n.b((h := n.a(x)) * torch.linalg.pinv(h).mean()))), a=nn.Linear(3, 8),
        b=nn.Linear(8, 6), c=nn.Linear(6, 4),
    )  # fmt: skip
    graph = assert_contracts(network, (3,))
    assert [(space.name, space.size) for space in graph.spaces] == [("b", 6)]
