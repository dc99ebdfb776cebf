"""Mask: weights that are dead become 0; no shape changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from graphsurgery.axes.maps import Edit
from graphsurgery.axes.types import ParameterType
from graphsurgery.graph import ModelGraph
from graphsurgery.surgery.masks.mask_set import MaskSet
from graphsurgery.surgery.remapping.remap import rebuild


def mask(graph: ModelGraph, masks: MaskSet, dead: Mapping[str, Tensor] | None = None) -> ModelGraph:
    """The network with its dead weights 0, or constant; it has as many parameters, and takes as long, as before.

    What it computes equals the network trained under the mask (see `training.masked`) to rounding (float64: relative
    1e-12). `prune_dead` makes it smaller.

    Args:
        graph: typed network; it is not modified.
        masks: which weights live.
        dead: the values of dead weights by name; by default 0.

    Raises:
        SurgeryError: the masks belong to another architecture.

    Source: Frankle & Carbin, "The Lottery Ticket Hypothesis", arXiv:1803.03635, section 1 (the masked network).
    """
    masks.check_fits(graph)

    def living(typed: ParameterType, tensor: Tensor) -> Tensor:
        if typed.name not in masks:
            return tensor.clone()
        constant = torch.zeros(()).to(tensor) if dead is None or typed.name not in dead else dead[typed.name].to(tensor)
        return torch.where(masks[typed.name].to(tensor.device), tensor, constant)

    return rebuild(graph, Edit({}), living, {"pass": "mask", "kept": masks.kept, "of": masks.total})
