"""Counts as polynomials in the sizes of the free dims: what a network costs at any widths, to be evaluated anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from graphsurgery.axes.algebra import Axis, Dim, resolve
from graphsurgery.axes.maps import Widths

Polynomial = Mapping[tuple[Dim, ...], int]
"""The coefficient of every product of free dims; the empty product is the constant."""


def product(axes: Iterable[Axis], factor: int = 1) -> Polynomial:
    """A factor times the sizes of all these axes.

    The weight of a convolution with three pixels each way, `[o, i, 3, 3]`, where `i` is a concat `a + b`:

    >>> from graphsurgery.axes.algebra import fixed
    >>> o, a, b = Dim(8), Dim(4), Dim(2)
    >>> found = product([((o,),), ((a,), (b,)), fixed(3), fixed(3)])
    >>> list(found.values())
    [9, 9]
    >>> value(found, Widths({a: 1}))
    216
    """
    found: dict[tuple[Dim, ...], int] = {(): factor}
    for axis in axes:
        grown: dict[tuple[Dim, ...], int] = {}
        for dims, coefficient in found.items():
            for term in resolve(axis):
                free = tuple(sorted((*dims, *(dim for dim in term if not dim.fixed)), key=id))
                number = coefficient * prod(dim.size for dim in term if dim.fixed)
                grown[free] = grown.get(free, 0) + number
        found = grown
    return found


def total(polynomials: Iterable[Polynomial]) -> Polynomial:
    """Their sum."""
    found: dict[tuple[Dim, ...], int] = {}
    for polynomial in polynomials:
        for dims, coefficient in polynomial.items():
            found[dims] = found.get(dims, 0) + coefficient
    return found


def value(polynomial: Polynomial, widths: Widths) -> int:
    """What it is at these widths."""
    return sum(
        coefficient * prod(widths.sizes.get(dim, dim.size) for dim in dims) for dims, coefficient in polynomial.items()
    )
