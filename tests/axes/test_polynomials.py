"""Polynomials of axes are the numbers of elements at any widths."""

from __future__ import annotations

import doctest
from math import prod

from hypothesis import given, settings
from hypothesis import strategies as st

from graphsurgery.axes import polynomials
from graphsurgery.axes.algebra import Dim, fixed
from graphsurgery.axes.maps import Widths
from graphsurgery.axes.polynomials import product, total, value

DIMS = [Dim(n) for n in (2, 3, 5, 7)]
dim = st.sampled_from([*DIMS, *(fixed(n)[0][0] for n in (2, 9))])
axis = st.lists(st.lists(dim, min_size=1, max_size=2).map(tuple), min_size=1, max_size=3).map(tuple)


@given(tensors=st.lists(st.lists(axis, max_size=3), max_size=3), sizes=st.tuples(*[st.integers(0, 9)] * 4))
@settings(max_examples=80, deadline=None)
def test_they_count_the_elements_of_tensors(tensors, sizes):
    widths = Widths(dict(zip(DIMS, sizes, strict=True)))
    found = total(product(axes, 3) for axes in tensors)
    assert value(found, widths) == sum(3 * prod(widths.size(axis) for axis in axes) for axes in tensors)


def test_a_dim_that_was_refined_counts_as_its_parts():
    a, b, c = Dim(2), Dim(3), Dim(5)
    c.link = ((a,), (b,))
    assert value(product([((c,),)]), Widths({a: 1})) == 4


def test_the_examples_hold():
    assert doctest.testmod(polynomials).failed == 0
