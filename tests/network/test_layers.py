"""The functions of our own that stand in networks, against plain torch."""

import math

import pytest
import torch
import torch.nn.functional as F

from graphsurgery.network.layers import grouped_norm, scale_axis


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def members(*sizes):
    """Neighbours as groups of these sizes, `[channels, groups]`."""
    return torch.eye(len(sizes), dtype=torch.float64).repeat_interleave(torch.tensor(sizes), 0)


@pytest.mark.parametrize("segments", [(7,), (3, 4), (1, 2, 4)])
@pytest.mark.parametrize("affine", ["none", "weight", "both"])
def test_a_grouped_norm_is_a_norm_of_each_group(segments, affine):
    x, weight, bias = draw(2, 5, 7), draw(7, seed=1), draw(7, seed=2)
    given = (weight if affine != "none" else None, bias if affine == "both" else None)
    expected = []
    for piece, w, b in zip(x.split(segments, -1), weight.split(segments), bias.split(segments), strict=True):
        expected.append(
            F.layer_norm(
                piece, piece.shape[-1:], w if given[0] is not None else None, b if given[1] is not None else None, 1e-3
            )
        )
    found = grouped_norm(x, members(*segments), *given, eps=1e-3)
    torch.testing.assert_close(found, torch.cat(expected, -1), rtol=1e-13, atol=1e-13)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    given = tuple(None if v is None else v[order] for v in given)
    found = grouped_norm(x[..., order], members(*segments)[order], *given, eps=1e-3)
    torch.testing.assert_close(found, torch.cat(expected, -1)[..., order], rtol=1e-13, atol=1e-13)


PLAIN = {
    "layer norm": (
        lambda x, w, b: F.layer_norm(x.movedim(1, -1), (6,), w, b, 1e-3).movedim(-1, 1), {"dim": 1, "eps": 1e-3},
    ),
    "rms norm": (
        lambda x, w, _: F.rms_norm(x.movedim(1, -1), (6,), w).movedim(-1, 1),
        {"dim": -3, "centred": False, "eps": None, "bias": None},
    ),
    "one group": (lambda x, w, b: F.group_norm(x, 1, w, b), {"dim": 1, "positions": True}),
    "groups": (
        lambda x, w, b: F.group_norm(x, 3, w, b),
        {"dim": 1, "positions": True, "members": members(2, 2, 2), "blocks": True},
    ),
    "each channel": (
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        {"dim": 1, "positions": True, "members": torch.eye(6, dtype=torch.float64)},
    ),
    "instances": (
        lambda x, w, b: F.instance_norm(x.flatten(2), weight=w, bias=b).reshape(x.shape),
        {"dim": 2, "affine": 1, "members": torch.ones(20, 1, dtype=torch.float64), "flat": True},
    ),
    **{
        f"division by a norm of order {p:g}": (
            lambda x, _w, _b, p=p: F.normalize(x, p, 1), {"dim": 1, "power": p, "eps": 1e-12, "affine": None},
        )
        for p in (1.0, 2.0, 3.0, math.inf)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("copied", [False, True])
def test_a_grouped_norm_is_every_norm_of_torch(name, copied):
    """Also where some channels have copies, which share what they count."""
    function, options = PLAIN[name]
    options = dict(options)
    x, weight, bias = draw(2, 6, 4, 5), draw(6, seed=1), draw(6, seed=2)
    expected = function(x, weight, bias)
    flat, own = options.pop("flat", False), options.pop("members", torch.ones(6, 1, dtype=torch.float64))
    vectors = {"weight": weight, "bias": options.pop("bias", bias)} if "power" not in options else {}
    x, expected = (value.flatten(2) if flat else value for value in (x, expected))
    if copied:
        axis = options["dim"] % x.dim()
        source = torch.arange(len(own)).repeat_interleave(torch.tensor([1, 3] * (len(own) // 2)))
        own = (own / torch.bincount(source).unsqueeze(1))[source]
        x, expected = x.index_select(axis, source), expected.index_select(axis, source)
        if not flat:
            vectors = {word: None if v is None else v[source] for word, v in vectors.items()}
    found = grouped_norm(x, own, **vectors, **options)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"centred": False, "eps": 0.0}, {"power": 2.0, "eps": 0.0}])
def test_members_that_are_left_are_the_members_of_a_cut(options):
    x, own = draw(3, 7), members(2, 1, 4) * draw(7, seed=1).abs().unsqueeze(1)
    kept = torch.tensor([5, 0, 3, 1, 6])
    found = grouped_norm(x[:, kept], own[kept], **options)
    assert torch.isfinite(found).all()
    fresh = own[kept][:, [0, 2]] * (1.0 if "power" in options else draw(2, seed=2).abs())
    torch.testing.assert_close(found, grouped_norm(x[:, kept], fresh, **options), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"centred": False}, {"power": 2.0, "eps": 1e-12}])
def test_half_precision_with_weights_of_more(dtype, options):
    x, vectors = draw(3, 7).to(dtype), (draw(7, seed=1).float(), draw(7, seed=2).float())
    found = grouped_norm(x, members(3, 4).float(), *vectors, **options)
    expected = grouped_norm(x.double(), members(3, 4), *(v.double() for v in vectors), **options)
    assert found.dtype is dtype
    precision = 8 * torch.finfo(dtype).eps  # eight roundings
    torch.testing.assert_close(found.double(), expected, rtol=precision, atol=precision)


def test_channels_that_are_all_zero_have_a_gradient():
    for power in (1.0, 2.0, 3.0):
        x = torch.zeros(2, 4, requires_grad=True)
        grouped_norm(x, torch.ones(4, 1), power=power, eps=1e-6).sum().backward()
        assert torch.isfinite(x.grad).all()


def test_scale_axis_lays_a_mask_out_as_the_axis_is():
    x, mask = draw(3, 24, 2), draw(3, 4, seed=1)
    found = scale_axis(x, 1, ((mask, 2, 3),))
    expected = x.reshape(3, 2, 4, 3, 2) * mask.reshape(3, 1, 4, 1, 1)
    torch.testing.assert_close(found, expected.reshape(3, 24, 2))


def test_scale_axis_leaves_terms_without_a_mask():
    x, a, b = draw(3, 9), draw(3, 2, seed=1), draw(3, 3, seed=2)
    found = scale_axis(x, 1, ((a, 1, 1), (None, 2, 2), (b, 1, 1)))
    torch.testing.assert_close(found, x * torch.cat([a, torch.ones(3, 4, dtype=torch.float64), b], 1))


@pytest.mark.parametrize(("batch", "dim", "form"), [(0, 2, "btc"), (1, 2, "tbc"), (2, 0, "ctb")])
def test_scale_axis_finds_the_examples_on_any_axis(batch, dim, form):
    sizes = {"b": 3, "t": 5, "c": 4}
    x, mask = draw(*(sizes[c] for c in form)), draw(3, 4, seed=1)
    expected = torch.einsum(f"{form},bc->{form}", x, mask)
    torch.testing.assert_close(scale_axis(x, dim, ((mask, 1, 1),), batch), expected)
