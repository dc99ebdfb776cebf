"""Align: the channels of a network in the order of another one's, so that their weights can be averaged."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.progress import phase
from graphsurgery.surgery.gates import has_gates
from graphsurgery.surgery.merging.alignment import alignment
from graphsurgery.surgery.remapping.remap import remap


@phase("aligning channels")
def align(graph: ModelGraph, like: ModelGraph, examples: Iterable[Tensor] | None = None) -> ModelGraph:
    """Put the channels of every space in the order in which they are most like those of another network.

    Heads and groups are matched as wholes, then what is inside of each. Spaces whose channels have a meaning each
    (`Space.positions`) stay as they are.

    Args:
        graph: typed network; it is not modified.
        like: a network of the same topology and sizes, such as one trained from other random weights.
        examples: batches of inputs `[batch, ...]`, on which activations are compared; some hundred are enough. Without
            any, the weights are compared: that needs no data, and matches less well.

    Returns:
        A new network with the same outputs (float64: relative 1e-12).

    Raises:
        SurgeryError: topologies or sizes differ, one has gates, or `examples` has none.

    Source: Ainsworth et al., "Git Re-Basin", arXiv:2209.04836; for activations Li et al., arXiv:1511.07543.
    """
    if has_gates(graph) or has_gates(like):
        raise SurgeryError("align: a network has gates; fold or compress it first")
    for each in (graph, like):
        each.check_values("align")
    maps = alignment(graph, like, examples)
    return remap(graph, maps, {"pass": "align", "by": "weights" if examples is None else "activations"})
