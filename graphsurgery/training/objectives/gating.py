"""Closing gates to a budget: the task's loss, one budget term for each space, and the control of their strength."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphsurgery.network.layers import ChannelGate
from graphsurgery.training.objectives.tasks import Batch, Objective

if TYPE_CHECKING:
    from torchmetrics import Metric

_OPEN_UNTIL = 0.15
_CLOSED_BY = 0.6
_POLARISED_BY = 0.9
_TOLERANCE = 0.01
_WEAKEST = 0.01
# Locations at which a gate is open, or closed, with a probability of 0.998.
_OPEN, _SHUT = 4.7, -7.9


class GateBudget(Objective):
    """A task with the budget terms `strength · (setpoint - mean P[g > 0])²`, one for each space.

    The paper lets one strength grow by a fixed rule towards a fixed budget, which in short trainings leaves most gates
    open, and nothing in it makes a gate choose. Here the budget of a space is a setpoint: it stays at the first open
    share for 15 % of the steps, so that the streams connect, and falls on a straight line to what shall stay, which it
    reaches after 60 %. Every space has its own strength, steered by feedback: stronger while the open share is more
    than 1 % off the setpoint, weaker while it is close. From then to 90 % of the steps the gates above and below the
    budget's place in the order are moved apart, so that each is open or shut when it is cut, and the network trains on
    with what will be left.
    Source of the term: Pašen & Boža, arXiv:2204.09973, section 3.3.

    Args:
        task: what the network is trained for; validation measures it alone.
        gates: the gates, by space.
        budgets: the share of each space's channels that shall stay.
        lr: learning rate of the gates, which bounds the strength that is stable.
    """

    def __init__(
        self,
        task: Objective,
        gates: Mapping[str, ChannelGate],
        budgets: Mapping[str, float],
        *,
        lr: float,
    ) -> None:
        self.task = task
        self.gates = dict(gates)
        self.budgets = dict(budgets)
        # A quadratic with curvature 2 s p'² / channels is stable for steps below 2 / curvature; p' is at most 1/4.
        self.strongest = {name: 8.0 * gate.channels / lr for name, gate in self.gates.items()}
        self.strengths = {name: strongest / 10 for name, strongest in self.strongest.items()}
        self.starts = self.shares()
        self.setpoints = dict(self.starts)
        self.done = 0.0
        self.score, self.higher_is_better = task.score, task.higher_is_better

    def shares(self) -> dict[str, float]:
        """Expected open share of each space."""
        with torch.no_grad():
            return {name: float(gate.open_probability().mean()) for name, gate in self.gates.items()}

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses = self.task.loss(module, batch)
        budget = torch.stack(
            [
                self.strengths[name] * (gate.open_probability().mean() - self.setpoints[name]).square()
                for name, gate in self.gates.items()
            ]
        ).sum()
        return {**losses, "task": losses["total"], "budget": budget, "total": losses["total"] + budget}

    def on_step(self, fraction_done: float) -> None:
        """Steer the strengths while gates close; move the gates apart afterwards."""
        passed = fraction_done - self.done
        self.done = fraction_done
        if fraction_done < _CLOSED_BY:
            left = min(1.0, (_CLOSED_BY - fraction_done) / (_CLOSED_BY - _OPEN_UNTIL))
            self.setpoints = {n: b + (self.starts[n] - b) * left for n, b in self.budgets.items()}
            self._steer(passed)
        else:
            self.strengths = dict.fromkeys(self.strengths, 0.0)
            left = max(_POLARISED_BY - fraction_done, 0.0) + passed
            self._polarise(min(1.0, passed / left) if left else 1.0)
        self.task.on_step(fraction_done)

    def _steer(self, passed: float) -> None:
        """Strengthen the terms of spaces that are off their setpoint, weaken those that are close."""
        # The whole range of strengths is passed in about a sixth of the stage, whatever its number of steps.
        factor = math.exp(min(50.0 * passed, 0.7))
        for name, share in self.shares().items():
            strength = self.strengths[name]
            gap = abs(share - self.setpoints[name])
            if gap > _TOLERANCE:
                strength *= factor
            elif gap < _TOLERANCE / 2:
                strength /= factor
            self.strengths[name] = min(max(strength, _WEAKEST), self.strongest[name])

    def _polarise(self, part: float) -> None:
        """Move every gate by this part of its way to open, for the first of the order, or to shut."""
        with torch.no_grad():
            for name, gate in self.gates.items():
                kept = gate.loc.topk(max(1, round(self.budgets[name] * gate.channels))).indices
                goal = torch.full_like(gate.loc, _SHUT).minimum(gate.loc)
                goal[kept] = gate.loc[kept].clamp_min(_OPEN)
                gate.loc.lerp_(goal, part)

    def epoch_metrics(self) -> dict[str, float]:
        shares = self.shares()
        channels = {name: gate.channels for name, gate in self.gates.items()}
        total = sum(channels.values())
        return {
            "strength": sum(self.strengths.values()) / len(self.strengths),
            "expected": sum(shares[n] * channels[n] for n in shares) / total,
            "largest gap": max(abs(shares[n] - self.budgets[n]) for n in shares),
            **{f"open {name}": share for name, share in shares.items()},
        }

    def predict(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.task.predict(module, batch)

    def metrics(self) -> dict[str, Metric]:
        return self.task.metrics()

    def validation_loss(self, output: Tensor, target: Tensor) -> Tensor | None:
        return self.task.validation_loss(output, target)

    def to(self, device: torch.device) -> None:
        self.task.to(device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "strengths": dict(self.strengths),
            "starts": dict(self.starts),
            "done": self.done,
            "task": self.task.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.strengths = dict(state["strengths"])
        self.starts = dict(state["starts"])
        self.done = float(state["done"])
        self.task.load_state_dict(state["task"])
