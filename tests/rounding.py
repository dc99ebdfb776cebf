"""What may differ where the same function is computed in another order."""

from collections.abc import Mapping
from typing import Any

import pytest


def alike(metrics: Mapping[str, float], examples: int) -> dict[str, Any]:
    """The metrics of a network, as those of another form of it have to be, in float32 on any processor.

    Kernels add in the order that suits the processor, and each sum is rounded: outputs differ by some 1e-7, and an
    example that lies on the border of two classes may fall on the other side.

    Args:
        metrics: of one form; accuracies are compared up to one example, all others to a relative 1e-4.
        examples: on how many they were measured.
    """
    return {
        name: pytest.approx(value, abs=1.5 / examples) if name == "accuracy" else pytest.approx(value, rel=1e-4)
        for name, value in metrics.items()
    }
