import pytest
import torch
from torch import nn

from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop.optimizers import make_optimizer, parameter_groups, set_rates
from graphsurgery.training.loop.plan import TrainingPlan


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, 0.8535534, 0.5, 0.1464466, 0]),
        ("step:0.5,0.75", [1, 1, 0.1, 0.01, 0.01]),
    ],
)
def test_schedules(schedule, factors):
    plan = TrainingPlan(epochs=8, schedule=schedule)
    assert [plan.rate_factor(epoch) for epoch in (0, 2, 4, 6, 8)] == pytest.approx(factors)


def test_warmup_grows_linearly():
    plan = TrainingPlan(epochs=10, schedule="constant", warmup=2)
    assert [plan.rate_factor(epoch) for epoch in (0, 0.5, 1, 2, 5)] == pytest.approx([0, 0.25, 0.5, 1, 1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'; use one of sgd, adam, adamw"),
        ({"schedule": "cos"}, "unknown schedule 'cos'; use constant, cosine"),
        ({"schedule": "step:2"}, "unknown schedule 'step:2'"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"lr": float("nan")}, "lr is nan; it must be finite"),
        ({"clip": -1.0}, "clip is -1.0; it must be above 0"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be 0 or more, and below 1"),
        ({"mixed_precision": "fp8"}, "unknown mixed_precision 'fp8'"),
    ],
)
def test_bad_plans(fields, message):
    with pytest.raises(SurgeryError, match=message):
        TrainingPlan(**fields)


def test_vectors_do_not_decay(make_net):
    groups = parameter_groups(make_net(), TrainingPlan(weight_decay=0.1))
    assert [(g["name"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("weights", 0.1, 2),
        ("vectors", 0, 4),
    ]
    groups = parameter_groups(make_net(), TrainingPlan(weight_decay=0.1, decay_vectors=True))
    assert [(g["name"], len(g["params"])) for g in groups] == [("weights", 6)]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_special_group_keeps_its_own_rate_and_schedule(make_net, optimizer):
    net = make_net()
    plan = TrainingPlan(epochs=10, lr=0.1, weight_decay=0.1, optimizer=optimizer)
    gates = {"params": [net[1].weight], "lr": 0.2, "weight_decay": 0.0, "schedule": "constant", "name": "gates"}
    made = make_optimizer(parameter_groups(net, plan, [gates]), plan)
    set_rates(made, plan, epoch=5)
    assert [(g["name"], g["lr"]) for g in made.param_groups] == [
        ("gates", 0.2),
        ("weights", pytest.approx(0.05)),
        ("vectors", pytest.approx(0.05)),
    ]
    assert sum(len(g["params"]) for g in made.param_groups) == 6


def test_bad_groups(make_net):
    net = make_net()
    with pytest.raises(SurgeryError, match="gates: unknown key rate; use lr"):
        parameter_groups(net, TrainingPlan(), [{"params": [net[1].weight], "rate": 1, "name": "gates"}])
    with pytest.raises(SurgeryError, match="group 1: holds a parameter that another group holds too"):
        parameter_groups(net, TrainingPlan(), [{"params": [net[1].weight]}, {"params": [net[1].weight]}])
    with pytest.raises(SurgeryError, match="has no trainable parameter"):
        parameter_groups(nn.ReLU(), TrainingPlan())
    with pytest.raises(SurgeryError, match="unknown schedule 'slow'"):
        parameter_groups(net, TrainingPlan(), [{"params": [torch.zeros(1)], "schedule": "slow"}])
