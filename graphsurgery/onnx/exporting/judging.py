"""How far an output is off, measured by how much that output varies and by what rounding does to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_SHARE = 0.01
"""A part of an output counts as varying by at least this share of what the whole output varies by."""
_ROUNDINGS = 10
"""An output may be off by as many times as much as rounding was seen to change it."""
_LEAST_ROUNDING = 0.3
"""Rounding shows by chance, so that a part of an output is taken to have at least this share of what the whole has."""
_CONSTANT = 8 * torch.finfo(torch.float32).eps
"""What varies by no more of its magnitude is constant."""
_BLURRED = 0.5
"""Where rounding makes up this share of what an output varies by, nothing can be said of the output."""

EFFORTS = 4
"""Ways to see what rounding does, the quickest first."""

CONSTANT = "the same on all inputs"
BLURRED = "changed by rounding as much as by the inputs"
NOT_FINITE = "not finite on any input"


@dataclass(frozen=True, eq=False)
class FedOutput:
    """One output on one feed.

    Attributes:
        label: of the feed.
        found, expected: what ONNX Runtime gives and what PyTorch gives, of one shape.
        batch: number of examples of the feed.
        rounding: how far apart the values of this output are when only the rounding differs, after so many of the
            `EFFORTS` ways to see it; asked for where a comparison needs it, and for the next one where that explains
            too little.
    """

    label: str
    found: Tensor
    expected: Tensor
    batch: int
    rounding: Callable[[int], Tensor]


@dataclass(frozen=True)
class Judgement:
    """What was found of one output on the feeds of one group.

    Attributes:
        deviations: by the label of the feed, the difference relative to what the output varies by; where rounding
            alone explains a difference, it is at most what is allowed.
        untested: why the output says nothing on these feeds; empty where it does.
    """

    deviations: dict[str, float]
    untested: str = ""


def judge(runs: Sequence[FedOutput], rtol: float) -> Judgement:
    """Compare one output on feeds of one kind.

    The scale of a difference is how much the output varies from example to example, at the place of the difference:
    along every axis but the batch, the part of the output that lies at that index, so that scores beside boxes in
    pixels are measured by scores. Where that is too strict because rounding alone does more, rounding is the scale.

    Args:
        runs: the output on each feed.
        rtol: allowed difference, as a share of what the output varies by; 0 asks for equal numbers.
    """
    whole = _aligned([run.expected for run in runs], [run.batch for run in runs])
    differences = _aligned([_difference(run.found, run.expected) for run in runs], [run.batch for run in runs])
    expected = torch.cat(whole)
    finite = expected.isfinite()
    if expected.numel() and not bool(finite.any()):
        return Judgement(_by_label(runs, [float(d.max()) for d in differences]), NOT_FINITE)
    variation = _variation(expected, finite)
    magnitude = float(expected[finite].abs().max()) if expected.numel() else 0.0
    exact = not runs[0].expected.is_floating_point()
    constant = not expected.numel() or float(variation.max()) <= (0 if exact else _CONSTANT * magnitude)
    scale = torch.full_like(variation, magnitude) if constant else _by_part(variation, _LEAST_SHARE)
    untested = CONSTANT if constant else ""
    largest = [d.amax(0) for d in differences]
    deviations = [_ratio(d, scale) for d in largest]
    effort = 0
    while rtol > 0 and effort < EFFORTS and any(float(ratio.max()) > rtol for ratio in deviations if ratio.numel()):
        effort += 1
        rounding = torch.cat(_aligned([run.rounding(effort) for run in runs], [run.batch for run in runs]))
        allowed = _ROUNDINGS * _by_part(rounding.amax(0), _LEAST_ROUNDING)
        if not constant and float(allowed.max()) > _BLURRED * float(variation.max()):
            untested = BLURRED
        deviations = [
            torch.where(d <= allowed, ratio.clamp(max=rtol), ratio)
            for d, ratio in zip(largest, deviations, strict=True)
        ]
    return Judgement(_by_label(runs, [float(d.max()) if d.numel() else 0.0 for d in deviations]), untested)


def worst_example(found: Sequence[Tensor], expected: Sequence[Tensor], size: int) -> int:
    """The index of the example whose outputs lie furthest apart, each output by what it varies by."""
    apart = torch.zeros(size, dtype=torch.float64)
    for a, b in zip(found, expected, strict=True):
        if b.dim() and len(b) == size and b.numel():
            values = b.double()
            variation = _variation(values, values.isfinite())
            scale = variation.max() if float(variation.max()) > 0 else values.abs().max()
            apart = torch.maximum(apart, _difference(a, b).reshape(size, -1).amax(1) / scale.clamp(min=1e-30))
    return int(apart.argmax())


def _by_label(runs: Sequence[FedOutput], deviations: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for run, value in zip(runs, deviations, strict=True):
        found[run.label] = max(found.get(run.label, 0.0), value)
    return found


def _aligned(tensors: Sequence[Tensor], batches: Sequence[int]) -> list[Tensor]:
    """The same tensors as float64 `[examples, ...]` of one inner shape."""
    values = [t.detach().cpu().double() for t in tensors]
    inner = {tuple(t.shape[1:]) for t in values}
    if all(t.dim() and len(t) == batch for t, batch in zip(values, batches, strict=True)) and len(inner) == 1:
        return values
    if len({tuple(t.shape) for t in values}) == 1 and len(values) > 1:
        return [t[None] for t in values]
    return [t.reshape(-1) for t in values]  # as long as it may be: all its numbers are examples of one


def _difference(found: Tensor, expected: Tensor) -> Tensor:
    """Element by element; equal infinities and two that are not a number do not differ."""
    a, b = found.detach().cpu().double(), expected.detach().cpu().double()
    same = (a == b) | (a.isnan() & b.isnan())
    return (a - b).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).masked_fill(same, 0.0)


def _variation(values: Tensor, finite: Tensor) -> Tensor:
    """The range over the examples at every place, of the finite values."""
    if not len(values):
        return values.new_zeros(values.shape[1:])
    low = values.masked_fill(~finite, torch.inf).amin(0)
    high = values.masked_fill(~finite, -torch.inf).amax(0)
    return (high - low).clamp(min=0)


def _by_part(values: Tensor, least: float) -> Tensor:
    """At every place the largest value of the smallest part that it lies in: one index of an axis, all of the others.

    Args:
        values: for one example.
        least: the result is at least this share of the largest value.
    """
    if not values.numel():
        return values
    found = torch.full_like(values, float(values.max()))
    for axis in range(values.dim()):
        others = [other for other in range(values.dim()) if other != axis]
        part = values.amax(others, keepdim=True) if others else values
        found = torch.minimum(found, part)
    return found.clamp(min=least * float(values.max()))


def _ratio(difference: Tensor, scale: Tensor) -> Tensor:
    """0 for no difference; infinite where there is one and nothing to measure it by."""
    return torch.where(difference == 0, torch.zeros_like(difference), difference / scale)
