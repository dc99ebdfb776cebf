"""The cost table, on runtimes whose costs are known, and on ONNX Runtime."""

from __future__ import annotations

import itertools

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import graphsurgery as gs
from graphsurgery.onnx.runtime.latency import Timing
from graphsurgery.onnx.runtime.profiling import TimedOperator
from graphsurgery.recipes.compression.cost_table import (
    CostTable,
    FileBench,
    SpaceCosts,
    costly,
    find_step,
    largest_step,
    measure_table,
    paired,
    quicker,
    shares_of,
)


class Blocks:
    """A runtime that computes channels in blocks: a chain of layers, each as long as its blocks in times blocks out."""

    other = 10.0

    def __init__(self, sizes, block=1):
        self.sizes, self.block = sizes, block
        names = list(sizes)
        self.pairs = {"first": (names[0],), **{f"{a}-{b}": (a, b) for a, b in itertools.pairwise(names)}}

    def time(self, operator, sizes):
        found = 1.0
        for name in self.pairs[operator]:
            found *= -(-sizes[name] // self.block) * self.block
        return found

    @property
    def whole(self):
        return {operator: self.time(operator, self.sizes) for operator in self.pairs}

    def run(self, sizes):
        return self.other + sum(self.time(operator, sizes) for operator in self.pairs)

    def shares(self, space, sizes):
        if space == "odd":
            raise gs.SurgeryError("odd: cannot be cut")
        touched = [operator for operator, names in self.pairs.items() if space in names]
        return [{o: self.time(o, {**self.sizes, space: n}) / self.whole[o] for o in touched} for n in sizes]


SIZES = {"a": 64, "b": 128, "c": 32}


def test_predicts_what_products_of_spaces_take():
    bench = Blocks(SIZES)
    table = measure_table(bench, SIZES, 8)
    assert table.microseconds({}) == pytest.approx(bench.run(SIZES))
    for sizes in ({"a": 16, "b": 32, "c": 16}, {"a": 40, "b": 88, "c": 8}, {"a": 8, "b": 128, "c": 32}):
        assert table.microseconds(sizes) == pytest.approx(bench.run({**SIZES, **sizes}))
    assert table.networks == 11
    assert set(table.as_dict()["spaces"]) == set(SIZES)


def test_what_is_not_measured_saves_nothing():
    table = measure_table(Blocks({**SIZES, "odd": 16, "few": 4}), {**SIZES, "odd": 16, "few": 4}, 8)
    assert table.unmeasured == {"odd": "odd: cannot be cut", "few": "has no multiple of 8 below its 4 channels"}
    assert table.microseconds({"odd": 8}) == table.microseconds({})
    with pytest.raises(gs.SurgeryError, match="no space of the network can be measured: odd: cannot be cut"):
        measure_table(Blocks({"odd": 16}), {"odd": 16})


def test_a_table_goes_on_from_larger_steps():
    bench = Blocks({**SIZES, "few": 16})
    first = measure_table(bench, {**SIZES, "few": 16}, 16)
    assert "few" in first.unmeasured
    table = measure_table(bench, {**SIZES, "few": 16}, 4, first)
    assert table.unmeasured == {}
    assert table.spaces["b"] is first.spaces["b"]
    assert table.microseconds({"few": 4}) == pytest.approx(bench.run({**bench.sizes, "few": 4}))


@given(
    st.lists(st.lists(st.floats(0, 3), min_size=3, max_size=3), min_size=1, max_size=3),
    st.integers(1, 40),
    st.integers(1, 40),
)
@settings(max_examples=100, deadline=None)
def test_more_channels_never_cost_less(noise, few, more):
    """However the measurements vary."""

    class Noisy:
        other = 0.0

        def __init__(self):
            self.whole = {str(number): 1.0 + number for number in range(len(noise))}

        def shares(self, _, sizes):
            return [{str(n): row[place % 3] for n, row in enumerate(noise)} for place in range(len(sizes))]

    table = measure_table(Noisy(), {"a": 40})
    few, more = sorted((few, more))
    assert 0 <= table.microseconds({"a": few}) <= table.microseconds({"a": more}) + 1e-9
    assert table.microseconds({"a": 40}) == sum(Noisy().whole.values())


@pytest.mark.parametrize("block", [1, 4, 8, 16, 32])
def test_finds_the_block_of_a_runtime(block):
    found = find_step(Blocks(SIZES | {"d": 100}, block), SIZES | {"d": 100})
    assert found.step == block
    assert found.spaces == ("a", "b", "c", "d")


def test_small_spaces_have_small_steps():
    assert find_step(Blocks({"a": 12}, 32), {"a": 12}).step == 8
    assert find_step(Blocks({"a": 2}), {"a": 2}).step == 1


def test_shares_count_what_a_cut_adds():
    times = {"conv": (10, "8"), "relu": (4, "8"), "head": (5, "2"), "gone": (1, "3")}
    whole = {name: TimedOperator(*found) for name, found in times.items()}
    times = {"conv": (4, "5"), "relu": (2, "5"), "head": (7, "2"), "reorder": (4, "5")}
    cut = {name: TimedOperator(*found) for name, found in times.items()}
    assert shares_of(whole, cut) == {"conv": pytest.approx(0.4 * 1.5), "relu": pytest.approx(0.5 * 1.5)}
    assert shares_of(whole, whole) == {}


def test_below_what_was_measured_the_line_goes_on():
    table = CostTable({"x": 100.0}, 0.0, {"a": SpaceCosts(8, (4, 6), {"x": (0.5, 0.8)})}, {}, 2, 0.0)
    assert [table.microseconds({"a": n}) for n in (8, 7, 5, 3, 1)] == pytest.approx([100, 90, 65, 37.5, 12.5])


class Net(nn.Module):
    def __init__(self, stem: int = 8, deep: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.norm = nn.BatchNorm2d(stem)
        self.deep = nn.Conv2d(stem, deep, 3, padding=1)
        self.head = nn.Linear(deep, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.deep(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("net") / "net.onnx")


def exported(path, *widths):
    torch.manual_seed(0)
    graph = gs.trace(Net(*widths).eval(), torch.empty(2, 3, 8, 8, device="meta"))
    gs.export_onnx(graph, path)
    return graph, path


def test_a_file_is_cut_where_its_spaces_are(tmp_path):
    # Wider than the blocks of 8 or 16 channels to which the runtime fills up: there a cut would change no shape.
    graph, path = exported(tmp_path / "net.onnx", 32, 64)
    bench = FileBench(path, graph, Timing(runs=3, warmup=1))
    stem, deep = (space.name for space in graph.spaces)
    (half,), (other,) = bench.shares(stem, [16]), bench.shares(deep, [32])
    assert len(half) >= 2
    assert len(other) >= 2
    assert set(half) | set(other) <= set(bench.whole)
    assert set(half) & set(other)
    assert set(half) != set(other)
    with pytest.raises(gs.SurgeryError, match=r"wide: has no counterpart in the \.onnx file"):
        bench.shares("wide", [4])


def test_operators_without_names_are_told_apart(network, tmp_path):
    graph, path = network
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "bare.onnx")
    named, bare = (FileBench(file, graph, Timing(runs=3, warmup=1)) for file in (path, tmp_path / "bare.onnx"))
    assert len(bare.whole) == len(named.whole)
    assert "" not in bare.whole
    (found,) = bare.shares(graph.spaces[0].name, [4])
    assert 0 < len(found) < len(bare.whole)


def test_spaces_of_two_forms_are_paired(network):
    graph, _ = network
    assert paired(graph, graph) == {space.name: space.name for space in graph.spaces}
    renamed = gs.trace(
        nn.Sequential(*list(Net().children())[:1], nn.ReLU(), nn.Conv2d(8, 12, 1)), torch.empty(2, 3, 8, 8)
    )
    assert paired(graph, renamed) == {}
    assert costly(graph, graph.spaces, 1) in ({"stem": 8}, {"deep": 12})


def test_noting_operators_takes_time_that_a_run_does_not_have():
    found = {"a": TimedOperator(5.0, "x"), "b": TimedOperator(1.5, "y")}
    assert {name: o.microseconds for name, o in quicker(found, 1.5).items()} == {"a": 3.5, "b": 0.1}


def test_no_step_leaves_small_spaces_without_a_choice():
    assert largest_step([16, 64, 64, 512]) == 16
    assert largest_step([2]) == 1
