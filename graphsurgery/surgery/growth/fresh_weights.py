"""Values that are not those of the old network: fresh ones, and those of a later layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graphsurgery.axes.maps import Edit
from graphsurgery.axes.types import ParameterType
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.randomness import seeded
from graphsurgery.network.values.dtypes import holds_numbers
from graphsurgery.surgery.growth.shares import first_of_each
from graphsurgery.surgery.remapping.gathering import gather
from graphsurgery.surgery.remapping.remap import follow, rebuild


def reinitialized(graph: ModelGraph, seed: int) -> ModelGraph:
    """A network of the same shape with new weights: every layer by its own rule, single parameters by their spread."""
    new = rebuild(graph, Edit({}), lambda _, t: t.clone(), {"pass": "reinitialize", "seed": seed})
    with seeded(seed), torch.no_grad():
        for module in new.module.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif module is not new.module or module._parameters:
                for parameter in module._parameters.values():
                    if parameter is not None and parameter.numel() > 1:
                        parameter.normal_(float(parameter.mean()), float(parameter.std()))
    return new


def padded(graph: ModelGraph, edit: Edit, record: Mapping[str, Any], seed: int) -> ModelGraph:
    """A wider network of fresh values, with those of the old one at the first copy of each of its channels."""
    wide = rebuild(graph, edit, lambda typed, tensor: gather(edit, typed, tensor, {}), record)
    drawn = reinitialized(wide, seed).tensors()
    for name, tensor in wide.tensors().items():
        typed = graph.types.parameters.get(graph.types.canonical[name])
        if typed is not None and holds_numbers(tensor):
            with torch.no_grad():
                tensor.copy_(torch.where(_old_block(edit, typed, tensor), tensor, drawn[name]))
    return follow(graph, wide, edit)


def _old_block(edit: Edit, typed: ParameterType, tensor: Tensor) -> Tensor:
    """Where a wider tensor has its old values, broadcast to its shape."""
    mask = torch.ones([1] * tensor.dim(), dtype=torch.bool, device=tensor.device)
    for index, axis in enumerate(typed.axes):
        lifted = edit.lift(axis)
        if lifted is not None:
            shape = [-1 if other == index else 1 for other in range(tensor.dim())]
            mask = mask & first_of_each(lifted.source).to(tensor.device).reshape(shape)
    return mask


def next_layers(graph: ModelGraph, wide: ModelGraph, edit: Edit) -> None:
    """Give the copies of channels what the next layer of the same shape writes them with, in place; not exact.

    Source: advanced knowledge initialization (AKI) of Chen et al., "bert2BERT", ACL 2022, section 3.3.2; the last
    layer of a shape keeps its copies.
    """
    old, new = graph.tensors(), wide.tensors()
    parameters = list(graph.types.parameters.items())
    for place, (name, typed) in enumerate(parameters):
        kind = name.rpartition(".")[2]
        later = next(
            (n for n, _ in parameters[place + 1 :] if old[n].shape == old[name].shape and n.rpartition(".")[2] == kind),
            None,
        )
        if later is None or not holds_numbers(old[name]):
            continue
        values = gather(edit, typed, old[later].detach(), typed.reads)
        for index, axis in enumerate(typed.axes):
            lifted = edit.lift(axis) if index not in typed.reads else None
            if lifted is not None:
                again = (~first_of_each(lifted.source)).nonzero().flatten().to(values.device)
                with torch.no_grad():
                    new[name].index_copy_(index, again, values.index_select(index, again))


def signed_constant(weight: Tensor) -> Tensor:
    """The weight's own signs, times its standard deviation over all of its elements; 0 where it is 0.

    Source: Zhou et al., "Deconstructing lottery tickets", arXiv:1905.01067, section 4.2.
    """
    weight = weight.detach()
    return weight.sign() * weight.std(correction=0)
