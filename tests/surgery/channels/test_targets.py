"""Targets: what the text means, and the search on a cost that can be worked out by hand."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import graphsurgery as gs
from graphsurgery.surgery.channels.targets import Lane, Target, parse_target, search


@pytest.mark.parametrize(
    ("text", "quantity", "amount", "relative"),
    [
        ("params=0.5x", "params", 0.5, True),
        ("macs=.25X", "macs", 0.25, True),
        ("width=0.75", "width", 0.75, True),
        ("width=0.75x", "width", 0.75, True),
        ("params=1.2M", "params", 1_200_000, False),
        ("macs=300M", "macs", 300_000_000, False),
        ("MACs=1.5g", "macs", 1_500_000_000, False),
        ("params=12345", "params", 12_345, False),
        ("params=1e6", "params", 1_000_000, False),
        ("size=4MB", "size", 4_000_000, False),
        ("size=512 KiB", "size", 2**19, False),
        ("size=1000", "size", 1000, False),
        ("size=0.5x", "size", 0.5, True),
        ("latency=5ms", "latency", 5.0, False),
        ("latency=250us", "latency", 0.25, False),
        ("latency=0.5x", "latency", 0.5, True),
    ],
)
def test_parses(text, quantity, amount, relative):
    target = parse_target(text, ranking="global", min_width=2)
    assert (target.quantity, target.amount, target.relative) == (quantity, amount, relative)
    assert (target.ranking, target.min_width, target.max_cut) == ("global", 2, 0.9)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("params", {}, "has no known form; write params=0.5x"),
        ("params=half", {}, "has no known form"),
        ("params=-1M", {}, "has no known form"),
        ("time=0.5x", {}, "target time: unknown; choose from params, macs, size, width, latency"),
        ("latency=5", {}, "has no unit; write latency=5ms"),
        ("latency=5MB", {}, "unknown unit MB; write latency=5ms"),
        ("params=3MB", {}, "unknown unit MB"),
        ("size=3T", {}, "unknown unit T"),
        ("params=0.5", {}, r"is less than one; for a share write params=0\.5x"),
        ("params=0x", {}, "params=0x: asks for nothing to stay"),
        ("width=100k", {}, r"is a share of the channels; write width=0\.75"),
        ("params=0.5x", {"ranking": "local"}, "ranking local: unknown; choose from per-space, global"),
        ("params=0.5x", {"min_width": 0}, "min_width is 0, expected at least 1"),
        ("params=0.5x", {"max_cut": 1.5}, r"max_cut is 1\.5, expected a share"),
        ("params=0.5x", {"max_cut": 0.0}, "max_cut is 0, expected a share"),
    ],
)
def test_refuses_text(text, options, message):
    with pytest.raises(gs.SurgeryError, match=message):
        parse_target(text, **options)


def chain(sizes):
    """Parameters of linear layers between these spaces, from 3 inputs to 2 outputs."""
    return sum(a * b for a, b in itertools.pairwise([3, *sizes, 2]))


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(SIZES, st.floats(0.02, 0.999), st.integers(1, 9), st.sampled_from(["per-space", "global"]), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_finds_the_last_sizes_of_the_order_that_fit(sizes, share, round_to, ranking, seed):
    generator = torch.Generator().manual_seed(seed)
    lanes = [Lane(n, torch.rand(n, generator=generator).sort(descending=True).values) for n in sizes]
    target = Target("params", share, ranking=ranking, min_width=2, max_cut=0.8)
    now, asked = chain(sizes), []
    smallest = [
        min([n for n in range(round_to, size, round_to) if n >= max(2, 0.2 * size - 1e-9)] + [size]) for size in sizes
    ]

    def measure(found):
        asked.append(found)
        return chain(found)

    if chain(smallest) > target.goal(now) or target.goal(now) >= now:
        with pytest.raises(gs.SurgeryError, match=r"cannot be reached|removes nothing"):
            search(lanes, target, round_to, measure, now)
        return
    found = search(lanes, target, round_to, measure, now)
    assert chain(found) <= target.goal(now)
    assert len(asked) <= 12
    for size, new, floor in zip(sizes, found, smallest, strict=True):
        assert floor <= new <= size
        assert new % round_to == 0 or new == size
    # One space more, a step larger, is in the order's next place and does not fit.
    larger = [
        min(new + round_to, size) if new + round_to < size else size for size, new in zip(sizes, found, strict=True)
    ]
    options = [[*found[:k], larger[k], *found[k + 1 :]] for k in range(len(found)) if larger[k] > found[k]]
    assert any(chain(option) > target.goal(now) for option in options)


def test_per_space_keeps_the_same_share():
    lanes = [Lane(n) for n in (10, 20, 40)]
    found = search(lanes, Target("width", 0.5), 1, sum, 70)
    assert found == [5, 10, 20]
    assert search(lanes, Target("width", 0.5), 8, sum, 70) == [8, 8, 16]


def test_global_takes_the_channels_that_are_worth_most():
    lanes = [Lane(4, torch.tensor([4.0, 0.3, 0.2, 0.1])), Lane(3, torch.tensor([1.0, 0.9, 0.8]))]
    assert search(lanes, Target("width", 4 / 7, ranking="global", max_cut=1.0), 1, sum, 7) == [1, 3]
    assert search(lanes, Target("width", 4 / 7, ranking="global", min_width=2), 1, sum, 7) == [2, 2]
    assert search(lanes, Target("width", 6 / 7, ranking="global", max_cut=0.4), 1, sum, 7) == [3, 3]


def test_blocks_of_a_space_come_in_order():
    """Three channels are a block and the last two are one; equal means may round differently."""
    worth = torch.full((5,), 0.1, dtype=torch.float64)
    for goal in range(3, 5):
        assert search([Lane(5, worth)], Target("width", goal / 5, ranking="global"), 3, sum, 5) == [3]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            Target("width", 0.05),
            r"width=0\.05x cannot be reached: .* at least 5 channels \(0\.1x\) stay; ask for width=0\.1 ",
        ),
        (
            Target("width", 0.3, min_width=9),
            r"at least 18 channels \(0\.36x\) stay; ask for width=0\.36 or let more go",
        ),
        (Target("params", 10, relative=False, max_cut=0.5), r"params=10 cannot be reached: .* ask for params=25 "),
        (Target("width", 1.0), r"width=1x removes nothing, .* 50 channels \(1x\); the smallest cut leaves 49 channels"),
        (Target("params", 51, relative=False), r"params=51 removes nothing, the network has 50 parameters"),
    ],
)
def test_says_what_can_be_reached(target, message):
    with pytest.raises(gs.SurgeryError, match=message):
        search([Lane(10), Lane(40)], target, 1, sum, 50)


def test_what_it_says_can_be_reached_is_reached():
    lanes = [Lane(7), Lane(13)]
    with pytest.raises(gs.SurgeryError, match="ask for params=") as refusal:
        search(lanes, Target("params", 0.01), 1, chain, chain([7, 13]))
    text = str(refusal.value).split("ask for ")[1].split()[0]
    assert search(lanes, parse_target(text), 1, chain, chain([7, 13])) == [1, 2]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.sampled_from([4, 6, 9]), min_size=2, max_size=6),
    share=st.floats(0.35, 0.95),
    round_to=st.sampled_from([1, 2]),
)
def test_uniform_gives_spaces_of_one_size_one_size(sizes, share, round_to):
    """The cost is the sum of all channels; the next step of all spaces of a size would exceed it."""
    lanes = [Lane(size) for size in sizes]
    target = Target("width", share, ranking="uniform")
    now = sum(sizes)
    try:
        found = search(lanes, target, round_to, sum, now)
    except gs.SurgeryError:
        return
    assert sum(found) <= share * now + 1e-6
    assert len(dict.fromkeys(zip(sizes, found, strict=True))) == len(set(sizes))


def test_uniform_of_a_network():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)]
    graph = gs.trace(torch.nn.Sequential(*layers), torch.zeros(2, 3))
    small = gs.compress(graph, target=parse_target("params=0.62x", ranking="uniform"))
    assert len({space.size for space in small.spaces}) == 1
