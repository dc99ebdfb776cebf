"""Closing gates: every space follows its setpoint, whatever the number of steps, and ends open or shut."""

import pytest
import torch
from torch import nn

from graphsurgery.network.layers import ChannelGate
from graphsurgery.training.objectives import MeanSquaredError
from graphsurgery.training.objectives.gating import GateBudget


def closed(sizes, budgets, steps, lr=0.5):
    """Gates that only the budget moves, after so many steps; and the open shares at each."""
    torch.manual_seed(0)
    gates = {f"s{i}": ChannelGate(n) for i, n in enumerate(sizes)}
    for gate in gates.values():
        gate.loc.data += 0.01 * torch.randn(gate.channels)
    objective = GateBudget(MeanSquaredError(), gates, dict(zip(gates, budgets, strict=True)), lr=lr)
    optimizer = torch.optim.SGD([gate.loc for gate in gates.values()], lr=lr)
    module, batch, shares = nn.Identity(), (torch.zeros(2, 1), torch.zeros(2, 1)), []
    for step in range(steps):
        objective.on_step(step / steps)
        optimizer.zero_grad()
        objective.loss(module, batch)["total"].backward()
        optimizer.step()
        shares.append(objective.shares())
    return objective, shares


@pytest.mark.parametrize("steps", [40, 200, 2000])
@pytest.mark.parametrize("lr", [0.05, 0.5])
def test_ends_at_the_budget(steps, lr):
    objective, shares = closed([4, 64, 500], [0.5, 0.25, 0.8], steps, lr)
    for name, budget in objective.budgets.items():
        assert shares[-1][name] == pytest.approx(budget, abs=0.01)
        kept = round(budget * objective.gates[name].channels)
        assert int((objective.gates[name].value() > 0.99).sum()) == kept
        assert int((objective.gates[name].value() < 0.01).sum()) == objective.gates[name].channels - kept


def test_follows_its_setpoint():
    objective, shares = closed([32], [0.5], 400)
    start = objective.starts["s0"]
    assert shares[40]["s0"] == pytest.approx(start, abs=0.02)
    half = (0.15 + 0.6) / 2
    assert shares[int(400 * half)]["s0"] == pytest.approx((start + 0.5) / 2, abs=0.03)


def test_goes_on_from_its_state():
    objective, _ = closed([8], [0.5], 50)
    other = GateBudget(MeanSquaredError(), objective.gates, objective.budgets, lr=0.5)
    other.load_state_dict(objective.state_dict())
    assert other.state_dict() == objective.state_dict()
    assert other.epoch_metrics() == objective.epoch_metrics()
