"""Sums of 8-bit products: what saturates, what cannot, and the fast way to compute both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsurgery.onnx.arithmetic.sums import LARGEST_SAFE_WEIGHT, exact, overflowing, saturating

HIGH, LOW = 32767, -32768


def pair_by_pair(activations, weights):
    """The definition: products of neighbours are added in 16 bits with saturation, the pairs in 32."""
    sums = np.zeros((len(activations), weights.shape[1]), np.int64)
    for row, column in np.ndindex(*sums.shape):
        products = [int(a) * int(w) for a, w in zip(activations[row], weights[:, column], strict=True)]
        for pair in range(0, len(products), 2):
            sums[row, column] += min(max(sum(products[pair : pair + 2]), LOW), HIGH)
    return sums


@st.composite
def products(draw, low, high):
    """Activations `[rows, terms]` and weights `[terms, columns]`, often at the ends of their ranges."""
    rows, terms, columns = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 4))

    def array(shape, lowest, highest, dtype):
        number = st.one_of(st.sampled_from([lowest, highest]), st.integers(lowest, highest))
        count = shape[0] * shape[1]
        return np.array(draw(st.lists(number, min_size=count, max_size=count)), dtype).reshape(shape)

    return array((rows, terms), 0, 255, np.uint8), array((terms, columns), low, high, np.int8)


@given(products(-128, 127))
@settings(max_examples=200, deadline=None)
def test_only_pairs_at_risk_are_looked_at(drawn):
    activations, weights = drawn
    np.testing.assert_array_equal(saturating(activations, weights), pair_by_pair(activations, weights))
    np.testing.assert_array_equal(exact(activations, weights), activations.astype(int) @ weights.astype(int))


@given(products(-LARGEST_SAFE_WEIGHT, LARGEST_SAFE_WEIGHT))
@settings(max_examples=200, deadline=None)
def test_weights_of_7_bits_never_saturate(drawn):
    activations, weights = drawn
    np.testing.assert_array_equal(pair_by_pair(activations, weights), exact(activations, weights))
    assert not len(overflowing(weights)[0])


@pytest.mark.parametrize(
    ("pair", "saturates"),
    [
        ((64, 64), False),
        ((-64, -64), False),
        ((65, 64), True),
        ((-65, -64), True),
        ((127, 1), False),
        ((127, 2), True),
        ((-128, 0), False),
        ((-128, -1), True),
        ((127, -128), False),
    ],
)
def test_the_border(pair, saturates):
    weights = np.array(pair, np.int8)[:, None]
    assert len(overflowing(weights)[0]) == saturates
    worst = np.array([[255 if (w > 0) == (sum(pair) > 0) else 0 for w in pair]], np.uint8)
    assert (pair_by_pair(worst, weights) != exact(worst, weights)).any() == saturates


def test_all_weights_of_7_bits_with_all_extremes():
    """The proof by all pairs: a pair is linear in either activation, so its extremes are at 0 and 255."""
    weights = np.arange(-LARGEST_SAFE_WEIGHT, LARGEST_SAFE_WEIGHT + 1)
    pairs = np.stack(np.meshgrid(weights, weights), -1).reshape(-1, 2)
    extremes = np.array([[0, 0], [0, 255], [255, 0], [255, 255]])
    values = pairs @ extremes.T
    assert (values.min(), values.max()) == (-32640, 32640)
    assert LOW <= values.min() <= values.max() <= HIGH
    assert 2 * 255 * (LARGEST_SAFE_WEIGHT + 1) > HIGH


def test_unsigned_weights_never_saturate():
    weights = np.full((6, 2), 255, np.uint8)
    activations = np.full((1, 6), 255, np.uint8)
    assert not len(overflowing(weights)[0])
    np.testing.assert_array_equal(saturating(activations, weights), np.full((1, 2), 6 * 255 * 255))


def test_many_rows_are_taken_in_turns(monkeypatch):
    from graphsurgery.onnx.arithmetic import sums

    random = np.random.default_rng(0)
    activations = random.integers(0, 256, (50, 12), np.uint8)
    weights = random.integers(-128, 128, (12, 5)).astype(np.int8)
    whole = saturating(activations, weights)
    monkeypatch.setattr(sums, "_AT_ONCE", 100)
    np.testing.assert_array_equal(saturating(activations, weights), whole)
    np.testing.assert_array_equal(whole, pair_by_pair(activations, weights))
