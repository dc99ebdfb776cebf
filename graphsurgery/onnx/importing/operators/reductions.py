"""What sums up, orders or counts along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphsurgery.onnx.importing.operators.registry import (
    OPERATORS,
    SIZES_AT,
    UnlikeTorchError,
    Value,
    rank,
    rule,
)
from graphsurgery.onnx.importing.program import Operator
from graphsurgery.onnx.importing.sizes import Sizes, axes_of, number

_REDUCTIONS: dict[str, Callable[[Any, tuple[int, ...], bool], Any]] = {
    "ReduceMean": lambda x, dims, keep: x.mean(dims, keepdim=keep),
    "ReduceSum": lambda x, dims, keep: x.sum(dims, keepdim=keep),
    "ReduceMax": lambda x, dims, keep: x.amax(dims, keepdim=keep),
    "ReduceMin": lambda x, dims, keep: x.amin(dims, keepdim=keep),
    "ReduceSumSquare": lambda x, dims, keep: (x * x).sum(dims, keepdim=keep),
    "ReduceL1": lambda x, dims, keep: x.norm(1, dims, keepdim=keep),
    "ReduceL2": lambda x, dims, keep: x.norm(2, dims, keepdim=keep),
    "ReduceProd": lambda x, dims, keep: _product(x, dims, keep),
    "ReduceLogSum": lambda x, dims, keep: torch.log(x.sum(dims, keepdim=keep)),
    "ReduceLogSumExp": lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep),
}

_SAME_OF_ONE = frozenset(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"))
"""What is the number itself where there is one."""


def _product(x: Value, dims: tuple[int, ...], keep: bool) -> Value:
    for dim in sorted(dims, reverse=True):  # torch multiplies along one axis at a time
        x = x.prod(dim, keepdim=keep)
    return x


def _reduction(operator: Operator, x: Value, given: Sizes | None = None) -> Value:
    axes, noop = axes_of(operator, given), operator.attributes.get("noop_with_empty_axes", 0)
    if not axes:
        if noop:
            if operator.kind not in _SAME_OF_ONE:
                raise UnlikeTorchError("a reduction of each number by itself")
            return x
        axes = tuple(range(rank(x)))
    dims = tuple(axis % rank(x) for axis in axes)
    return _REDUCTIONS[operator.kind](x, dims, bool(operator.attributes.get("keepdims", 1)))


OPERATORS.update(dict.fromkeys(_REDUCTIONS, _reduction))
SIZES_AT.update(dict.fromkeys(_REDUCTIONS, (1,)))


@rule("ArgMax", "ArgMin")
def _arg_extreme(operator: Operator, x: Value) -> Value:
    if operator.attributes.get("select_last_index"):
        raise UnlikeTorchError("the last of equal indices")
    function = torch.argmax if operator.kind == "ArgMax" else torch.argmin
    return function(x, operator.attributes.get("axis", 0), keepdim=bool(operator.attributes.get("keepdims", 1)))


@rule("TopK")
def _top_k(operator: Operator, x: Value, k: Sizes) -> Value:
    given = operator.attributes
    largest, ordered = bool(given.get("largest", 1)), bool(given.get("sorted", 1))
    axis = given.get("axis", -1)
    if not ordered:
        found = torch.topk(x, number(k), axis, largest, ordered)
        return found[0], found[1]
    # Of equal numbers the first comes first, which topk does not promise.
    values, indices = torch.sort(x, stable=True, dim=axis, descending=largest)
    return values.narrow(axis, 0, number(k)), indices.narrow(axis, 0, number(k))


@rule("CumSum")
def _cum_sum(operator: Operator, x: Value, axis: Sizes) -> Value:
    if operator.attributes.get("exclusive") or operator.attributes.get("reverse"):
        raise UnlikeTorchError("a running sum that is exclusive or reversed")
    return torch.cumsum(x, number(axis))
