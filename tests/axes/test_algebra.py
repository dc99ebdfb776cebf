"""The algebra of axis types: what the design's table says, and what holds for any types."""

import doctest
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import UNIT, Clash, Dim


def shape_of(axis):
    """The sizes of an axis's terms, free dims negative: `((-4, 49),)` is `c·49` with 49 fixed."""
    return tuple(tuple(dim.size if dim.fixed else -dim.size for dim in term) for term in ax.resolve(axis))


def test_a_dim_says_its_size_and_whether_it_is_fixed():
    assert repr(Dim(4)) == "~4"
    assert repr(Dim(4, fixed=True)) == "=4"
    assert Dim(4) != Dim(4)


def test_the_examples_of_the_docstrings():
    found = doctest.testmod(ax)
    assert found.attempted > 8
    assert not found.failed


def test_fixed_and_free_axes():
    assert ax.fixed(1) == UNIT
    assert ax.fixed(5) is ax.fixed(5)
    assert shape_of(ax.free(5)) == ((-5,),)
    assert shape_of(ax.free(1)) == ((-1,),)
    assert ax.is_fixed(ax.fixed(5))
    assert ax.is_fixed(UNIT)
    assert not ax.is_fixed(ax.free(1))
    assert (ax.size_of(UNIT), ax.size_of(()), ax.term_size(())) == (1, 0, 1)


def test_a_concat_is_a_sum():
    a, b, c = ax.free(2), ax.free(3), ax.free(4)
    axis = ax.concat([a, b, c])
    assert shape_of(axis) == ((-2,), (-3,), (-4,))
    assert ax.size_of(axis) == 9
    assert list(ax.dims_of(axis)) == [a[0][0], b[0][0], c[0][0]]


def test_a_flatten_is_a_product_whose_fixed_parts_merge():
    axis = ax.product([ax.free(64), ax.fixed(7), ax.fixed(7)])
    assert shape_of(axis) == ((-64, 49),)
    assert ax.size_of(axis) == 64 * 49


def test_packed_projections_share_heads_and_the_head_size_of_q_and_k():
    packed = ax.free(3 * 8)
    q, k, v = (ax.take(packed, 8 * i, 8 * i + 8) for i in range(3))
    heads = [ax.factor(axis, [2, 4]) for axis in (q, k, v)]
    ax.unify(heads[0][1], heads[1][1])
    for other in heads[1:]:
        ax.unify(heads[0][0], other[0])
    (h, d), (h2, d2), (h3, d3) = ax.resolve(packed)
    assert h is h2 is h3
    assert d is d2
    assert d is not d3


def test_groups_refine_a_space_into_a_product():
    channels = ax.free(12)
    groups, inner = ax.factor(channels, [3, 4])
    assert ax.resolve(channels) == (groups[0] + inner[0],)
    assert shape_of(channels) == ((-3, -4),)


def test_depthwise_is_its_groups():
    channels, groups = ax.free(6), ax.free(6)
    ax.unify(channels, ax.product([groups, UNIT]))
    assert ax.resolve(channels) == ax.resolve(groups)


def test_patch_merging_is_a_sum_of_copies():
    c = ax.free(5)
    weight = ax.free(20)
    ax.unify(weight, ax.concat([c] * 4))
    assert ax.resolve(weight) == c * 4


def test_a_fixed_factor_distributes_over_a_sum():
    a, b = ax.free(2), ax.free(3)
    assert ax.product([ax.fixed(2), ax.concat([a, b])]) == (*a, *b, *a, *b)
    assert shape_of(ax.product([ax.concat([a, b]), ax.fixed(7)])) == ((-2, 7), (-3, 7))


def test_a_free_factor_over_a_sum_is_frozen():
    heads, a, b = ax.free(2), ax.free(2), ax.free(3)
    axis = ax.product([heads, ax.concat([a, b])])
    assert ax.is_fixed(heads)
    assert ax.size_of(axis) == 10


def test_single_indices_that_are_frozen_vanish():
    a, b = ax.free(2), ax.free(3)
    assert ax.product([ax.free(1), ax.free(1), ax.concat([a, b])]) == (*a, *b)


def test_what_gets_too_long_is_frozen():
    a, b = ax.free(2), ax.free(3)
    axis = ax.product([ax.fixed(2000), ax.concat([a, b])])
    assert shape_of(axis) == ((10000,),)
    assert ax.is_fixed(a)
    assert ax.is_fixed(b)


def test_unify_refines_a_sum_and_a_product():
    long, a, b = ax.free(10), ax.free(4), ax.free(6)
    ax.unify(long, ax.concat([a, b]))
    assert ax.resolve(long) == (*a, *b)
    ax.unify(b, ax.product([ax.free(2), ax.free(3)]))
    assert shape_of(long) == ((-4,), (-2, -3))


def test_fixed_wins_over_free():
    a = ax.free(4)
    ax.unify(a, ax.fixed(4))
    assert ax.is_fixed(a)


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        (lambda: ax.free(4), lambda: ax.free(5), "4 and 5 indices"),
        (
            lambda: ax.product([ax.free(4), ax.free(3)]),
            lambda: ax.product([ax.free(3), ax.free(4)]),
            "4 is not a multiple of 3",
        ),
        (
            lambda: ax.concat([ax.free(2), ax.free(4)]),
            lambda: ax.product([ax.free(2), ax.free(3)]),
            "a border at 2 falls inside a block of 3",
        ),
    ],
)
def test_clashes_say_why(left, right, reason):
    with pytest.raises(Clash, match=reason):
        ax.unify(left(), right())


def test_a_sum_of_as_many_parts_as_the_outer_factor_has_indices():
    parts = [ax.free(6) for _ in range(3)]
    heads, size = ax.free(2), ax.free(3)
    ax.unify(ax.concat(parts), ax.product([ax.free(3), heads, size]))
    assert [ax.resolve(part) for part in parts] == [(*ax.product([heads, size]),)] * 3
    assert not any(dim.fixed for part in parts for dim in ax.dims_of(part))


def test_equal_parts_inside_a_product_are_a_product():
    heads, size, half = ax.free(4), ax.free(6), ax.free(3)
    whole = ax.product([heads, size])
    ax.unify(size, ax.concat([half, half]))
    assert shape_of(whole) == ((-4, 2, -3),)
    ax.unify(ax.free(24), whole)
    other = ax.product([ax.free(4), ax.free(6)])
    ax.unify(whole, other)
    assert ax.resolve(other) == ax.resolve(whole)
    assert not heads[0][0].fixed


def test_a_single_factor_is_the_unit():
    long, rest = ax.free(6), ax.free(6)
    ax.unify(long, ax.product([ax.free(1), rest]))
    assert ax.resolve(long) == ax.resolve(rest)


def test_freeze_counts_what_was_free():
    a, b = ax.free(4), ax.free(5)
    ax.unify(a, ax.product([ax.free(2), ax.free(2)]))
    assert ax.freeze(a, b) == 3
    assert ax.freeze(a, b) == 0


def test_factor_follows_structure():
    assert ax.factor(ax.free(6), [6])[0][0][0].size == 6
    axis = ax.product([ax.free(4), ax.fixed(9)])
    channels, height, width = ax.factor(axis, [4, 3, 3])
    assert (shape_of(channels), shape_of(height), shape_of(width)) == (((-4,),), ((3,),), ((3,),))
    channels, single = ax.factor(ax.free(4), [4, 1])
    assert shape_of(channels) == ((-4,),)
    assert single == UNIT
    with pytest.raises(Clash, match="not a multiple"):
        ax.factor(axis, [3, 12])


def test_take_refines_what_straddles_a_border():
    axis = ax.free(10)
    head, middle, tail = ax.take(axis, 0, 3), ax.take(axis, 3, 7), ax.take(axis, 7, 10)
    assert shape_of(axis) == ((-3,), (-4,), (-3,))
    assert ax.concat([head, middle, tail]) == ax.resolve(axis)
    assert ax.take(axis, 4, 4) == ()
    with pytest.raises(Clash, match="a border at 5 falls inside a block of 3"):
        ax.take(ax.product([ax.free(4), ax.fixed(3)]), 5, 12)


# What holds for any types. A pool of dims is shared, so that the drawn axes refer to one another.
@st.composite
def worlds(draw, axes=2):
    sizes = draw(st.lists(st.sampled_from([1, 2, 2, 3, 4, 6]), min_size=2, max_size=4))
    pool = [Dim(n, fixed=draw(st.integers(0, 4)) == 0) for n in sizes]
    term = st.lists(st.sampled_from(pool), min_size=1, max_size=2).map(tuple)
    axis = st.lists(term, min_size=1, max_size=3).map(tuple)
    return [draw(axis) for _ in range(axes)]


def everything(axes):
    """Sizes and frozenness as they are now."""
    return [ax.size_of(axis) for axis in axes], [dim for axis in axes for term in axis for dim in term if dim.fixed]


@given(worlds(axes=3), st.booleans())
@settings(max_examples=200, deadline=None)
def test_unify_is_sound(axes, same_size):
    a, b, other = axes
    if same_size:
        b = (*b, (Dim(max(ax.size_of(a) - ax.size_of(b), 0)),)) if ax.size_of(a) > ax.size_of(b) else b
    sizes, frozen = everything(axes)
    try:
        ax.unify(a, b)
        assert indices_of(a) == indices_of(b)
        unified = True
    except Clash:
        unified = False
    assert everything(axes)[0] == sizes
    assert [ax.size_of(ax.resolve(axis)) for axis in axes] == sizes
    assert all(dim.fixed for dim in frozen)
    if unified:
        before = ax.resolve(a), ax.resolve(b), ax.resolve(other)
        ax.unify(a, b)
        assert (ax.resolve(a), ax.resolve(b), ax.resolve(other)) == before


def indices_of(axis):
    """Every index of an axis as what an edit sees: its place in each free dim; `3·a` and `a + a + a` are the same."""
    found = []
    for term in ax.resolve(axis):
        for places in itertools.product(*(range(dim.size) for dim in term)):
            found.append(tuple((id(d), p) for d, p in zip(term, places, strict=True) if not d.fixed))
    return found


@given(worlds())
@settings(max_examples=200, deadline=None)
def test_resolving_is_idempotent_and_keeps_sizes(axes):
    for axis in axes:
        resolved = ax.resolve(axis)
        assert ax.resolve(resolved) == resolved
        assert ax.size_of(resolved) == ax.size_of(axis)


@given(worlds(), st.data())
@settings(max_examples=200, deadline=None)
def test_pieces_of_an_axis_concat_to_the_axis(axes, data):
    axis = axes[0]
    size = ax.size_of(axis)
    cuts = sorted(data.draw(st.sets(st.integers(0, size), max_size=3)))
    borders = [0, *cuts, size]
    try:
        pieces = [ax.take(axis, i, j) for i, j in itertools.pairwise(borders)]
    except Clash:
        assert ax.size_of(axis) == size
        return
    assert [ax.size_of(p) for p in pieces] == [j - i for i, j in itertools.pairwise(borders)]
    joined = ax.concat(pieces)
    assert indices_of(joined) == indices_of(axis)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_factors_of_a_product_are_its_parts(sizes):
    parts = [ax.free(n) if n > 1 else UNIT for n in sizes]
    whole = ax.product(parts)
    assert ax.size_of(whole) == ax.term_size(tuple(Dim(n) for n in sizes))
    if len(sizes) > 1:
        assert [ax.resolve(p) for p in ax.factor(whole, sizes)] == [ax.resolve(p) for p in parts]


@given(worlds())
@settings(max_examples=200, deadline=None)
def test_a_product_has_the_size_of_its_parts(axes):
    size = ax.size_of(axes[0]) * ax.size_of(axes[1])
    assert ax.size_of(ax.product(axes)) == size


@given(worlds(axes=3))
@settings(max_examples=200, deadline=None)
def test_a_fixed_index_stays_fixed(axes):
    ax.freeze(axes[0])
    for other in axes[1:]:
        try:
            ax.unify(axes[0], other)
        except Clash:
            continue
        assert ax.is_fixed(other)
    assert ax.is_fixed(axes[0])
