"""One network with a head for each of several tasks: their examples in one data set, and one loss for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from graphsurgery.errors import SurgeryError
from graphsurgery.network.outputs.naming import named_outputs
from graphsurgery.training.data.batches import SeededExamples
from graphsurgery.training.data.dataset import Data, size_of
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.objectives.imitation import imitation_loss
from graphsurgery.training.objectives.tasks import Batch, CrossEntropy

_NEVER = -1e4
"""The logit of a class that a task does not have."""


class TasksInOne(Dataset[Any]):
    """The examples of several data sets one after another, `(x, label, task)`; with answers `(x, label, task, logits)`.

    Args:
        datasets: of examples `(x, label)`, one for each task.
        answers: what teachers say about each example of them all, `[examples, classes]`; see `padded`.
    """

    def __init__(self, datasets: Sequence[Dataset[Any]], answers: Tensor | None = None) -> None:
        # What teachers said is said of examples as they were augmented then.
        self.datasets = datasets if answers is None else [SeededExamples(part) for part in datasets]
        self.answers = answers
        self.places = [(task, index) for task, part in enumerate(datasets) for index in range(size_of(part))]

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        task, place = self.places[index]
        x, label = self.datasets[task][place][:2]
        example = (torch.as_tensor(x), torch.as_tensor(label), torch.tensor(task))
        return example if self.answers is None else (*example, self.answers[index])

    def __len__(self) -> int:
        return len(self.places)


def in_one(datasets: Sequence[Dataset[Any]], answers: Tensor | None = None) -> Dataset[Any]:
    """The same; of tensors in memory a TensorDataset."""
    if not all(type(part) is TensorDataset for part in datasets):
        return TasksInOne(datasets, answers)
    x, labels = (torch.cat([part.tensors[i] for part in datasets]) for i in (0, 1))  # type: ignore[attr-defined]
    tasks = torch.cat([torch.full((size_of(part),), task) for task, part in enumerate(datasets)])
    return TensorDataset(x, labels, tasks, *(() if answers is None else (answers,)))


def of_all(tasks: Sequence[Data]) -> Data:
    """The data of several tasks as those of one, whose examples say which task is theirs.

    Raises:
        SurgeryError: inputs have unlike shapes, or a task has no classes.
    """
    shapes = [list(data.input_shape) for data in tasks]
    if any(shape != shapes[0] for shape in shapes):
        raise SurgeryError(f"tasks of one network need inputs of one shape, not {' and '.join(map(str, shapes))}")
    without = [data.name for data in tasks if data.classes is None]
    if without:
        raise SurgeryError(f"{without[0]}: has no classes; heads can be kept of tasks with classes")
    return Data(
        train=in_one([data.train for data in tasks]),
        validation=in_one([data.validation for data in tasks]),
        test=in_one([data.test for data in tasks]),
        input_shape=tasks[0].input_shape,
        classes=max(data.classes or 0 for data in tasks),
        name=" and ".join(data.name for data in tasks),
    )


def padded(logits: Tensor, classes: int) -> Tensor:
    """Logits `[batch, some classes]` with those of classes that the task does not have: they are never chosen."""
    return F.pad(logits, (0, classes - logits.shape[1]), value=_NEVER)


class SeveralTasks(CrossEntropy):
    """The cross entropy of every task on its own examples, by its own head; scored by the accuracy on all of them.

    Args:
        classes: how many each task has.
        imitation: how what teachers say counts beside the labels, for examples `(x, label, task, logits)`; None learns
            from labels alone.
    """

    def __init__(self, classes: Sequence[int], imitation: Imitation | None = None) -> None:
        super().__init__(max(classes))
        self.by_task, self.imitation = tuple(classes), imitation

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`total`, the mean over all examples, and the part of it that the examples of each task give."""
        x, labels, tasks = batch[:3]
        named = {}
        for number, (logits, classes) in enumerate(zip(self._heads(module(x)), self.by_task, strict=True)):
            own = tasks == number
            if not bool(own.any()):
                named[f"task {number + 1}"] = logits.sum() * 0
                continue
            loss = F.cross_entropy(logits[own], labels[own])
            if self.imitation is not None:
                teacher = batch[3][own][:, :classes].to(logits)
                share = self.imitation.labels
                loss = share * loss + (1 - share) * imitation_loss(self.imitation, logits[own], teacher)
            named[f"task {number + 1}"] = own.float().mean() * loss
        return {"total": torch.stack(list(named.values())).sum(), **named}

    def predict(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits of each example's own task, `[batch, most classes]`, and its label."""
        x, labels, tasks = batch[:3]
        heads = torch.stack([padded(logits, self.classes) for logits in self._heads(module(x))])
        return heads[tasks, torch.arange(len(tasks), device=tasks.device)], labels

    def _heads(self, output: Any) -> list[Tensor]:
        """The logits of every task."""
        found: Mapping[str, Tensor] = named_outputs(output)
        shapes = [list(tensor.shape[1:]) for tensor in found.values()]
        if shapes != [[classes] for classes in self.by_task]:
            raise SurgeryError(f"the network gives {shapes}, expected a head for each of {list(self.by_task)} classes")
        return list(found.values())
