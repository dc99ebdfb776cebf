"""Rules: how each operator relates the types of what it reads and writes, a file for each kind.

Importing this package fills `graphsurgery.axes.inference.RULES`.
"""

from graphsurgery.axes.rules import (
    contraction,
    creation,
    losses,
    movement,
    noise,
    norms,
    places,
    pointwise,
    reductions,
    sequences,
    spatial,
)

from graphsurgery.axes.rules import without  # isort: skip  (last: it lists what has no rule)

__all__ = [
    "contraction",
    "creation",
    "losses",
    "movement",
    "noise",
    "norms",
    "places",
    "pointwise",
    "reductions",
    "sequences",
    "spatial",
    "without",
]
