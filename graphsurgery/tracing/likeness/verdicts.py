"""What a trace may differ in from its module, and what is said where it differs in more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from graphsurgery.errors import TraceError
from graphsurgery.tracing.following.gradients import MOST_APART, Slope

_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4}
_COARSE = 5e-2
"""What may differ, as a share of the largest value, in float64, in float32, and in any other precision."""
_NOISE = 20.0
"""Networks that amplify: where a nudge of every number moves an output, it may differ by so many times as much."""
_LITTLE = 1e-6
"""What a gradient may have of the largest and count as none."""


class UnlikeModuleError(TraceError):
    """A trace computes something else than its module."""


class Verdicts:
    """Says where a trace differs from its module.

    Args:
        name: of the module, for the message.
        dtype: its precision, which says what is rounding.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype

    def outputs(
        self, found: list[Tensor], expected: list[Tensor], where: str, nudged: Callable[[], list[Tensor]]
    ) -> None:
        """Refuse outputs that differ by more than rounding."""
        shapes = [[list(t.shape) for t in outputs] for outputs in (found, expected)]
        if shapes[0] != shapes[1]:
            raise UnlikeModuleError(f"{self.name}: {where} its trace gives {shapes[0]}, the model {shapes[1]}")
        allowed = _ROUNDING.get(self.dtype, _COARSE)
        apart = farthest(found, expected)
        if apart <= allowed:
            return
        amplified = farthest(nudged(), expected)
        if not apart <= _NOISE * amplified:
            raise UnlikeModuleError(
                f"{self.name}: {where} its trace differs from the model by {apart:.1e} of the largest value, allowed "
                f"{max(allowed, _NOISE * amplified):.0e}"
            )

    def second_call(self, found: list[Tensor], expected: list[Tensor], first: float) -> None:
        """Refuse a trace that has not kept of the first call what the module has, in a buffer or in an attribute.

        Args:
            found: what the trace gives when it is called again.
            expected: the same of the module.
            first: how far they were apart at the first call.
        """
        apart = farthest(found, expected)
        allowed = max(_ROUNDING.get(self.dtype, _COARSE), 10 * first)
        if not apart <= allowed:
            raise UnlikeModuleError(
                f"{self.name}: called again its trace differs from the model by {apart:.1e} of the largest value, "
                f"allowed {allowed:.0e}; the model keeps something from one call to the next"
            )

    def gradients(self, found: list[Slope], expected: list[Slope], nudged: list[Slope], names: list[str]) -> None:
        """Refuse gradients that differ by more than they do when every number is moved a little."""
        scale = max((slope.norm for slope in expected), default=0.0)
        for name, own, slope, moved in zip(names, found, expected, nudged, strict=True):
            if (own.norm > 0) != (slope.norm > 0) and max(own.norm, slope.norm) > _LITTLE * scale:
                has, model = ("no", "one") if slope.norm > 0 else ("a", "none")
                raise UnlikeModuleError(
                    f"{self.name}: in training {name} has {has} gradient in its trace, and {model} in the model"
                )
            allowed = max(MOST_APART * max(slope.norm, 1e-3 * scale), _NOISE * moved.apart(slope))
            if math.isfinite(slope.norm) and not own.apart(slope) <= allowed:
                raise UnlikeModuleError(
                    f"{self.name}: in training the gradient of {name} differs in its trace by {own.apart(slope):.2g}, "
                    f"its norm in the model is {slope.norm:.3g}"
                )


def farthest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """How far the outputs that differ most are apart."""
    return max((_apart(f, e) for f, e in zip(found, expected, strict=False)), default=0.0)


def _apart(found: Tensor, expected: Tensor) -> float:
    """`max |found - expected| / max |expected|`; what is not finite in both in the same way does not count."""
    if found.numel() == 0:
        return 0.0
    a, b = found.double().cpu(), expected.double().cpu()
    odd = ~(a.isfinite() & b.isfinite())
    if bool(odd.any()):
        if not torch.equal(a[odd].nan_to_num(1e300), b[odd].nan_to_num(1e300)):
            return math.inf
        a, b = a[~odd], b[~odd]
        if not a.numel():
            return 0.0
    difference, scale = float((a - b).abs().max()), float(b.abs().max())
    return 0.0 if difference == 0 else difference / scale if scale > 0 else math.inf
