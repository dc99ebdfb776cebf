"""A lifted map equals plain indexing of a tensor in which every index is labelled."""

import doctest
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsurgery.axes import algebra as ax
from graphsurgery.axes import maps
from graphsurgery.axes.algebra import Dim
from graphsurgery.axes.maps import ChannelMap, Edit, MapInGroups, Widths
from graphsurgery.axes.types import ParameterType
from graphsurgery.surgery.remapping.gathering import gather

SIZES = st.sampled_from([1, 2, 3, 4])


def test_the_examples_of_the_docstrings():
    found = doctest.testmod(maps)
    assert found.attempted > 5
    assert not found.failed


def labels(axis, maps, dtype=np.int64):
    """New labels of an axis by brute force: each term is an array of one axis per dim, indexed dim by dim."""
    found, offset = [], 0
    for term in axis:
        shape = [dim.size for dim in term]
        block = np.arange(offset, offset + ax.term_size(term), dtype=dtype).reshape(shape)
        for position, dim in enumerate(term):
            if dim in maps:
                block = block.take(maps[dim].source.numpy(), position)
        found.append(block.reshape(-1))
        offset += ax.term_size(term)
    return np.concatenate(found)


def shares(axis, maps):
    """New factors of an axis by brute force."""
    found = []
    for term in axis:
        block = np.ones(())
        for dim in term:
            share = maps[dim].share if dim in maps else None
            block = np.multiply.outer(block, np.ones(len(maps[dim]) if dim in maps else dim.size))
            if share is not None:
                block = block * share.numpy()
        found.append(block.reshape(-1))
    return np.concatenate(found)


@st.composite
def edits(draw):
    pool = [Dim(draw(SIZES)) for _ in range(4)]
    axis = tuple(
        tuple(draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique_by=id)))
        for _ in range(draw(st.integers(1, 3)))
    )
    maps = {}
    for dim in draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique_by=id)):
        source = torch.tensor(draw(st.lists(st.integers(0, dim.size - 1), min_size=1, max_size=5)))
        share = torch.linspace(0.5, 2, len(source), dtype=torch.float64) if draw(st.booleans()) else None
        maps[dim] = ChannelMap(source, share)
    return axis, maps


@given(edits())
@settings(max_examples=150, deadline=None)
def test_lift_equals_indexing(edit):
    axis, maps = edit
    lifted = Edit(maps).lift(axis)
    if lifted is None:
        assert not any(dim in maps for term in axis for dim in term)
        assert Edit(maps).size(axis) == ax.size_of(axis)
        return
    np.testing.assert_array_equal(lifted.source.numpy(), labels(axis, maps))
    assert Edit(maps).size(axis) == len(lifted.source)
    if lifted.share is None:
        assert all(maps[dim].share is None for term in axis for dim in term if dim in maps)
    else:
        np.testing.assert_allclose(lifted.share.numpy(), shares(axis, maps), rtol=1e-15)


def test_lifting_follows_refinements_made_after_the_map():
    space = ax.free(6)
    flattened = ax.product([space, ax.fixed(2)])
    edit = Edit({space[0][0]: ChannelMap(torch.tensor([5, 0]))})
    assert edit.lift(flattened).source.tolist() == [10, 11, 0, 1]
    assert edit.size(ax.fixed(7)) == 7
    assert edit.lift(ax.fixed(7)) is None


def test_a_map_knows_its_length():
    assert len(ChannelMap(torch.tensor([2, 0, 1]))) == 3


def test_widths_are_the_sizes_of_an_edit():
    c, g = ax.free(6), ax.free(4)
    axis = ax.concat([ax.product([c, ax.fixed(2)]), g, ax.fixed(3)])
    maps = {c[0][0]: ChannelMap(torch.tensor([1, 1, 0])), g[0][0]: ChannelMap(torch.tensor([3]))}
    assert Widths({dim: len(m) for dim, m in maps.items()}).size(axis) == Edit(maps).size(axis) == 3 * 2 + 1 + 3
    assert Widths({}).size(axis) == 6 * 2 + 4 + 3


def places(axis, edit):
    """What stands at every new index of an axis: its term, the offset of that, and the new index of every dim."""
    offset = 0
    for term in axis:
        for index in itertools.product(*(range(edit.sizes.get(dim, dim.size)) for dim in term)):
            yield term, offset, dict(zip(term, index, strict=True))
        offset += ax.term_size(term)


def gathered(tensor, axes, edit):
    """What an edit makes of a tensor, element by element."""
    every = [list(places(axis, edit)) for axis in axes]
    new = np.empty([len(one) for one in every])
    for index in np.ndindex(*new.shape):
        here = [every[axis][position] for axis, position in enumerate(index)]
        new[index] = tensor[tuple(old_place(place, here, edit) for place in here)]
    return new


def old_place(place, here, edit):
    term, offset, label = place
    place = 0
    for dim in term:
        known = edit.maps.get(dim)
        if isinstance(known, MapInGroups):
            told = next(
                one for one in (label, *(other for _, _, other in here)) if any(g in one for g in known.sources)
            )
            outer = next(g for g in known.sources if g in told)
            group = edit.maps[outer].source[told[outer]] if outer in edit.maps else told[outer]
            old = known.sources[outer][group][label[dim]]
        else:
            old = label[dim] if known is None else known.source[label[dim]]
        place = place * dim.size + int(old)
    return offset + place


@st.composite
def edits_in_groups(draw):
    """Two kinds of groups, what is inside them, and a tensor on which one axis tells the groups of the other."""
    groups, inner, other = [Dim(draw(SIZES)) for _ in range(2)], Dim(draw(SIZES)), Dim(draw(SIZES))
    tells = tuple(
        tuple(draw(st.permutations([group, *draw(st.sampled_from([(), (other,), (inner,), (other, inner)]))])))
        for group in draw(st.lists(st.sampled_from(groups), min_size=1, max_size=3))
    )
    told = draw(st.sampled_from([((inner,),), ((other, inner),), ((inner,), (other,)), ((inner, other), (inner,))]))
    count = draw(st.integers(1, inner.size))
    rows = {g: [draw(st.permutations(range(inner.size)))[:count] for _ in range(g.size)] for g in groups}
    maps = {inner: MapInGroups({g: torch.tensor(choice) for g, choice in rows.items()})}
    for dim in draw(st.lists(st.sampled_from([*groups, other]), max_size=2, unique_by=id)):
        maps[dim] = ChannelMap(torch.tensor(draw(st.lists(st.integers(0, dim.size - 1), min_size=1, max_size=4))))
    axes = [tells, told, ((other,),)]
    order = draw(st.permutations(range(3)))
    return [axes[n] for n in order], maps


@given(edits_in_groups())
@settings(max_examples=100, deadline=None)
def test_a_choice_in_each_group_equals_indexing_element_by_element(drawn):
    axes, maps = drawn
    edit = Edit(maps)
    tensor = np.arange(np.prod([ax.size_of(axis) for axis in axes])).reshape([ax.size_of(axis) for axis in axes])
    new = gather(edit, ParameterType("w", tuple(axes)), torch.tensor(tensor), {})
    np.testing.assert_array_equal(new.numpy(), gathered(tensor, axes, edit))
    assert list(new.shape) == [edit.size(axis) for axis in axes]


def test_a_grouped_convolution_by_hand():
    g, o, i = Dim(2), Dim(2), Dim(3)
    edit = Edit({i: MapInGroups({g: torch.tensor([[0, 2], [1, 2]])}), o: MapInGroups({g: torch.tensor([[1], [0]])})})
    assert edit.lift(((g, i),)).source.tolist() == [0, 2, 3 + 1, 3 + 2]
    assert edit.lift(((g, o),)).source.tolist() == [1, 2]
    beside = edit.lift_in([((g, o),), ((i,),), ax.fixed(3)], 1)
    assert (beside.source.tolist(), beside.beside) == ([[0, 2], [1, 2]], 0)


def test_a_choice_in_each_group_needs_the_group():
    g, k, c = Dim(2), Dim(3), Dim(4)
    edit = Edit({k: MapInGroups({g: torch.tensor([[0], [2]])})})
    assert edit.size(((k,),)) == 1
    with pytest.raises(ValueError, match="the axis does not tell the group"):
        edit.lift(((k,),))
    for other in (((c,),), ((g,), (c,))):
        with pytest.raises(ValueError, match="no axis tells the group"):
            edit.lift_in([other, ((k,),)], 1)
    with pytest.raises(ValueError, match="no axis tells the group"):
        edit.lift_in([((g,),), ((k,),), ((g, c),)], 1)
    with pytest.raises(ValueError, match="a product of several groups"):
        edit.lift(((g, g, k),))
