"""Training under masks, by torch parametrizations: dead weights get no update, no momentum and no decay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.modes import kept_modes
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable


class _Living(nn.Module):
    """A parametrization: the weight where it lives, and a constant where it does not."""

    mask: Tensor
    constant: Tensor | None

    def __init__(self, mask: Tensor, constant: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("constant", constant)

    def forward(self, weight: Tensor) -> Tensor:
        dead = torch.zeros((), dtype=weight.dtype, device=weight.device) if self.constant is None else self.constant
        return torch.where(self.mask, weight, dead)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: 0 where it is dead, so that decay and momentum of dead weights stay 0."""
        return torch.where(self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


@contextmanager
def masked(graph: ModelGraph, masks: MaskSet, dead: Mapping[str, Tensor] | None = None) -> Iterator[nn.Module]:
    """The module of a network, whose dead weights are constant inside the block, and stay so after it.

    What is trained under the mask gets no gradient where it is dead, and is 0 there, so that no optimizer gives it an
    update, momentum or decay. After the block the network has ordinary parameters again, the same objects as before.

    Args:
        graph: the network; its module is changed in place.
        masks: which weights live.
        dead: the values of dead weights by name; by default 0.

    Raises:
        SurgeryError: the masks belong to another architecture.
    """
    masks.check_fits(graph)
    with parametrized(graph, {name: _living(graph, name, mask, dead) for name, mask in masks.items()}) as module:
        yield module


@contextmanager
def parametrized(graph: ModelGraph, parts: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """The module of a network, some of whose weights are computed inside the block; afterwards what they were stays.

    Args:
        graph: the network; its module is changed in place.
        parts: by the name of a weight, what computes it; tied weights share it.
    """
    module = graph.module
    owners = [(name.rpartition("."), parts[first]) for name, first in graph.types.canonical.items() if first in parts]
    done: dict[tuple[nn.Module, str], list[str]] = {}
    try:
        for (path, _, leaf), part in owners:
            owner = module.get_submodule(path)
            if not parametrize.is_parametrized(owner, leaf):
                done[owner, leaf] = list(owner._parameters)
                parametrize.register_parametrization(owner, leaf, part)
        yield module
    finally:
        with kept_modes(module):
            for part in module.modules():
                part.training = False
            for (owner, leaf), order in reversed(done.items()):
                if parametrize.is_parametrized(owner, leaf):
                    parametrize.remove_parametrizations(owner, leaf)
                # torch puts it behind the others.
                owner._parameters.update({name: owner._parameters.pop(name) for name in order})


def _living(graph: ModelGraph, name: str, mask: Tensor, dead: Mapping[str, Tensor] | None) -> _Living:
    weight = maskable(graph)[name]
    constant = None if dead is None or name not in dead else dead[name].detach().to(weight)
    if constant is not None and constant.shape != weight.shape:
        raise SurgeryError(f"masks: {name} has dead values {list(constant.shape)}, expected {list(weight.shape)}")
    return _Living(mask.to(weight.device), constant)
