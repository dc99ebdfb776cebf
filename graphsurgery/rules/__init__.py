"""Rules: how each operator relates the types of what it reads and writes, a file for each kind.

Importing this package fills `graphsurgery.inference.RULES`.
"""

from graphsurgery.rules import attention, contraction, indexing, movement, norms, pointwise, spatial

__all__ = ["attention", "contraction", "indexing", "movement", "norms", "pointwise", "spatial"]
