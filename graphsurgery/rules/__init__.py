"""Rules: how each operator relates the types of what it reads and writes, a file for each kind.

Importing this package fills `graphsurgery.inference.RULES`.
"""

from graphsurgery.rules import (
    attention,
    contraction,
    creation,
    detection,
    einsum,
    indexing,
    movement,
    norms,
    ordered,
    pointwise,
    recurrent,
    reductions,
    spatial,
)

__all__ = [
    "attention",
    "contraction",
    "creation",
    "detection",
    "einsum",
    "indexing",
    "movement",
    "norms",
    "ordered",
    "pointwise",
    "recurrent",
    "reductions",
    "spatial",
]
