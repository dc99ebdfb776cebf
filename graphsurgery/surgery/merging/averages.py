"""What a merge is compared with: the plain average of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphsurgery.axes.maps import Edit
from graphsurgery.axes.types import ParameterType
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.values.dtypes import holds_numbers
from graphsurgery.surgery.merging.matching import match_nodes, match_parameters
from graphsurgery.surgery.remapping.remap import rebuild


def average(graphs: Sequence[ModelGraph], weights: Sequence[float] | None = None) -> ModelGraph:
    """A network whose every weight is the mean of the parents' weights, channel by channel as they come.

    Args:
        graphs: typed networks of one topology and sizes.
        weights: how much each counts; by default all alike.

    Raises:
        SurgeryError: topologies or sizes differ.
    """
    shares = torch.tensor([1.0] * len(graphs) if weights is None else list(weights), dtype=torch.float64)
    first, *others = graphs
    tensors = [first.tensors()]
    names = [{name: name for name in first.types.parameters}]
    for position, other in enumerate(others, 2):
        tensors.append(other.tensors())
        names.append(match_parameters(first, other, match_nodes(first, other, position)))

    def mean(typed: ParameterType, old: Tensor) -> Tensor:
        found = [t[n[typed.name]].detach().to(old.device) for t, n in zip(tensors, names, strict=True)]
        if any(t.shape != old.shape for t in found):
            raise SurgeryError(f"average: {typed.name} has different shapes in the parents")
        if not holds_numbers(old):
            return old.clone()
        return torch.einsum("n,n...->...", (shares / shares.sum()).to(old), torch.stack(found))

    return rebuild(first, Edit({}), mean, {"pass": "average", "parents": len(graphs)})
