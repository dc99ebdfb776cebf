"""What a ticket starts from: the values of the weights that live, and the constants of those that are dead.

Source of what the first source does not have: Zhou et al., "Deconstructing lottery tickets", arXiv:1905.01067,
sections 3 (dead weights) and 4 (living weights).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.surgery.growth.fresh_weights import signed_constant
from graphsurgery.surgery.masks.mask_set import MaskSet
from graphsurgery.surgery.masks.plans import Restart


@dataclass(frozen=True)
class Start:
    """Where a ticket starts: its masks, the values of all its tensors, and the constants of the dead, by name."""

    masks: MaskSet
    values: Mapping[str, Tensor]
    dead: Mapping[str, Tensor]


def restart(
    graph: ModelGraph,
    masks: MaskSet,
    plan: Restart,
    initial: Mapping[str, Tensor],
    *,
    before: MaskSet | None = None,
    fresh: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Start:
    """Where a network that was trained and pruned starts again; exact copies but for what the plan draws.

    Args:
        graph: the network after training; it is not modified.
        masks: which of its weights live.
        plan: how it starts.
        initial: its parameters and buffers at the start, or at the step that is gone back to, by name.
        before: which weights lived in that training; what died earlier stays what it is.
        fresh: another network's first values, which `reinit` takes; by default normal draws of the spread of `initial`.
        seed: of everything that is drawn.

    Raises:
        SurgeryError: the masks belong to another network, or values are missing.
    """
    masks.check_fits(graph)
    final = {name: tensor.detach() for name, tensor in graph.tensors().items()}
    for given, words in ((initial, "initial"), (fresh, "fresh")):
        lacking = [n for n, t in final.items() if given is not None and (n not in given or given[n].shape != t.shape)]
        if lacking:
            raise SurgeryError(f"restart: the {words} values have no {lacking[0]} of the network's shape")
    if plan.shuffled:
        masks = masks.shuffled(seed)
    generator = torch.Generator().manual_seed(seed)
    values = dict({"lr-rewind": final, "reinit": fresh or initial}.get(plan.kept, initial))
    dead: dict[str, Tensor] = {}
    for name, living in masks.items():
        first, last = initial[name].detach().cpu(), final[name].cpu()
        drawn = None if fresh is None else fresh[name].detach().cpu()
        start = _living(plan, first, last, living, drawn, generator)
        if plan.dead != "zero":
            died = ~living if before is None else before[name] & ~living
            constant = torch.where(_zeros(plan.dead, first, last, died, generator), 0.0, first)
            dead[name] = constant if before is None else torch.where(before[name], constant, last)
        if plan.dead.startswith("variant-2"):
            start = torch.where(_zeros(plan.dead, first, last, living, generator), 0.0, start)
        if plan.rescaled:
            start = start * (living.numel() / max(1, int(living.sum())))
        values[name] = start
    return Start(masks, values, dead)


def put(graph: ModelGraph, values: Mapping[str, Tensor]) -> None:
    """Give a network these values of its parameters and buffers, in place."""
    with torch.no_grad():
        for name, tensor in graph.tensors().items():
            if name in values:
                tensor.copy_(values[name])


def _living(
    plan: Restart, first: Tensor, last: Tensor, living: Tensor, fresh: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Where the living weights of a tensor start."""
    value = first
    if plan.kept == "lr-rewind":
        value = last
    elif plan.kept == "reinit":
        noise = torch.randn(first.shape, generator=generator, dtype=torch.float64).to(first)
        value = first.mean() + first.std() * noise if fresh is None else fresh
    elif plan.kept == "reshuffle":
        survivors = first[living]
        value = first.clone()
        value[living] = survivors[torch.randperm(len(survivors), generator=generator)]
    elif plan.kept == "constant":
        value = signed_constant(first)
    if plan.keep_sign:
        return value if plan.kept in ("rewind", "lr-rewind", "constant") else value.abs() * first.sign()
    if plan.kept in ("reinit", "reshuffle"):
        return value
    coin = torch.rand(first.shape, generator=generator) < 0.5
    return torch.where(coin, value.abs(), -value.abs())


def _zeros(rule: str, first: Tensor, last: Tensor, among: Tensor, generator: torch.Generator) -> Tensor:
    """Which of some weights a rule sets to 0."""
    if rule == "freeze":
        return torch.zeros_like(among)
    toward = last.abs() < first.abs()
    if rule.endswith("-reversed"):
        return among & ~toward
    if not rule.endswith("-random"):
        return among & toward
    found = torch.zeros_like(among)
    places = among.flatten().nonzero().flatten()
    count = int((among & toward).sum())
    found.view(-1)[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    return found
