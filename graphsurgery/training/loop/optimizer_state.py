"""The state of an optimizer after surgery, so that a training goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from graphsurgery.axes.algebra import Axis, dims_of
from graphsurgery.axes.maps import Edit
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Origin
from graphsurgery.network.layers import weigh

_ADAM = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
_POWERS: dict[type[torch.optim.Optimizer], dict[str, int]] = {
    torch.optim.SGD: {"momentum_buffer": 1},
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.NAdam: _ADAM,
    torch.optim.RAdam: _ADAM,
    torch.optim.Adamax: {"exp_avg": 1, "exp_inf": 1},
    torch.optim.RMSprop: {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0},
    torch.optim.Adagrad: {"sum": 2},
    torch.optim.Adadelta: {"square_avg": 2, "acc_delta": 0},
    torch.optim.Rprop: {"prev": 1, "step_size": 0},
}
"""What optimizers remember of each weight: the power of the gradient that it grows with."""

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)


def remap_optimizer(optimizer: AnyOptimizer, before: ModelGraph, after: ModelGraph) -> AnyOptimizer:
    """An optimizer for an edited network that goes on as the one of the network before.

    Momenta and second moments go the way of the gradients: what writes a copy of a channel has the gradient of that
    channel times the copy's share, what reads it has the whole. So on the same batch the gradients of a widened network
    are those of the network before, mapped like this; with a norm across channels only for equal shares. A cut keeps
    the state of what stays. New parameters start without a state: factors in the group of the layer that they replace,
    those of inserted layers in the last group.

    Args:
        optimizer: of torch.optim, over parameters of `before`; it is not modified.
        before: a network.
        after: what passes made of it, in this process: `widen`, `deepen`, `compress`, and copies of the result whose
            weights have moved since.

    Returns:
        A new optimizer of the same class, with the same groups and options, over the parameters of `after`.

    Raises:
        SurgeryError: `after` was not made of `before`, a parameter of the optimizer is none of `before`, or the state
            has something of which it is not known how it follows the weights.

    Source: the gradients follow from the chain rule; Chen et al., "Net2Net", arXiv:1511.05641, leave the state out.
    """
    steps = _steps(before, after)
    old, new = before.tensors(), after.tensors()
    names: dict[int, str] = {}
    for name, tensor in old.items():
        names.setdefault(id(tensor), name)
    groups: list[dict[str, Any]] = []
    homes: dict[str, int] = {}
    for number, group in enumerate(optimizer.param_groups):
        foreign = [p for p in group["params"] if id(p) not in names]
        if foreign:
            shape = list(foreign[0].shape)
            raise SurgeryError(f"remap_optimizer: it trains a parameter {shape} that is none of the network before")
        follows = [names[id(p)] for p in group["params"]]
        homes.update(dict.fromkeys(follows, number))
        groups.append({**group, "params": [new[name] for name in follows if name in new]})
    for name, fresh in after.module.named_parameters():
        if name not in old and fresh.requires_grad:
            home = _home(name, old, new, homes, len(groups) - 1)
            if home is not None:
                groups[home]["params"].append(fresh)
    make: Any = type(optimizer)
    try:
        result: AnyOptimizer = make([group for group in groups if group["params"]])
    except (TypeError, ValueError) as cause:
        raise SurgeryError(
            f"remap_optimizer: {type(optimizer).__name__} refuses the new parameters: {cause}"
        ) from cause
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        # What a step does not know it has replaced, such as a layer that was two for a while.
        if name in new and all(name in step.canonical for step in steps):
            result.state[new[name]] = {
                key: _followed(steps, name, new[name], value, partial(_power, optimizer, key))
                for key, value in state.items()
            }
    return result


def _home(
    name: str, old: Mapping[str, Tensor], new: Mapping[str, Tensor], homes: Mapping[str, int], last: int
) -> int | None:
    """The group of a new parameter: that of the layer that it replaces, or the last; None if that was not trained."""
    replaced = [n for n in old if n not in new and name.startswith(f"{n.rpartition('.')[0]}.")]
    if not replaced:
        return last
    return next((homes[n] for n in replaced if n in homes), None)


def _steps(before: ModelGraph, after: ModelGraph) -> list[Origin]:
    """How one network was made of the other, the first step first."""
    steps: list[Origin] = []
    origin = after.origin
    while origin is not None:
        steps.append(origin)
        if origin.module() is before.module:
            return steps[::-1]
        origin = origin.before
    raise SurgeryError("remap_optimizer: the second network was not made of the first one, or both were loaded anew")


def _power(optimizer: torch.optim.Optimizer, key: str) -> int:
    """The power of the gradient that an entry of the state grows with."""
    known = next((powers for kind, powers in _POWERS.items() if isinstance(optimizer, kind)), {})
    if key not in known:
        raise SurgeryError(
            f"remap_optimizer: it is not known how {key} of {type(optimizer).__name__} follows the weights; "
            f"known are {', '.join(kind.__name__ for kind in _POWERS)}"
        )
    return known[key]


def _followed(steps: list[Origin], name: str, new: Tensor, value: Any, power: Callable[[], int]) -> Any:
    """One entry of the state of a parameter, after all steps; a single number is a count of steps."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value.clone() if isinstance(value, Tensor) else value
    exponent = power()
    for step in steps:
        value = _mapped(step, name, value, exponent)
    if value.shape != new.shape:
        shapes = f"{list(value.shape)} for {list(new.shape)}"
        raise SurgeryError(f"remap_optimizer: the state of {name} would be {shapes}; start the optimizer anew")
    return value.clone()


def _mapped(step: Origin, name: str, value: Tensor, power: int) -> Tensor:
    """What grows with this power of a gradient, after one edit."""
    first = step.canonical.get(name, name)
    typed = step.parameters.get(first)
    if typed is None:
        return value
    return follow_gradient(step.edit, typed.axes, step.folded.get(first, {}), value, power)


def follow_gradient(
    edit: Edit, axes: Sequence[Axis], scaled: Mapping[int, Axis], value: Tensor, power: int = 1
) -> Tensor:
    """The gradient of a parameter, to a power, after an edit: `value [old] -> [new]`.

    `scaled` says what the parameter reads, by the number of the axis; the rest it writes.
    """
    for index in range(len(axes)):
        lifted = edit.lift_in(axes, index)
        if lifted is None:
            continue
        if lifted.beside is not None:
            raise SurgeryError("remap_optimizer: a choice in each group; start the optimizer anew")
        value = value.index_select(index, lifted.source.to(value.device))
        share = edit.share(axes[index], apart_from=set(dims_of(scaled.get(index, ()))))
        if share is not None:
            value = weigh(value, index, (share**power).to(value))
    return value
