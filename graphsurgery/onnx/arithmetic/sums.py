"""Sums of 8-bit products as processors compute them: exactly, or in pairs that saturate at 16 bits.

ONNX Runtime multiplies unsigned activations with signed weights (U8S8). Where an x86 processor has VNNI, or AMX, the
products are added in 32 bits; Arm processors do the same. Where it has AVX2 or AVX-512 without VNNI, an instruction
(`vpmaddubsw`) multiplies two neighbours along the axis that is summed, and adds the two products in 16 bits, with
saturation; the pairs are then added in 32 bits. Unsigned weights are widened to 16 bits first, so they are exact.

A pair is at most `255 * (w0 + w1)` over the positive of its weights, and at least that over the negative ones. With
weights of -64 to 64 it lies between -32640 and 32640, inside the -32768 to 32767 of 16 bits, so nothing saturates
whatever the activations are. 64 is the largest such number: 2 * 255 * 65 = 33150 does not fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LARGEST_ACTIVATION = 255
LARGEST_SAFE_WEIGHT = 64
_LOW, _HIGH = -(2**15), 2**15 - 1
_AT_ONCE = 2**22
"""Pairs that are looked at in one step."""

Array = np.ndarray[Any, Any]


def exact(activations: Array, weights: Array) -> Array:
    """The sums in as many bits as they need.

    Args:
        activations: `[rows, terms]`, uint8.
        weights: `[terms, columns]`, int8 or uint8.

    Returns:
        `[rows, columns]`, int64.
    """
    # In float64, which is exact up to 2**53, the product runs in BLAS.
    return (activations.astype(np.float64) @ weights.astype(np.float64)).astype(np.int64)


def saturating(activations: Array, weights: Array) -> Array:
    """The sums of pairs that saturate at 16 bits; terms 0 and 1 are a pair, 2 and 3 are the next.

    Computed as the exact sums less what the pairs that can saturate lose.

    Args:
        activations: `[rows, terms]`, uint8.
        weights: `[terms, columns]`, int8; uint8 sums never saturate.

    Returns:
        `[rows, columns]`, int64.
    """
    sums = exact(activations, weights)
    pairs, columns = overflowing(weights)
    if not len(pairs):
        return sums
    left, right = _paired(activations.T)
    first, second = (half[pairs, columns] for half in _paired(weights))
    affected, starts = np.unique(columns, return_index=True)
    for rows in _slices(len(activations), max(1, _AT_ONCE // len(pairs))):
        values = left[:, rows][pairs].T * first + right[:, rows][pairs].T * second
        sums[rows, affected] -= np.add.reduceat(values - values.clip(_LOW, _HIGH), starts, axis=1)
    return sums


def overflowing(weights: Array) -> tuple[Array, Array]:
    """The pairs of weights that saturate for some activations.

    Args:
        weights: `[terms, columns]`, int8 or uint8.

    Returns:
        The number of each pair and its column, by column; empty of uint8.
    """
    first, second = _paired(weights)
    highest = LARGEST_ACTIVATION * (first.clip(0) + second.clip(0))
    lowest = LARGEST_ACTIVATION * (first.clip(max=0) + second.clip(max=0))
    at_risk = (highest > _HIGH) | (lowest < _LOW)
    if weights.dtype == np.uint8:
        at_risk[:] = False
    columns, pairs = np.nonzero(at_risk.T)
    return pairs, columns


def _paired(terms: Array) -> tuple[Array, Array]:
    """The even and the odd ones along the first axis, int32; a last one without a neighbour has a 0."""
    whole = np.zeros((len(terms) + len(terms) % 2, *terms.shape[1:]), np.int32)
    whole[: len(terms)] = terms
    return whole[0::2], whole[1::2]


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, count, step)]
