"""What stands in the cores of detectors besides ordinary layers: boundaries between their parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphsurgery.facts import TensorType
from graphsurgery.inference import Inference, rule
from graphsurgery.layers import Boundary


@rule(Boundary)
def boundary(infer: Inference, x: Any) -> Any:  # noqa: ARG001
    """A tensor, or a dict of tensors, keeps its type."""
    if isinstance(x, Mapping):
        return {key: TensorType(typed.axes) for key, typed in x.items()}
    return TensorType(x.axes)
