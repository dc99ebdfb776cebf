"""Many seeds as one stacked training end where `fit` takes each: `benchmarks/stacked.py`."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import graphsurgery as gs
from graphsurgery.recipes.merging.merge import merge
from graphsurgery.recipes.merging.plan import default_plan
from graphsurgery.training.data import load_data
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.loop import fit as loop
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives.imitation import Mimicry
from graphsurgery.training.objectives.tasks import CrossEntropy, MeanSquaredError
from graphsurgery.training.objectives.teachers import Teachers

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from stacked import Training, fit_stacked, side_by_side

SILENT = SilentReporter()
PLAN = TrainingPlan(epochs=2, batch_size=8, lr=0.05, weight_decay=1e-3, schedule="cosine", device="cpu")
SEEDS = (0, 1, 2)


class Residual(nn.Module):
    """Two convolutions with norms, and a sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x):
        x = self.norms[0](self.stem(x)).relu()
        return self.head((x + self.norms[1](self.conv(x))).mean((2, 3)))


def network(kind, seed):
    torch.manual_seed(seed)
    made = Residual() if kind == "cnn" else nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    return gs.trace(made, torch.zeros(2, 1, 6, 6) if kind == "cnn" else torch.zeros(2, 2)).module.double()


def examples(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(15, *((1, 6, 6) if kind == "cnn" else (2,)), generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (15,), generator=generator) if kind == "cnn" else x[:, :1].sin()
    return TensorDataset(x, y)


def objective(kind, learns, seed):
    if learns == "labels":
        return CrossEntropy(4) if kind == "cnn" else MeanSquaredError()
    teacher = Teachers([network(kind, 10 + 2 * seed + index) for index in (0, 1)])
    imitation = Imitation("kl", temperature=2.0, labels=0.5)
    return Mimicry(4 if kind == "cnn" else None, imitation, teacher=teacher)


def training(kind, seed, plan=PLAN, learns="labels"):
    return Training(network(kind, seed), examples(kind, seed), replace(plan, seed=seed), objective(kind, learns, seed))


@pytest.mark.parametrize("learns", ["labels", "teacher"])
@pytest.mark.parametrize(("kind", "optimizer"), [("cnn", "sgd"), ("mlp", "adamw")])
def test_ends_where_fit_does(kind, optimizer, learns):
    """In float64, with batches of 8 and of 7."""
    plan = replace(PLAN, optimizer=optimizer, warmup=1)
    together = [training(kind, seed, plan, learns) for seed in SEEDS]
    assert len({one.kind() for one in together}) == 1
    fit_stacked(together)
    for seed, one in zip(SEEDS, together, strict=True):
        alone = network(kind, seed)
        loop.fit(alone, one.dataset, one.plan, objective=objective(kind, learns, seed), reporter=SILENT)
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(one.module.state_dict()[name], tensor, rtol=1e-10, atol=1e-10)


def test_unlike_networks_plans_and_means_are_trained_apart():
    first = training("cnn", 0)
    assert first.kind() == training("cnn", 1).kind()
    for other in (
        training("mlp", 0),
        replace(first, plan=replace(PLAN, lr=0.1)),
        replace(first, objective=objective("cnn", "teacher", 0)),
        replace(first, more={"param_groups": [{"params": []}]}),
        replace(first, plan=replace(PLAN, keep_best=True)),
    ):
        assert first.kind() != other.kind()


def test_whole_merges_of_several_seeds_are_what_each_is_alone():
    """In float32, since data are: five steps are too few for its last bits to grow."""
    whole = load_data("digits?train=40")
    data = replace(whole, validation=whole.train, test=whole.train)

    def one(seed):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 10))
        parents = [gs.trace(net, torch.zeros(2, 1, 8, 8))] * 2
        plan = default_plan(parents, seed, controls=("distilled",), parent_epochs=1)
        short = replace(plan.wide, epochs=1, lr=0.01, device="cpu")
        return merge(parents, data, replace(plan, wide=short, fine_tuning=short), reporter=SILENT).outcome.rows

    for seed, rows in zip(SEEDS, side_by_side(one, SEEDS), strict=True):
        expected = one(seed)
        assert [(row.name, row.epochs) for row in rows] == [(row.name, row.epochs) for row in expected]
        for row, other in zip(rows, expected, strict=True):
            assert row.validation["loss"] == pytest.approx(other.validation["loss"], rel=1e-4)


def test_an_error_of_one_seed_is_raised_and_ends_all():
    def one(seed):
        loop.fit(network("mlp", seed), examples("mlp", seed), PLAN, objective=MeanSquaredError(), reporter=SILENT)
        if seed == 1:
            raise gs.SurgeryError("seed 1 fails")

    with pytest.raises(gs.SurgeryError, match="seed 1 fails"):
        side_by_side(one, SEEDS)


def test_a_loss_that_is_not_finite_is_named():
    bad = training("mlp", 0)
    bad.dataset = TensorDataset(bad.dataset.tensors[0] * math.nan, bad.dataset.tensors[1])
    with pytest.raises(gs.SurgeryError, match=r"losses .*nan"):
        fit_stacked([bad, training("mlp", 1)])
