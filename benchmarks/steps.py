"""What does a step of `fit` take next to a bare loop of PyTorch?

    python benchmarks/steps.py

The same network, data, optimizer and batches, in one process and one thread, in turn; seconds of the processor. The
bare loop draws batches from tensors in memory, computes the loss, its gradients, and steps; it has no schedule, keeps
no sum of losses, and does not look whether they are finite.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from document import DOCS, measured, table, write_section
from torch import nn
from torch.utils.data import TensorDataset

from graphsurgery.models.specs import build
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.optimizers import make_optimizer, parameter_groups
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives.tasks import CrossEntropy

STEPS, TURNS = 200, 7


@dataclass(frozen=True)
class Task:
    """A network, the shape of an example, and how many are in a batch."""

    spec: str
    shape: tuple[int, ...]
    batch: int
    optimizer: str = "sgd"


TASKS = (
    Task("paper/cnn?width=3", (1, 8, 8), 64),
    Task("paper/lenet_300_100", (1, 28, 28), 64),
    Task("paper/resnet20?in_channels=1&width=8", (1, 8, 8), 64),
    Task(f"{Path(__file__).with_name('small_vit.py')}:small_vit", (1, 28, 28), 32, "adamw"),
    Task("paper/cnn?width=8", (1, 28, 28), 64),
)


def bare(network: nn.Module, data: TensorDataset, plan: TrainingPlan) -> None:
    """One epoch as short as it can be written."""
    images, labels = data.tensors
    optimizer = make_optimizer(parameter_groups(network, plan), plan)
    network.train()
    for chosen in torch.randperm(len(images)).split(plan.batch_size):
        optimizer.zero_grad()
        F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    network.eval()


def ours(network: nn.Module, data: TensorDataset, plan: TrainingPlan) -> None:
    """The same epoch by `fit`."""
    fit(network, data, plan, objective=CrossEntropy(10), reporter=SilentReporter())


def seconds(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def row(task: Task) -> list[str]:
    """One line of the table: milliseconds of both, and the median of their ratios."""
    torch.manual_seed(0)
    network = build(task.spec)
    data = TensorDataset(torch.randn(STEPS * task.batch, *task.shape), torch.randint(0, 10, (STEPS * task.batch,)))
    plan = TrainingPlan(
        epochs=1, batch_size=task.batch, lr=1e-3, optimizer=task.optimizer, keep_best=False, device="cpu"
    )
    ways = [lambda: bare(network, data, plan), lambda: ours(network, data, plan)]
    for way in ways:
        way()
    turns = [[seconds(way) for way in ways] for _ in range(TURNS)]
    times = [1e3 * statistics.median(turn[i] for turn in turns) / STEPS for i in (0, 1)]
    ratio = statistics.median(turn[1] / turn[0] for turn in turns)
    name = task.spec.removeprefix(f"{Path(__file__).parent}/")
    return [f"`{name}`", f"{task.batch}", f"{times[0]:.2f}", f"{times[1]:.2f}", f"{ratio:.3f}"]


def main() -> None:
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = [row(task) for task in TASKS]
    head = ["network", "batch", "bare loop (ms a step)", "`fit` (ms a step)", "ratio"]
    text = f"{measured('python benchmarks/steps.py', time.perf_counter() - began)}\n\n{NOTE}\n\n{table(head, rows)}"
    print(text)
    write_section("steps", text, DOCS / "benchmarks.md")


NOTE = f"""An epoch of {STEPS} steps, {TURNS} times in turn, seconds of the processor; the ratio is the median of
the turns. `fit` also sets rates, adds up losses, looks whether they are finite, and makes its optimizer and
accelerator."""


if __name__ == "__main__":
    main()
