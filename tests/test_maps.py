"""A lifted map equals plain indexing of a tensor in which every index is labelled."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphsurgery import axes as ax
from graphsurgery.axes import Dim
from graphsurgery.maps import ChannelMap, Edit

SIZES = st.sampled_from([1, 2, 3, 4])


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
@settings(max_examples=300, deadline=None)
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


@pytest.mark.parametrize(
    ("source", "segments"),
    [([0, 1, 2, 3, 4], (2, 3)), ([1, 3, 4], (1, 2)), ([3, 4], (0, 2)), ([0, 0, 1, 4], (3, 1))],
)
def test_segments_follow_what_is_left_of_each(source, segments):
    space = ax.free(5)
    edit = Edit({space[0][0]: ChannelMap(torch.tensor(source))})
    assert edit.segments(space, (2, 3)) == segments
    assert edit.segments(ax.free(5), (2, 3)) == (2, 3)


def test_a_map_may_not_mix_segments():
    space = ax.free(5)
    edit = Edit({space[0][0]: ChannelMap(torch.tensor([0, 4, 1]))})
    with pytest.raises(ValueError, match="mixes the segments of a segmented norm"):
        edit.segments(space, (2, 3))


def test_a_map_knows_its_length():
    assert len(ChannelMap(torch.tensor([2, 0, 1]))) == 3
