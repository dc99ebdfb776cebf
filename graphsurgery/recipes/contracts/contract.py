"""One contract, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.surgery.deviation import UnlikeError

TOLERANCES: Mapping[str, float | None] = {
    "traced = eager, evaluating": 1e-12,
    "traced = eager, training": 1e-12,
    "traced = eager, other batch sizes": 1e-12,
    "traced = eager, another resolution": 1e-12,
    "concatenated = mean of two": 1e-12,
    "gates open = no gates": 1e-12,
    "gates 0 or 1 = compressed": 1e-10,
    "gates 0 or 1 = compressed, mixed spaces": None,
    "gates folded = gated": 1e-10,
    "widened = original": 1e-12,
    "widened and undone = original": 1e-12,
    "deepened = original": 1e-12,
    "factorized at full rank = original": 1e-10,
    "aligned = original": 1e-12,
    "masked = weights zeroed": 1e-12,
    "dead channels pruned = masked": 1e-10,
    "saved and loaded = original": 0.0,
    "compressed keeps its spaces": 0.0,
    "slim at width 1 = original": 1e-12,
    "slim at width w = compressed to the first channels": 1e-10,
    "ONNX Runtime = PyTorch, compressed": 1e-4,
}


@dataclass(frozen=True)
class Contract:
    """One contract of one network.

    Attributes:
        name: what should be equal to what; a key of `TOLERANCES`.
        measured: the relative deviation (of "keeps its spaces": how many were lost or won); None if not measured.
        allowed: the largest that holds; None where no equality is promised and the deviation is only stated.
        seconds: how long it took.
        refused: why graphsurgery refuses it, else empty.
        absent: why there is nothing to compare with, such as a size that the original refuses too, else empty.
        note: what a reader should know.
    """

    name: str
    measured: float | None
    allowed: float | None
    seconds: float
    refused: str = ""
    absent: str = ""
    note: str = ""

    @property
    def status(self) -> str:
        """One of `refused`, `not measured`, `stated`, `holds`, `fails`."""
        if self.refused:
            return "refused"
        if self.absent:
            return "not measured"
        if self.allowed is None:
            return "stated"
        return "holds" if self.measured is not None and self.measured <= self.allowed else "fails"


class NothingToCompareError(Exception):
    """What the contract speaks of does not exist for this network."""


def measure(name: str, deviation: Callable[[], float]) -> Contract:
    """Measure one contract; whatever goes wrong is in the result, and the other contracts are still to be tried."""
    began = time.perf_counter()
    measured: float | None = None
    refused = absent = note = ""
    try:
        measured = deviation()
    except NothingToCompareError as cause:
        absent = one_line(cause, 400)
    except UnlikeError as cause:
        measured, note = math.inf, one_line(cause, 400)
    except SurgeryError as cause:
        refused = one_line(cause, 400)
    except Exception as cause:  # an error in a pass is a finding too
        measured, note = math.inf, f"{type(cause).__name__}: {one_line(cause)}"
    return Contract(name, measured, TOLERANCES[name], time.perf_counter() - began, refused, absent, note)
