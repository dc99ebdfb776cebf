"""Rules: how each operator relates the types of what it reads and writes, a file for each kind.

Importing this package fills `graphsurgery.axes.inference.RULES`.
"""

from graphsurgery.axes.rules import (
    contraction,
    creation,
    embeddings,
    indexing,
    losses,
    movement,
    noise,
    norms,
    ordered,
    pointwise,
    reductions,
    regions,
    sequences,
    spatial,
    written,
)

from graphsurgery.axes.rules import without  # isort: skip  (last: it lists what has no rule)

__all__ = [
    "contraction",
    "creation",
    "embeddings",
    "indexing",
    "losses",
    "movement",
    "noise",
    "norms",
    "ordered",
    "pointwise",
    "reductions",
    "regions",
    "sequences",
    "spatial",
    "without",
    "written",
]
