"""Times of files: intervals, pairs, runs that something else has interrupted, and times of single operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from graphsurgery.errors import SurgeryError
from graphsurgery.onnx.runtime import latency
from graphsurgery.onnx.runtime.latency import Timing, interval, measure_latency, measure_pair, random_feed
from graphsurgery.onnx.runtime.profiling import profile
from graphsurgery.onnx.runtime.sessions import open_session
from tests.listening import told
from tests.onnx_files import written


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two products with weights of 3 and 5 columns, with a free middle axis, and their sum over the last."""
    folder = tmp_path_factory.mktemp("files")
    found = []
    for columns in (3, 5):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
            helper.make_node("ReduceSum", ["y", "axes"], ["z"], "sum"),
        ]
        constants = {"w": np.ones((4, columns), np.float32), "axes": np.array([2])}
        found.append(written(folder / f"{columns}.onnx", nodes, {"x": [None, None, 4]}, ["z"], constants))
    return found


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_the_interval_holds_the_median(values):
    low, high = interval(values)
    assert min(values) <= low <= np.median(values) <= high <= max(values)
    assert interval(values[::-1]) == (low, high)


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        low, high = interval(list(generator.exponential(size=50)))
        inside += low <= np.log(2) <= high
    assert inside >= 0.93 * 400


def test_a_pair_is_timed_in_turn(files):
    pair = measure_pair(*files, Timing(batch=2, runs=9, warmup=1), [(7, 4)])
    assert (pair.before.runs, pair.after.batch, pair.after.threads, pair.after.warmup) == (9, 2, 1, 1)
    assert 0 < pair.low <= pair.ratio <= pair.high
    assert pair.after.low <= pair.after.median <= pair.after.high


def test_every_turn_is_a_step_that_is_shown(files):
    with told() as phases:
        measure_pair(*files, Timing(runs=4, warmup=2), [(7, 4)])
        profile([onnx.load(file) for file in files], Timing(warmup=2), [(7, 4)], seconds=0.001)
    (timing, turns), (profiling, (done, total)) = phases
    assert (timing, turns) == ("timing in ONNX Runtime, runs", (6, 6))
    assert (profiling, done) == ("timing operators in ONNX Runtime, runs", total)


def test_free_axes_need_a_shape(files):
    with pytest.raises(SurgeryError, match="only the batch may be free"):
        measure_latency({"a": files[0]})
    assert measure_latency({"a": files[0]}, runs=3, shapes=[(7, 4)])["a"].runs == 3


def test_an_input_without_a_batch_keeps_its_first_axis(tmp_path):
    """Whole shapes say so; those of one example have the batch in front."""
    nodes = [
        helper.make_node("ReduceMean", ["states", "axes"], ["mean"]),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    path = written(tmp_path / "f.onnx", nodes, {"x": [None, 4], "states": [None, 4]}, ["y"], {"axes": np.array([0])})
    session = open_session(path, threads=1)
    for shapes, states in (([(3, 4), (5, 4)], (5, 4)), ([(4,), (4,)], (3, 4)), ([], (3, 4))):
        feed = random_feed(session, 3, str(path), shapes)
        assert (feed["x"].shape, feed["states"].shape) == ((3, 4), states)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 0}, "found 0 runs of batch 1, expected at least 1 of each"),
        ({"batch": 0}, "found 50 runs of batch 0"),
        ({"threads": 0}, "found 0 threads and 5 runs to warm up"),
        ({"warmup": -1}, "found 1 threads and -1 runs to warm up"),
    ],
)
def test_refuses_a_timing(options, message):
    with pytest.raises(SurgeryError, match=message):
        Timing(**options)


class Clock:
    """A machine on which the runs named in `waits` are interrupted for a second."""

    def __init__(self, waits):
        self.wall = self.work = 0.0
        self.waits, self.count = waits, 0

    def run(self, *_):
        self.count += 1
        self.work += 0.1
        self.wall += 1.1 if self.count in self.waits else 0.1

    def sleep(self, seconds):
        self.wall += seconds


@pytest.mark.parametrize(
    ("waits", "threads", "milliseconds", "runs"),
    [(set(), 1, 100, 1), ({1, 2}, 1, 100, 3), (set(range(9)), 1, 1100, 6), ({1}, 2, 1100, 1)],
)
def test_an_interrupted_run_is_repeated(monkeypatch, waits, threads, milliseconds, runs):
    clock = Clock(waits)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock.wall)
    monkeypatch.setattr(latency.time, "thread_time", lambda: clock.work)
    monkeypatch.setattr(latency.time, "sleep", clock.sleep)
    found = latency._undisturbed(clock, {}, latency._TRIES, threads)
    assert found.milliseconds == pytest.approx(milliseconds)
    assert found.interrupted == (milliseconds > 100 and threads == 1)
    assert clock.count == runs


def test_a_profile_has_every_operator_and_its_shapes(files):
    small, large = profile([onnx.load(file) for file in files], Timing(batch=2, warmup=2), [(7, 4)], seconds=0.001)
    assert set(small) == set(large) == {"product", "sum"}
    assert "[2, 7, 3]" in small["product"].shapes
    assert "[2, 7, 5]" in large["product"].shapes
    assert all(operator.microseconds >= 0 for operator in small.values())


def test_a_profile_of_what_does_not_run(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    file = written(tmp_path / "m.onnx", [node], {"x": [None, None]}, ["y"], {"w": np.ones((4, 3), np.float32)})
    with pytest.raises(SurgeryError, match="profile: ONNX Runtime cannot run the network"):
        profile([onnx.load(file)], Timing(), [(7,)])
