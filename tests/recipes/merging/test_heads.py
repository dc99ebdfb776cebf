"""Merging teachers of different tasks, with all of their heads."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import graphsurgery as gs
from graphsurgery.recipes.merging.heads import OwnHeads, merge_heads
from graphsurgery.recipes.merging.plan import MergeWishes, default_plan
from graphsurgery.training.data import load_data
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives.several_tasks import SeveralTasks, TasksInOne, in_one, of_all
from graphsurgery.training.objectives.tasks import CrossEntropy

SILENT = SilentReporter()
PLAN = TrainingPlan(epochs=8, lr=0.1, batch_size=64, device="cpu", keep_best=False)


def _of(data, classes, number):
    """The same images with other labels: another task."""

    def labelled(examples):
        return TensorDataset(examples.tensors[0], number(examples.tensors[1]))

    parts = {name: labelled(getattr(data, name)) for name in ("train", "validation", "test")}
    return replace(data, **parts, classes=classes, name=f"{classes} classes")


@pytest.fixture(scope="module")
def tasks():
    digits = load_data("digits?train=600")
    return [_of(digits, 10, lambda labels: labels), _of(digits, 2, lambda labels: labels % 2)]


@pytest.fixture(scope="module")
def parents(tasks):
    found = []
    for seed, (data, width) in enumerate(zip(tasks, (8, 6), strict=True)):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()]
        network = nn.Sequential(*layers, nn.Linear(36 * width, data.classes))
        graph = gs.trace(network, torch.zeros(2, 1, 8, 8))
        fit(graph.module, data.train, replace(PLAN, seed=seed), objective=CrossEntropy(data.classes), reporter=SILENT)
        found.append(graph)
    return found


@pytest.fixture(scope="module")
def merged(parents, tasks):
    plan = default_plan(parents, by="joint", controls=("longer",), parent_epochs=8.0)
    plan = replace(plan, wide=replace(plan.wide, epochs=2), fine_tuning=replace(plan.fine_tuning, epochs=6))
    return merge_heads(parents, tasks, plan, reporter=SILENT)


def test_both_tasks_are_kept(merged, tmp_path):
    rows = {row.name: row for row in merged.outcome.rows}
    assert list(rows) == ["parent of each task", "joint", "cut", "recalibrated", "merged", "control: longer"]
    # Chance on the mixture is below 0.35; a head that was lost would leave one of the halves there.
    assert rows["parent of each task"].test["accuracy"] > 0.8
    assert rows["merged"].test["accuracy"] > 0.8
    assert rows["merged"].note.count("%") == 2
    small = merged.graph
    assert {space.name: space.size for space in small.spaces} == {"0": 8}
    assert [output.shape[1] for output in small(torch.zeros(3, 1, 8, 8))] == [10, 2]
    assert all(check.holds for check in merged.outcome.checks)
    assert merged.outcome.origins["0"] != (0, 0)
    gs.save(small, tmp_path / "both.pt")
    gs.export_onnx(small, tmp_path / "both.onnx")
    assert gs.check_onnx(small, tmp_path / "both.onnx").deviation <= 1e-4


def test_each_head_has_a_loss_of_its_own():
    heads = nn.Module()
    x, labels, tasks = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    first, second = torch.randn(6, 3), torch.randn(6, 2)
    heads.forward = lambda _: (first, second)
    losses = SeveralTasks([3, 2]).loss(heads, (x.long(), labels, tasks))  # tokens
    expected = nn.functional.cross_entropy(first[:3], labels[:3]), nn.functional.cross_entropy(second[3:], labels[3:])
    torch.testing.assert_close(losses["task 1"], expected[0] / 2)
    torch.testing.assert_close(losses["task 2"], expected[1] / 2)
    torch.testing.assert_close(losses["total"], (expected[0] + expected[1]) / 2)
    answers = torch.zeros(6, 3)
    answers[:3], answers[3:, :2] = first[:3], second[3:]
    agreed = SeveralTasks([3, 2], Imitation("kl", labels=0.0)).loss(heads, (x, labels, tasks, answers))
    torch.testing.assert_close(agreed["total"], torch.tensor(0.0), atol=1e-6, rtol=0)
    predicted, _ = SeveralTasks([3, 2]).predict(heads, (x, labels, tasks))
    assert torch.equal(predicted.argmax(1), torch.cat([first[:3].argmax(1), second[3:].argmax(1)]))


class Plain(Dataset):
    """Examples that are not in memory."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        return self.dataset[index]

    def __len__(self):
        return len(self.dataset)


def test_examples_of_several_tasks(tasks):
    parts = [data.test for data in tasks]
    answers = torch.randn(sum(map(len, parts)), 10)
    whole, one_by_one = in_one(parts, answers), in_one([Plain(part) for part in parts], answers)
    assert isinstance(one_by_one, TasksInOne)
    assert len(whole) == len(one_by_one) == 2 * len(parts[0])
    for index in (0, len(parts[0]), len(whole) - 1):
        assert all(torch.equal(a, b) for a, b in zip(whole[index], one_by_one[index], strict=True))


def test_refuses_what_does_not_fit(parents, tasks):
    with pytest.raises(gs.SurgeryError, match="2 parents have 1 tasks; give the data of each"):
        merge_heads(parents, tasks[:1])
    with pytest.raises(gs.SurgeryError, match="--heads both trains the parents together; --by soup keeps one head"):
        merge_heads(parents, tasks, default_plan(parents, by="soup", controls=()))
    with pytest.raises(gs.SurgeryError, match=r"parent 1: gives outputs \[10\], 2 classes has 2 classes"):
        merge_heads(parents, tasks[::-1])
    with pytest.raises(gs.SurgeryError, match=r"inputs of one shape, not \[1, 8, 8\] and \[64\]"):
        of_all([tasks[0], replace(tasks[1], input_shape=(64,))])
    with pytest.raises(gs.SurgeryError, match="wave: has no classes; heads can be kept of tasks with classes"):
        of_all([tasks[0], replace(tasks[1], classes=None, name="wave")])


def test_wishes_name_the_data_of_the_others():
    assert MergeWishes().further_tasks(2) == []
    assert MergeWishes(heads="both", tasks="a?b=1 c").further_tasks(3) == ["a?b=1", "c"]
    with pytest.raises(gs.SurgeryError, match="--tasks: 0 for 2 parents; --data is the first parent's"):
        MergeWishes(heads="both").further_tasks(2)
    with pytest.raises(gs.SurgeryError, match="only with --heads both"):
        MergeWishes(tasks="a").further_tasks(2)
    with pytest.raises(gs.SurgeryError, match="--by gates keeps one head, use joint"):
        MergeWishes(heads="both", tasks="a", by="gates").further_tasks(2)


def test_the_losses_of_an_epoch_do_not_depend_on_who_is_in_a_batch():
    """A rare task is in few batches."""
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(60, 4, generator=generator), torch.arange(60) % 2
    whole = TensorDataset(x, labels, (torch.arange(60) >= 54).long())
    network = OwnHeads([nn.Linear(4, 2), nn.Linear(4, 2)])
    plan = TrainingPlan(epochs=1, batch_size=5, lr=0.0, device="cpu")
    (record,) = fit(network, whole, plan, objective=SeveralTasks([2, 2])).records
    heads = network(x)
    for task, own in enumerate((slice(0, 54), slice(54, 60))):
        expected = nn.functional.cross_entropy(heads[task][own], labels[own], reduction="sum") / 60
        assert record.train[f"task {task + 1}"] == pytest.approx(expected.item(), rel=1e-5)
