"""The networks of the papers: what `paper/NAME` can build."""

from graphsurgery.models.paper.table import PAPER_NETWORKS

__all__ = [
    "PAPER_NETWORKS",
]
