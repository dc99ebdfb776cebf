"""A module and its trace, whose weights, buffers and modes are the same whenever they are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.network.copying import Replicas, alias_copy
from graphsurgery.network.outputs.naming import run
from graphsurgery.network.values.dtypes import holds_numbers

_NUDGE = {torch.float64: 1e-13, torch.float32: 1e-6}
"""By what share every number is moved."""


class Sides:
    """A copy of a module that shares its weights, and the trace.

    Used as a context, in which both may write into their buffers.

    Args:
        model: the module; it is not modified.
        traced: its trace; it gets its buffers back.
        dtype: their precision.
        generator: draws by how much numbers are moved.
    """

    def __init__(
        self, model: nn.Module, traced: fx.GraphModule, dtype: torch.dtype, generator: torch.Generator
    ) -> None:
        self.model, copies = alias_copy(model)
        self.real = {id(new): old for old, new in ((old, copies[id(old)]) for old in model.parameters())}
        self.traced, self.dtype, self.generator = traced, dtype, generator
        self._buffers: tuple[_Buffers, ...] = ()

    def __enter__(self) -> Sides:
        self._buffers = (_Buffers(self.traced), _Buffers(self.model))
        return self

    def __exit__(self, *_: object) -> None:
        for buffers in self._buffers:
            buffers.restore()

    def parameters(self) -> list[tuple[Tensor, Tensor]]:
        """The parameters of the copy of the module, each with that of the module."""
        return [(p, self.real[id(p)]) for p in self.model.parameters()]

    def set_mode(self, *, training: bool) -> None:
        """Both train, or evaluate, but for what the module's own `train()` leaves in another mode."""
        self.model.train(training)
        _same_modes(self.model, self.traced)

    def reset(self) -> None:
        """Both have the weights, the statistics and whatever else is in buffers, that the model has."""
        self.restore_weights()
        for buffers in self._buffers:
            buffers.reset()

    def restore_weights(self) -> None:
        """Take back what `nudged` has done."""
        for parameter, own in self.parameters():
            parameter.data = own.detach()

    def nudged(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Inputs, and the weights of the copy too, moved by a little more than rounding."""
        nudge = _NUDGE.get(self.dtype, 1e-2)

        def moved(t: Tensor) -> Tensor:
            noise = torch.randn(t.shape, generator=self.generator).to(t)
            return t * (1 + nudge * noise)

        for module in self.model.modules():
            for parameter in module._parameters.values():
                if parameter is not None and holds_numbers(parameter):
                    # New memory: the old is that of the model.
                    parameter.data = moved(parameter.detach())
        return tuple(moved(t) if t.is_floating_point() else t for t in x)


def outputs_of(module: Callable[..., Any], x: Sequence[Tensor]) -> list[Tensor]:
    """What a module gives, with the same random numbers each time; it may write into its inputs."""
    return list(run(module, [t.clone() for t in x], 0).values())


def _same_modes(model: nn.Module, traced: nn.Module) -> None:
    """Give every module of a trace the mode that the module of the same path has, or the nearest around it."""
    modes = {path: module.training for path, module in model.named_modules(remove_duplicate=False)}
    for path, module in traced.named_modules(remove_duplicate=False):
        around = path
        while around not in modes:
            around = around.rpartition(".")[0]
        module.__dict__["training"] = modes[around]


class _Buffers:
    """Buffers that a module may write into; it gets the old ones back in the end."""

    def __init__(self, module: nn.Module) -> None:
        self.slots = [(part._buffers, dict(part._buffers)) for part in module.modules()]

    def reset(self) -> None:
        """Give the module copies of what it had in the beginning; ties stay ties."""
        copied = Replicas()
        for buffers, before in self.slots:
            buffers.clear()
            buffers.update({name: None if t is None else copied(t) for name, t in before.items()})

    def restore(self) -> None:
        """Give the module the very buffers that it had in the beginning."""
        for buffers, before in self.slots:
            buffers.clear()
            buffers.update(before)
