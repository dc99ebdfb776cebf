"""Parameter groups with their own rate, decay and schedule, and the optimizer over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop.plan import TrainingPlan

_GROUP_KEYS = {"params", "lr", "weight_decay", "momentum", "schedule", "name"}


def parameter_groups(
    module: nn.Module, plan: TrainingPlan, special: Iterable[Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The groups of an optimizer; each trainable parameter of `module` is in exactly one.

    Args:
        module: what is trained.
        plan: gives rate, decay and schedule of all parameters that `special` does not list.
        special: groups of their own: `params`, and any of `lr`, `weight_decay`, `momentum`, `schedule`, `name`;
            what a group leaves out it takes from the plan.

    Raises:
        SurgeryError: a group has an unknown key, shares a parameter with another, or nothing is trainable.
    """
    groups: list[dict[str, Any]] = []
    listed: set[int] = set()
    for number, group in enumerate(special or ()):
        name = str(group.get("name", f"group {number}"))
        if unknown := set(group) - _GROUP_KEYS:
            raise SurgeryError(
                f"parameter {name}: unknown key {sorted(unknown)[0]}; use {', '.join(sorted(_GROUP_KEYS))}"
            )
        parameters = list(group["params"])
        if any(id(p) in listed for p in parameters):
            raise SurgeryError(f"parameter {name}: holds a parameter that another group holds too; list it once")
        listed.update(id(p) for p in parameters)
        groups.append({**group, "params": parameters, "name": name})
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in listed]
    decayed = [p for p in rest if p.ndim > 1 or plan.decay_vectors]
    vectors = [p for p in rest if p.ndim <= 1 and not plan.decay_vectors]
    groups.append({"params": decayed, "name": "weights"})
    groups.append({"params": vectors, "name": "vectors", "weight_decay": 0.0})
    groups = [_completed(group, plan) for group in groups if group["params"]]
    if not groups:
        raise SurgeryError("training: the model has no trainable parameter; set requires_grad on what shall be trained")
    return groups


def make_optimizer(groups: list[dict[str, Any]], plan: TrainingPlan) -> torch.optim.Optimizer:
    """The plan's optimizer over groups from `parameter_groups`."""
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum)
    kind = torch.optim.Adam if plan.optimizer == "adam" else torch.optim.AdamW
    return kind([{key: value for key, value in group.items() if key != "momentum"} for group in groups], lr=plan.lr)


def set_rates(optimizer: torch.optim.Optimizer, plan: TrainingPlan, epoch: float) -> None:
    """Give each group the learning rate of its schedule after `epoch` epochs."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * plan.rate_factor(epoch, group["schedule"])


def _completed(group: dict[str, Any], plan: TrainingPlan) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "lr": plan.lr,
        "weight_decay": plan.weight_decay,
        "momentum": plan.momentum,
        "schedule": plan.schedule,
    }
    complete = defaults | group
    plan.rate_factor(0.0, complete["schedule"])
    complete["base_lr"] = complete["lr"]
    return complete
