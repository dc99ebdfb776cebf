"""The functions of our own that stand in networks, against plain torch."""

import pytest
import torch
import torch.nn.functional as F

from graphsurgery.network.layers import SegmentedLayerNorm, scale_axis, segmented_layer_norm


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("segments", [(7,), (3, 4), (1, 2, 4)])
@pytest.mark.parametrize("affine", ["none", "weight", "both"])
def test_a_segmented_norm_is_a_norm_of_each_segment(segments, affine):
    x, weight, bias = draw(2, 5, 7), draw(7, seed=1), draw(7, seed=2)
    given = (weight if affine != "none" else None, bias if affine == "both" else None)
    expected = []
    for piece, w, b in zip(x.split(segments, -1), weight.split(segments), bias.split(segments), strict=True):
        expected.append(
            F.layer_norm(
                piece, piece.shape[-1:], w if given[0] is not None else None, b if given[1] is not None else None, 1e-3
            )
        )
    found = segmented_layer_norm(x, segments, *given, 1e-3)
    torch.testing.assert_close(found, torch.cat(expected, -1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("affine", "bias"), [(True, True), (True, False), (False, True)])
def test_the_module_has_the_parameters_of_a_layer_norm(affine, bias):
    module = SegmentedLayerNorm((3, 4), 1e-3, affine, bias).double()
    plain = torch.nn.LayerNorm(7, 1e-3, affine, bias)
    assert {n: p.shape for n, p in module.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    x = draw(2, 7)
    torch.testing.assert_close(module(x), segmented_layer_norm(x, (3, 4), None, None, 1e-3))
    assert repr(module) == "SegmentedLayerNorm((3, 4), eps=0.001)"


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
