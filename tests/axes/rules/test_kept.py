"""Operators to which the order or the number of channels means something: cut, copied, moved and gated exactly."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Masked, Network, assert_gates, assert_permutes, typed
from torch import nn

import graphsurgery as gs
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.widen import undo, widen
from graphsurgery.surgery.deviation import deviation


def between(operator, after=8):
    return Network(lambda n, x: n.b(operator(torch.tanh(n.a(x)))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(after, 4, 1))


INDEX = torch.tensor([3, 0, 5, 5, 1, 2, 7, 4])
IN_ORDER = {
    "roll": lambda h: torch.roll(h, (1, 1), (1, 2)),
    "flip": lambda h: h.flip(1, 2),
    "cumsum": lambda h: h.cumsum(1),
    "cumprod": lambda h: torch.cumprod(h + 1.5, dim=1),
    "cummax": lambda h: h.cummax(1)[0],
    "diff": lambda h: h.diff(dim=1, n=1).repeat(1, 8, 1, 1)[:, :8],
    "sort": lambda h: h.sort(1)[0],
    "msort": lambda h: torch.msort(h.transpose(0, 1)).transpose(0, 1),
    "topk": lambda h: h.topk(8, 1)[0],
    "fft": lambda h: torch.fft.fft(h, dim=1).real,
    "rfft": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1).tanh(), dim=1),
    "fft of everything behind the batch": lambda h: torch.fft.fftn(h, dim=(1, 2, 3)).real,
    "fftshift": lambda h: torch.fft.fftshift(h, 1),
    "neighbours": lambda h: F.local_response_norm(h, 3),
    "gathered": lambda h: torch.gather(h, 1, INDEX.view(1, 8, 1, 1).expand(h.shape[0], 8, 4, 4)),
    "norm over several axes": lambda h: F.layer_norm(h, h.shape[1:]),
    "softmax": lambda h: h.softmax(1),
    "log softmax": lambda h: torch.log_softmax(h, 1),
    "logsumexp": lambda h: torch.logsumexp(h, 1, keepdim=True) + h,
    "variance": lambda h: h / h.std(1, keepdim=True),
    "product": lambda h: h * (h + 1.5).prod(1, keepdim=True),
    "median": lambda h: h - h.median(1, keepdim=True)[0],
    "distance": lambda h: h + torch.cdist(h.flatten(2).mT, h.flatten(2).mT, 1.0).mean((1, 2))[:, None, None, None],
}
MIXED = {"softmax", "log softmax", "logsumexp", "variance", "product", "median", "distance"}


def assert_kept(network, *shapes, mixed=False):
    """Every contract, with the channels in front of the operator among what is cut and copied."""
    graph, x, module = typed(network, *shapes)
    with torch.no_grad():
        assert deviation(graph(*x), module(*x)) < 1e-12
        assert graph.spaces[0].size == 8
        assert not graph.frozen
        assert_permutes(graph, x)
        if not mixed:
            kept = {s.name: [i for i in range(s.size) if i % 3 != 1] for s in graph.spaces}
            small = compress(graph, kept)
            assert deviation(small(*x), Masked(graph, kept).run(*x)) < 1e-12
            again = {s.name: [0, *range(2, s.size)] for s in small.spaces}
            assert deviation(compress(small, again)(*x), Masked(small, again).run(*x)) < 1e-12
            assert_gates(graph, x, [graph.spaces[0].name])
        wide = widen(graph, to={s.name: s.size + 3 for s in graph.spaces})
        assert deviation(wide(*x), graph(*x)) < 1e-12
        assert deviation(undo(wide)(*x), graph(*x)) < 1e-12
        assert deviation(widen(wide, 1.4)(*x), graph(*x)) < 1e-12
    return graph, x, wide


@pytest.mark.parametrize("name", IN_ORDER)
def test_channels_are_cut_and_copied(name, tmp_path):
    operator = IN_ORDER[name]
    _, x, wide = assert_kept(between(operator), (3, 4, 4), mixed=name in MIXED)
    gs.save(wide, tmp_path / "m.pt")
    with torch.no_grad():
        torch.testing.assert_close(gs.load(tmp_path / "m.pt")(*x), wide(*x), rtol=0, atol=0)


FLAGS = {
    "summed up": lambda flags: flags.cummax(1)[0],
    "rolled": lambda flags: flags.roll((1, 1), (1, 2)),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_stay_flags(name):
    """Of the copies of a flag one is enough; where a channel is gone it is off."""

    def forward(net, x):
        return net.b(torch.tanh(net.c(x)).masked_fill(FLAGS[name](net.a(x) > 0), 0.5))

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1), "c": nn.Conv2d(3, 8, 1)}
    assert_kept(Network(forward, **layers), (3, 4, 4))


def test_distances_to_as_many_points_as_there_are_channels():
    """What is given has the shape of what is read, and other channels."""

    def forward(net, x):
        tokens = torch.tanh(net.a(x))
        return net.b(torch.cdist(tokens, net.points))

    network = Network(forward, {"points": torch.randn(8, 8)}, a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    graph, x, _ = typed(network, (5, 3))
    wide = widen(graph, to={space.name: space.size + 3 for space in graph.spaces})
    assert deviation(wide(*x), graph(*x)) < 1e-12
    assert deviation(undo(wide)(*x), graph(*x)) < 1e-12
    assert wide.module.get_parameter("points").shape == (11, 11)


def test_whole_numbers_have_no_shares():
    """The copies of a number would be summed up by parts of it."""

    def forward(net, x):
        return net.b(torch.tanh(net.c(x)) * (10 * net.a(x)).long().cumsum(1))

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1), "c": nn.Conv2d(3, 8, 1)}
    graph, _, _ = typed(Network(forward, **layers), (3, 4, 4))
    assert not graph.spaces
    assert any("whole numbers, which have no shares" in frozen.reason for frozen in graph.frozen)


LAST = {
    "looked up": lambda h: h[..., INDEX],
    "looked up by a list": lambda h: h[:, :, INDEX.tolist()] * 2,
    "selected": lambda h: h.index_select(2, INDEX),
    "gathered": lambda h: torch.gather(h, 2, INDEX.expand(h.shape)),
    "flipped": lambda h: h + h.flip(-1),
    "some of them": lambda h: torch.cat([h[..., INDEX[:3]], h[..., INDEX[3:]]], -1),
}


@pytest.mark.parametrize("name", LAST)
def test_channels_last(name):
    network = Network(lambda n, x: n.b(torch.relu(LAST[name](n.a(x)))), a=nn.Linear(3, 8), b=nn.Linear(8, 4))
    assert_kept(network, (5, 3))


def test_what_is_looked_up_for_outputs_stays():
    network = Network(lambda n, x: n.b(torch.relu(n.a(x)))[..., INDEX[:4] % 4], a=nn.Linear(3, 8), b=nn.Linear(8, 4))
    graph, _, _ = typed(network, (5, 3))
    assert [space.name for space in graph.spaces] == ["a"]
    assert graph.frozen == (("getitem", "an axis that is looked up by indices"),)


def test_channels_whose_places_are_used_stay():
    graph, _, _ = typed(between(lambda h: h * h.sort(1)[1]), (3, 4, 4))
    assert [frozen.reason for frozen in graph.frozen] == ["an axis that is sorted"]


@pytest.mark.parametrize("layer", [nn.LocalResponseNorm(3), nn.LayerNorm([8, 4, 4]), nn.RMSNorm([8, 4, 4])])
def test_layers(layer):
    assert_kept(nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(8, 4, 1)), (3, 4, 4))


@pytest.mark.parametrize("name", ["cumsum", "neighbours", "norm over several axes"])
def test_two_networks_side_by_side(name):
    graphs, x = [], None
    for seed in range(2):
        graph, x, _ = typed(between(IN_ORDER[name]), (3, 4, 4), seed=seed)
        graphs.append(graph)
    big = concatenate(graphs)
    with torch.no_grad():
        assert deviation(big(*x), sum(graph(*x) for graph in graphs) / 2) < 1e-12


@pytest.mark.parametrize("name", ["cumsum", "fft", "norm over several axes", "softmax"])
def test_in_onnx_runtime(name, tmp_path):
    graph, _, _ = typed(between(IN_ORDER[name]), (3, 4, 4))
    graph.module.float()
    edited = widen(compress(graph, 0.5), 1.5)
    gs.export_onnx(edited, tmp_path / "n.onnx")
    assert gs.check_onnx(edited, tmp_path / "n.onnx").holds


def test_channels_inside_of_groups_are_read_in_order_in_each():
    network = Network(
        lambda n, x: n.b(n.a(x).unflatten(1, (2, 4)).cumsum(2).flatten(1)), a=nn.Linear(3, 8), b=nn.Linear(8, 4)
    )
    graph, x, _ = typed(network, (3,))
    inner = next(space for space in graph.spaces if not space.outer)
    same = compress(graph, {inner.name: [0, 3]}, within="same")
    with torch.no_grad():
        assert deviation(same(*x), Masked(graph, {inner.name: [0, 3]}).run(*x)) < 1e-12


def test_a_norm_of_several_axes_is_widened_along_all_of_them_at_once_and_one_after_the_other():
    """Each axis has factors of its own in front of the norm, and picks of its own behind it."""

    def forward(net, x):
        y = net.a(x).expand(-1, -1, 4, 4) + net.b(x.expand(-1, -1, 4, 4).flatten(2)).unflatten(2, (4, 4))
        y = torch.relu(F.normalize(y, dim=(1, 2, 3)) * 4)
        return net.c(torch.flatten(y, 1))

    layers = {"a": nn.Conv2d(8, 8, 1), "b": nn.Linear(16, 16), "c": nn.Linear(128, 5)}
    graph, x, _ = typed(Network(forward, **layers), (8, 1, 1))
    sizes = {space.name: space.size + 1 + i for i, space in enumerate(graph.spaces)}
    assert len(sizes) >= 3
    after_all, undone = widen(graph, to=sizes, init="equal"), graph
    one_by_one = graph
    for name, size in sizes.items():
        one_by_one = widen(one_by_one, to={name: size}, init="equal")
    undone = undo(after_all)
    with torch.no_grad():
        for wide in (after_all, one_by_one, undone):
            assert deviation(wide(*x), graph(*x)) < 1e-12
