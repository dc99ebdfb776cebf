"""The search for the largest share that is fast enough, on times that are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphsurgery.recipes.compression.bracket import NEAR, Bracket, Trial


def searched(time, allowed, least=0.01, most=12):
    """What a search finds where a share takes so long, the whole network 1."""
    bracket = Bracket(time(1.0) / allowed, least)
    for share in bracket.shares():
        bracket.trials.append(Trial(share, time(share) / allowed))
        if len(bracket.trials) == most:
            break
    return bracket


@given(
    power=st.floats(0.3, 4),
    fixed=st.floats(0, 0.4),
    step=st.sampled_from([0, 1 / 32, 1 / 8]),
    room=st.floats(0.15, 0.9),
)
def test_ends_near_what_is_allowed_or_at_the_last_step_below_it(power, fixed, step, room):
    """Times that cost something fixed, follow any power, and come in steps."""

    def time(share):
        rounded = -(-share // step) * step if step else share
        return fixed + (1 - fixed) * min(rounded, 1.0) ** power

    allowed = fixed + (1 - fixed) * room
    found = searched(time, allowed, most=40)
    best = found.best
    assert all(0 < trial.share <= 1 for trial in found.trials)
    if best is None:
        assert time(found.least) > 0.98 * allowed
    elif best.part < NEAR:
        assert time(best.share * 1.003) > 0.98 * allowed
    else:
        assert len(found.trials) <= 40


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_times_that_are_a_power_take_three_measurements(power):
    found = searched(lambda share: share**power, 0.6)
    assert len(found.trials) <= 3
    assert 0.95 <= found.best.part <= 0.98


def test_what_is_slower_than_the_whole_is_too_slow_and_says_no_more():
    """Widths from a half to nine tenths meet a kernel that is slower than the whole network."""

    def time(share):
        return 1.3 if 0.5 < share < 0.9 else share

    found = searched(time, 0.6)
    assert 0.48 <= found.best.share <= 0.5
    assert found.best.part > 0.78
    assert found.trials[0].part > 1 / 0.6


def test_one_wrong_measurement_does_not_move_the_search_down():
    """The first cut is measured twenty times too slow, as on a busy machine; what is faster above it counts."""
    wrong = iter([20.0])
    found = searched(lambda share: share * next(wrong, 1.0) if share < 1 else 1.0, 0.6, most=20)
    assert found.best.share < 0.6  # below the wrong one
    assert found.best.share > 0.95 * found.trials[0].share
    again = Bracket(1 / 0.6, 0.01, [Trial(0.4, 1.5), Trial(0.5, 0.5 / 0.6)])
    assert again.slow == Trial(1.0, 1 / 0.6)
    share = next(again.shares())
    assert 0.55 < share < 0.6


def test_ends_where_the_least_is_too_slow():
    found = searched(lambda share: 0.9 + 0.1 * share, 0.5)
    assert found.best is None
    assert len(found.trials) <= 3
    assert found.trials[-1].share == 0.01
