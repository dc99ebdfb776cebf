"""Whole parts of quotients are divisions of integers, of the numbers that floats gave."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from graphsurgery.tracing.quotients import whole_quotient

SIZES = st.integers(1, 64)
FACTORS = st.sampled_from([2, 3, 7, 0.5, 1.5, 0.25])


def call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["value"] = target(*fx.map_arg(args, lambda source: source.meta["value"]))
    return node


def whole_part(steps: list[tuple[Any, Any]], sizes: tuple[int, int]) -> tuple[fx.GraphModule, fx.Node]:
    """`int` of a chain of products and quotients of two sizes and of written factors."""
    graph = fx.Graph()
    inputs = []
    for name, size in zip("ab", sizes, strict=True):
        inputs.append(graph.placeholder(name))
        inputs[-1].meta["value"] = size
    number = inputs[0]
    for target, factor in steps:
        number = call(graph, target, number, inputs[1] if factor is None else factor)
    result = call(graph, int, number)
    graph.output(result)
    whole_quotient(result)
    return fx.GraphModule(nn.Module(), graph), result


@settings(max_examples=200, deadline=None)
@example(
    [*[(operator.mul, 3), *[(operator.truediv, 3)] * 2], (operator.truediv, None), (operator.mul, None)],
    (3, 49),
    (3, 49),
)
@given(
    st.lists(st.tuples(st.sampled_from([operator.mul, operator.truediv]), st.none() | FACTORS), min_size=1, max_size=5),
    st.tuples(SIZES, SIZES),
    st.tuples(SIZES, SIZES),
)
def test_gives_what_floats_give(steps: list[tuple[Any, Any]], traced: tuple[int, int], sizes: tuple[int, int]) -> None:
    module, result = whole_part(steps, traced)
    exact: Any = sizes[0]
    for target, factor in steps:
        exact = target(exact, sizes[1] if factor is None else factor)
    # Where rounding decides, the integers are right, unless the floats gave another number in the trace.
    rounded = result.target is operator.floordiv and abs(exact - round(exact)) < 1e-9
    assert module(*sizes) == (round(exact) if rounded else int(exact))


def test_windows_are_counted_in_integers() -> None:
    _, result = whole_part([(operator.mul, 7), (operator.truediv, None)], (64, 8))
    assert result.target is operator.floordiv


@pytest.mark.parametrize("factor", [1 / 3, -0.5, 0.0])
def test_other_factors_stay(factor: float) -> None:
    _, result = whole_part([(operator.mul, factor)], (64, 8))
    assert result.target is int
