"""Cuts to a latency, on files whose times are known."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.onnx.runtime.latency import Latency, Pair, Timing
from graphsurgery.passes.compress import compress
from graphsurgery.recipes.compression.shrink import Cut, removal
from graphsurgery.recipes.compression.to_latency import Promise, cut_to_latency, measure_promise, require_kept
from graphsurgery.surgery.channels.targets import Target, parse_target
from tests.listening import told

OPERATORS = {"0": ("0",), "1": ("0", "1"), "2": ("1",)}
WHOLE = {name: 64.0 ** len(spaces) for name, spaces in OPERATORS.items()}


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return gs.trace(
        nn.Sequential(nn.Conv2d(1, 64, 1), nn.Conv2d(64, 64, 1), nn.Flatten(), nn.Linear(64, 3)),
        torch.empty(2, 1, 1, 1),
    )


class Bench:
    """Operators that take as long as the products of the channels that they touch."""

    other = 0.0

    def __init__(self, block=1):
        self.block = block
        self.whole = WHOLE

    def shares(self, space, sizes):
        rounded = [-(-size // self.block) * self.block for size in sizes]
        return [{name: n / 64 for name, spaces in OPERATORS.items() if space in spaces} for n in rounded]


class Files:
    """Whole files that take another power of what the operators take, and vary by a share."""

    original = None

    def __init__(self, power=1.0, spread=0.01):
        self.power, self.spread, self.timings = power, spread, []

    def timed(self, small, timing):
        self.timings.append(timing)
        sizes = {name: after for name, (_, after) in removal(small)["sizes"].items()}
        products = [torch.tensor([sizes[s] / 64 for s in spaces]).prod() for spaces in OPERATORS.values()]
        whole = sum(WHOLE.values())
        ratio = float(sum(w * p for w, p in zip(WHOLE.values(), products, strict=True)) / whole) ** self.power
        return pair(ratio, self.spread)


def pair(ratio, spread=0.01, before=4.0):
    def latency(median):
        return Latency(median, 0.1, 50, 1, 1, median * (1 - spread), median * (1 + spread))

    return Pair(latency(before), latency(before * ratio), ratio, ratio * (1 - spread), ratio * (1 + spread))


def cut(graph, target, files, block=1, **options):
    plan = Cut(target=parse_target(target, min_width=2))
    return cut_to_latency(graph, plan, files, Timing(), bench=lambda: Bench(block), **options)


@pytest.mark.parametrize("power", [0.7, 1.0, 1.8])
@pytest.mark.parametrize("target", ["latency=0.5x", "latency=2ms"])
def test_finds_the_widths_that_keep_the_promise(graph, power, target):
    small, found = cut(graph, target, Files(power), auto_step=False)
    assert found.promise.kept
    assert 0.44 <= found.promise.pair.ratio <= 0.5
    assert len(found.attempts) <= 6
    assert json.dumps(found.as_dict())
    assert all(after < before for before, after in removal(small)["sizes"].values())


def test_the_search_says_what_it_does(graph):
    with told() as phases:
        _, found = cut(graph, "latency=0.4x", Files(), block=16)
        measure_promise(parse_target("latency=0.4x"), partial(Files().timed, _), Timing())
    names = [name for name, _ in phases]
    assert names[:2] == ["finding the step that the runtime rewards, spaces", "measuring spaces"]
    tries = [name for name in names if name.startswith("trying cut")]
    assert tries == [f"trying cut {number} of at most 10" for number in range(1, len(found.attempts) + 1)]
    assert names[-1] == "measuring the promise"
    assert dict(phases)["measuring spaces"] == (2, 2)  # each is a step


def test_widths_are_multiples_of_what_is_rewarded(graph):
    small, found = cut(graph, "latency=0.4x", Files(), block=16)
    assert (found.steps.step, found.plan.round_to) == (16, 16)
    assert all(after % 16 == 0 for _, after in removal(small)["sizes"].values())


def test_a_smaller_step_is_taken_where_the_large_one_does_not_reach(graph):
    small, found = cut(graph, "latency=0.02x", Files(), block=16)
    assert (found.steps.step, found.plan.round_to) == (16, 8)
    assert [after for _, after in removal(small)["sizes"].values()] == [8, 8]


def test_the_table_is_not_the_judge(graph):
    """It says that more than a tenth stays at the least widths; whole files reach a tenth before."""
    plan = Cut(target=Target("latency", 0.1, min_width=30, max_cut=0.99))
    small, found = cut_to_latency(graph, plan, Files(4.0), Timing(), bench=Bench)
    assert found.promise.kept
    assert found.attempts[0][0] > 0.2
    assert all(30 < after < 64 for _, after in removal(small)["sizes"].values())


def test_what_is_never_fast_enough_fails(graph):
    with pytest.raises(
        gs.CheckFailedError, match=r"none keeps the promise, the fastest: latency=0\.5x not kept: .* 0\.\d+x"
    ):
        cut(graph, "latency=0.5x", Files(0.05))


class Kernels(Files):
    """Whole files on a runtime that has a slow kernel for some widths, slower than the original."""

    def timed(self, small, timing):
        sizes = [after for _, after in removal(small)["sizes"].values()]
        found = super().timed(small, timing)
        return pair(1.4, self.spread) if any(40 < size < 60 for size in sizes) else found


def test_a_cut_that_is_slower_than_the_original_is_not_believed(graph):
    """The widths above the slow ones are as good as before: 40 channels are left, not two."""
    small, found = cut(graph, "latency=0.6x", Kernels(), auto_step=False)
    assert found.promise.kept
    assert max(ratio for _, ratio in found.attempts) == 1.4
    assert [after for _, after in removal(small)["sizes"].values()] == [40, 40]
    assert found.missed == (
        f"the search failed by {found.promise.spare:.0%}: so much of latency=0.6x is left, as none of "
        f"{len(found.attempts)} cuts came closer from below"
    )
    assert found.promise.spare > 0.3


@pytest.mark.parametrize("asked", [0.3, 0.45, 0.6, 0.8])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.5])
def test_ends_within_five_percent_below_or_says_how_far(graph, asked, power):
    small, found = cut(graph, f"latency={asked}x", Files(power), auto_step=False)
    assert found.promise.kept
    assert (found.promise.spare > 0.05) == bool(found.missed)
    assert found.promise.spare <= 0.09  # one channel of one space is up to six percent of the time at this power
    kept = [predicted for predicted, ratio in found.attempts if ratio * 1.01 <= 0.98 * asked]
    most = found.table.microseconds({name: after for name, (_, after) in removal(small)["sizes"].items()})
    assert most / found.table.microseconds({}) == pytest.approx(max(kept))


def test_smaller_steps_are_tried_where_the_rewarded_ones_come_not_near(graph):
    """Between 48 and 64 channels of both spaces the target lies well above the first."""
    _, found = cut(graph, "latency=0.7x", Files(), block=16)
    assert found.steps.step == 16
    assert found.plan.round_to == 8
    assert not found.missed


class Slow(Bench):
    """A run has a fixed cost beside its operators."""

    other = 10 * sum(WHOLE.values())


def test_what_no_cut_can_save_is_told(graph):
    plan = Cut(target=Target("latency", 0.5))
    with pytest.raises(gs.CheckFailedError, match=r"\(91% of the time is spent outside operators and cannot be cut\)"):
        cut_to_latency(graph, plan, Files(0.05), Timing(), bench=Slow)


def test_a_promise_is_kept_by_the_whole_interval():
    target = Target("latency", 0.5)
    assert Promise(target, pair(0.49)).kept
    close = Promise(target, pair(0.499))
    assert (close.kept, close.undecided) == (False, True)
    far = Promise(target, pair(0.6))
    assert (far.kept, far.undecided) == (False, False)
    assert str(far).startswith("latency=0.5x not kept: 2.4 ms [2.376, 2.424] after 4 ms")
    assert Promise(Target("latency", 2.0, relative=False), pair(0.49)).kept
    with pytest.raises(gs.CheckFailedError, match=r"latency=0\.5x not kept: .*nothing is written"):
        require_kept(far)


def test_what_is_undecided_is_measured_longer(graph):
    small = compress(graph, 0.7)
    files = Files()
    ratio = files.timed(small, Timing()).ratio
    files.timings.clear()
    measure_promise(Target("latency", ratio * 2), partial(files.timed, small), Timing(runs=20))
    assert [timing.runs for timing in files.timings] == [20]
    measure_promise(Target("latency", ratio), partial(files.timed, small), Timing(runs=20))
    assert [timing.runs for timing in files.timings] == [20, 20, 80]


def test_refuses_what_is_no_latency(graph):
    with pytest.raises(gs.SurgeryError, match=r"give one such as latency=0\.5x"):
        cut(graph, "macs=0.5x", Files())
    with pytest.raises(gs.SurgeryError, match="conv9 is not a space"):
        cut_to_latency(
            graph, Cut(target=parse_target("latency=0.5x"), spaces={"conv9": 3}), Files(), Timing(), bench=Bench
        )
