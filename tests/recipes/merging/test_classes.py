"""Parents that answer for the classes of the data."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import graphsurgery as gs
from graphsurgery.recipes.merging.classes import answering, numbers_in
from graphsurgery.recipes.merging.merge import merge
from graphsurgery.recipes.merging.plan import default_plan
from graphsurgery.training.data import load_data
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives.tasks import CrossEntropy

SILENT = SilentReporter()


def _trained(data, classes, seed):
    """A network that has learnt some classes, numbered as they come."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, len(classes)))
    graph = gs.trace(network, torch.zeros(2, 1, 8, 8))
    x, labels = data.train.tensors
    known = torch.isin(labels, torch.tensor(classes))
    number = torch.zeros(10, dtype=torch.int64)
    number[classes] = torch.arange(len(classes))
    plan = TrainingPlan(epochs=15, lr=0.1, batch_size=64, device="cpu", seed=seed, keep_best=False)
    examples = TensorDataset(x[known], number[labels[known]])
    fit(graph.module, examples, plan, objective=CrossEntropy(len(classes)), validation=examples, reporter=SILENT)
    return graph


def test_parents_of_other_classes_are_merged():
    data = load_data("digits?train=700")
    parents = [_trained(data, [*range(9, -1, -1)], 0), _trained(data, [*range(9)], 1)]
    parents = answering(parents, "9,8,7,6,5,4,3,2,1,0/0-8", 10)
    plan = replace(default_plan(parents, controls=()), parent_epochs=15.0)
    plan = replace(plan, wide=replace(plan.wide, epochs=4), fine_tuning=replace(plan.fine_tuning, epochs=8))
    rows = {row.name: row.test["accuracy"] for row in merge(parents, data, plan, reporter=SILENT).outcome.rows}
    # Chance is 0.1; a parent that does not know a class of ten, or has them in another order, would be far below.
    assert rows["parent 1"] > 0.8
    assert 0.7 < rows["parent 2"] < 0.92
    assert rows["merged"] > 0.8


@pytest.mark.parametrize(("text", "expected"), [("0-4,6", [0, 1, 2, 3, 4, 6]), (" 2, 1 ,0", [2, 1, 0]), ("3-3", [3])])
def test_numbers(text, expected):
    assert numbers_in(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("all", "--classes: 1 lists for 2 parents; give one for each, between slashes, or all"),
        ("all/cats", "parent 2: --classes: 'cats' is no class; give numbers and ranges, such as 0-4,6-9"),
        ("all/0-1", "parent 2: relabel: 2 classes are given, the network has 3 logits; give one each"),
        ("all/0,1,7", "parent 2: relabel: class 7 does not exist"),
    ],
)
def test_refuses(text, message):
    graph = gs.trace(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)), torch.zeros(2, 2))
    with pytest.raises(gs.SurgeryError, match=message):
        answering([graph, graph], text, 3)


def test_refuses_data_without_classes():
    graph = gs.trace(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)), torch.zeros(2, 2))
    assert answering([graph, graph], "", None) == [graph, graph]
    with pytest.raises(gs.SurgeryError, match="--classes: the data have no classes"):
        answering([graph, graph], "all/0-2", None)
