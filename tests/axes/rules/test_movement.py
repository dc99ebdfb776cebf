"""Movement: a cut behind each operator equals a mask, or the freeze is right."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts, assert_permutes, typed
from torch import nn

from graphsurgery.passes.compress import compress
from graphsurgery.surgery.deviation import deviation


def between(operator, width=8, after=8, size=(4, 4)):
    """`operator` on 8 channels, between a convolution and one that reads `after` channels."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
    return Network(lambda net, x: net.b(operator(torch.tanh(net.a(x)))), a=kind(3, width, 1), b=kind(after, 2, 1))


def flat(operator, after=8):
    return Network(lambda net, x: net.b(operator(torch.tanh(net.a(x)))), a=nn.Linear(3, 8), b=nn.Linear(after, 2))


FREE = {
    "view": (flat(lambda h: h.view(-1, 2, 4).view(h.shape[0], 8)), (3,)),
    "view as one size": (flat(lambda h: h.view((-1, 2, 4)).reshape(shape=(-1, 8))), (3,)),
    "torch.reshape": (flat(lambda h: torch.reshape(h, (-1, 1, 8, 1)).flatten(1)), (3,)),
    "flatten": (between(lambda h: h.flatten(1)[:, :, None, None], after=128), (3, 4, 4)),
    "nn.Flatten": (
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(2), nn.Flatten(1, 2), nn.Linear(128, 2)), (3, 4, 4)
    ),
    "unflatten": (flat(lambda h: h.unflatten(-1, (4, 2)).transpose(1, 2).flatten(1)), (3,)),
    "unflatten by name": (flat(lambda h: torch.unflatten(h, dim=1, sizes=(4, -1)).flatten(1)), (3,)),
    "permute": (between(lambda h: h.permute(0, 2, 3, 1).permute((0, 3, 1, 2))), (3, 4, 4)),
    "permute by name": (between(lambda h: torch.permute(h, dims=(0, 2, 3, 1)).permute(0, 3, 1, 2)), (3, 4, 4)),
    "transpose": (between(lambda h: torch.transpose(h.transpose(1, 3), dim0=1, dim1=-1)), (3, 4, 4)),
    "swapaxes": (between(lambda h: torch.swapaxes(h.swapaxes(1, 2), 1, 2)), (3, 4, 4)),
    "t": (flat(lambda h: torch.t(h.t())), (3,)),
    "movedim": (between(lambda h: torch.movedim(h, 1, -1).moveaxis((3, 0), (1, 0))), (3, 4, 4)),
    "mT": (between(lambda h: h.mT.adjoint() + h.flatten(2).mT.mH.unflatten(2, (4, 4))), (3, 4, 4)),
    "T": (flat(lambda h: h.T.T), (3,)),
    "real and imaginary": (
        flat(lambda h: torch.view_as_real(torch.view_as_complex(h.view(-1, 4, 2)) * 1j).flatten(1)), (3,)
    ),
    "magnitude and angle": (flat(lambda h: torch.polar(h.abs(), h).real), (3,)),
    "parts of complex numbers": (flat(lambda h: torch.complex(h, -h).real + torch.complex(h, h).imag), (3,)),
    "reshape_as": (between(lambda h: h.flatten(2).reshape_as(h) + h.flatten(1).view_as(h)), (3, 4, 4)),
    "nn.Unflatten": (
        nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (4, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)), (3,)
    ),
    "unsqueeze": (flat(lambda h: torch.unsqueeze(h.unsqueeze(-1), 1)[:, 0, :, 0]), (3,)),
    "squeeze everything": (flat(lambda h: h[:, None, :, None].squeeze()), (3,)),
    "squeeze one": (flat(lambda h: torch.squeeze(h.unsqueeze(1), 1).squeeze(1)), (3,)),
    "squeeze several": (flat(lambda h: torch.squeeze(h[:, None, None], (1, 2, 3))), (3,)),
    "cat": (flat(lambda h: torch.concat([h, torch.cat([h, h], dim=-1)], 1), 24), (3,)),
    "cat with the input": (
        Network(lambda n, x: n.b(torch.cat((n.a(x), x), axis=1)), a=nn.Linear(3, 8), b=nn.Linear(11, 2)), (3,)
    ),
    "stack": (flat(lambda h: torch.stack([h, h * 2], 1).flatten(1), 16), (3,)),
    "stack behind": (flat(lambda h: torch.stack([h, h * 2], -1).flatten(1), 16), (3,)),
    "split": (flat(lambda h: torch.cat(h.split([3, 5], 1)[::-1], 1)), (3,)),
    "split by size": (flat(lambda h: torch.cat(torch.split(h, 3, dim=1)[::-1], 1)), (3,)),
    "chunk, uneven": (flat(lambda h: torch.cat(h.chunk(3, 1)[1:], 1), 5), (3,)),
    "chunk by name": (flat(lambda h: torch.chunk(h, chunks=2, dim=1)[1], 4), (3,)),
    "tensor_split": (flat(lambda h: torch.cat(torch.tensor_split(h, 3, 1)[::-1], 1)), (3,)),
    "unbind a stack": (flat(lambda h: (lambda a, b: a * b)(*h.unflatten(1, (2, 4)).unbind(1)), 4), (3,)),
    "slices": (flat(lambda h: torch.cat([h[:, 5:], h[:, :2], h[..., 2:5]], 1)), (3,)),
    "slice from the end": (flat(lambda h: h[:, -3:], 3), (3,)),
    "slice by a computed border": (flat(lambda h: h[:, : h.shape[1] // 2], 4), (3,)),
    "new axes": (flat(lambda h: h[:, None, :, None][:, 0, :, 0]), (3,)),
    "look up positions": (between(lambda h: h[:, :, torch.tensor([3, 0, 0])]), (3, 4, 4)),
    "expand a gate": (between(lambda h: h * h[:, :, :1, :1].expand(-1, -1, 4, 4)), (3, 4, 4)),
    "expand channels": (
        Network(
            lambda n, x: n.b(n.a(x) * n.c(x).expand(-1, 8)), a=nn.Linear(3, 8), b=nn.Linear(8, 2), c=nn.Linear(3, 1)
        ),
        (3,),
    ),
    "broadcast_to": (flat(lambda h: torch.broadcast_to(h[:, None], (h.shape[0], 3, 8)).flatten(1), 24), (3,)),
    "expand_as": (flat(lambda h: h + h[:, :, None].flatten(1).expand_as(h)), (3,)),
    "repeat": (flat(lambda h: h.repeat(1, 2), 16), (3,)),
    "tile": (flat(lambda h: h.tile((2,)), 16), (3,)),
    "torch.tile": (flat(lambda h: torch.tile(h, (2, 1)).unflatten(0, (2, -1)).mean(0)), (3,)),
    "repeat a single channel": (flat(lambda h: h + h.mean(1, True).repeat(1, 8)), (3,)),
    "repeat_interleave": (flat(lambda h: torch.repeat_interleave(h, 3, dim=1), 24), (3,)),
    "repeat_interleave heads": (
        flat(lambda h: h.view(-1, 4, 2).repeat_interleave(2, 1).flatten(1), 16), (3,)
    ),
    "step": (flat(lambda h: h[:, ::3], 3), (3,)),
    "step to a border": (flat(lambda h: h[:, :6:2], 3), (3,)),
    "pad positions": (between(lambda h: F.pad(h, (1, 2, 0, 1), mode="reflect")), (3, 4, 4)),
    "pad channels": (flat(lambda h: F.pad(h, (1, 2)), 11), (3,)),
    "pad channels with a value": (flat(lambda h: F.pad(h, pad=(0, 2), value=0.5), 10), (3,)),
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_channels_follow(name):
    network, shape = FREE[name]
    graph = assert_contracts(network, shape)
    assert graph.spaces
    assert not [f for f in graph.frozen if "unbound" not in f.reason and "indexed by a constant" not in f.reason]


FROZEN = {
    "reflect channels": (
        between(lambda h: F.pad(h, (1, 1, 1, 1), mode="reflect"), after=10, size=(4,)), (3, 4),
        "cropped, or padded with its own indices",
    ),
    "crop channels": (flat(lambda h: F.pad(h, (-1, -1)), 6), (3,), "cropped"),
    "slice across a product": (
        between(lambda h: h.flatten(1)[:, 5:, None, None], after=123), (3, 4, 4), "a slice: a border at 5 falls inside",
    ),
    "reshape across": (flat(lambda h: torch.cat([h, h[:, :4]], 1).view(-1, 2, 6).flatten(1)[:, :8]), (3,), ""),
    "unknown form": (flat(lambda h: torch.swapaxes(h[:, None], axis0=1, axis1=2)[..., 0]), (3,), "form that its rule"),
    "no rule, on purpose": (
        flat(lambda h: h.put(torch.tensor([0]), torch.tensor([0.5], dtype=h.dtype))), (3,), "they lie in memory",
    ),
    "uneven copies": (
        flat(lambda h: h.repeat_interleave(torch.tensor([1, 2] * 4), 1, output_size=12), 12), (3,),
        "numbers of copies that differ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_what_depends_on_the_order_of_channels_is_frozen(name):
    network, shape, reason = FROZEN[name]
    graph, x, network = typed(network, shape)
    assert any(reason in f.reason for f in graph.frozen)
    with torch.no_grad():
        assert deviation(graph(*x), network(*x)) == 0
        assert_permutes(graph, x)


def test_a_squeeze_names_its_axes_once_channels_may_be_single():
    graph, x, _ = typed(FREE["squeeze everything"][0], (3,))
    single = compress(graph, {"a": 1})
    assert single(*x).shape == (3, 2)
    assert any(n.target == "squeeze" and n.args[1] == (1, 3) for n in single.module.graph.nodes)


def own_kernels(split):
    """A convolution with kernels that each example computes, of which two halves are read apart."""

    def forward(net, x):
        h = net.a(x)
        batch, width = h.shape[:2]
        kernels = (torch.softmax(net.mix(h.mean((2, 3))), 1) @ net.kernels).view(batch * 6, width, 3, 3)
        y = split(torch.conv2d(h.reshape(1, batch * width, *x.shape[2:]), kernels, padding=1, groups=batch), batch)
        return net.b(torch.cat([y[:, :3] - y[:, 3:], y[:, 3:]], 1))

    layers = {"a": nn.Conv2d(3, 4, 1), "mix": nn.Linear(4, 3), "b": nn.Conv2d(6, 5, 1)}
    return Network(forward, {"kernels": torch.zeros(3, 6 * 4 * 9)}, **layers)


@pytest.mark.parametrize(
    "split",
    [
        lambda y, batch: y.view(batch, 6, 4, 4),
        lambda y, batch: y.view(-1, 6, 4, 4) + torch.zeros(batch * 6, 1, 1).to(y).view(-1, 6, 1, 1),
        lambda y, batch: y.view(batch * 6, -1).view(-1, 6, 16).view(batch, -1, 4, 4),
        lambda y, batch: y.view(1, -1, 16, 1).expand(1, batch * 6, 16, 1).reshape(batch, 6, 4, 4),
    ],
)
def test_a_size_that_is_a_product_with_the_batch_follows_the_batch(split):
    graph, _, _ = typed(own_kernels(split), (3, 4, 4))
    for cut in (compress(graph, {"matmul": 2}), compress(graph, 0.5)):
        for batch in (1, 2, 3, 5):
            x = torch.randn(batch, 3, 4, 4, dtype=torch.float64)
            alone = torch.cat([cut(x[i : i + 1]) for i in range(batch)])
            assert deviation(cut(x), alone) < 1e-12
