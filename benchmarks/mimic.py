"""Do shallow networks learn more from teachers than from labels? On Fashion-MNIST, over three seeds.

    python benchmarks/mimic.py

Three ResNets learn 12,000 labelled images, and are averaged. Networks with one hidden layer then learn the same labels,
or what one or all of them say: about the same images, about 42,000 more whose labels nobody looks at, and about
shifted and noisy copies. Writes a section of docs/benchmarks.md and docs/images/mimic.svg.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from document import DOCS, measured, table, write_section
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from graphsurgery.graph import ModelGraph
from graphsurgery.passes.factorize import factorize, unfactorize
from graphsurgery.recipes.train import fresh, train
from graphsurgery.training.data import Data, load_data
from graphsurgery.training.data.transfer import answered, augmented, unlabelled
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.loop.run import History
from graphsurgery.training.objectives import CrossEntropy, Objective, objective_for
from graphsurgery.training.objectives.imitation import Mimicry
from graphsurgery.training.objectives.teachers import Teachers, logits_of

TEACHER = "paper/resnet20?in_channels=1&width=8"
TEACHING = TrainingPlan(epochs=6, batch_size=64, lr=0.1, weight_decay=5e-4, device="cpu")
STEPS = 4220
"""Steps of every student, however many examples it sees."""
LEARNING = TrainingPlan(batch_size=128, lr=0.05, device="cpu")
SIZES = (50, 200, 1000)
BOTTLENECK = 60
SILENT = SilentReporter()


@dataclass
class Found:
    """Test accuracies by seed, and of the first seed the losses over the steps and the seconds of an epoch."""

    parameters: int
    tests: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)


def learn(graph: ModelGraph, dataset: Dataset[Any], objective: Objective, data: Data, seed: int) -> History:
    """Train a student for `STEPS` steps."""
    per_epoch = -(-len(dataset) // LEARNING.batch_size)  # type: ignore[arg-type]
    plan = replace(LEARNING, epochs=max(1, round(STEPS / per_epoch)), seed=seed)
    return fit(graph.module, dataset, plan, objective=objective, validation=data.validation, reporter=SILENT)


def one_seed(whole: Data, seed: int, labelled: int, found: dict[tuple[str, int], Found]) -> dict[str, float]:
    """All students of one seed; returns the accuracies of the teachers."""
    order = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    assert isinstance(whole.train, TensorDataset)
    x, y = whole.train.tensors
    known, rest = order[:labelled], order[labelled:]
    data = replace(whole, train=TensorDataset(x[known], y[known]))
    members = [
        train(TEACHER, data, replace(TEACHING, seed=10 * seed + index), reporter=SILENT).graph.module
        for index in range(3)
    ]
    everyone, one = Teachers(members), Teachers(members[:1])
    more = unlabelled(TensorDataset(x[rest], y[rest]))
    shifted = augmented(TensorDataset(x[order], torch.zeros(len(order), dtype=torch.long)), 1, seed)
    score = {"one": _accuracy(one, data), "three, averaged": _accuracy(everyone, data)}
    sets = {
        "what one teacher says of them": answers(one, [data.train]),
        "what three teachers say of them": answers(everyone, [data.train]),
        "... and of 42,000 without labels": answers(everyone, [data.train, more]),
        "... and of shifted copies": answers(everyone, [shifted]),
    }
    for size in SIZES:
        spec = f"paper/mlp?inputs=784&hidden={size}&outputs=10"
        for name, dataset in {f"{labelled:,} labels": data.train, **sets}.items():
            graph = fresh(spec, data, seed)
            objective = Mimicry(10, Imitation()) if dataset is not data.train else CrossEntropy(10)
            _learn(found, (name, size), graph, dataset, objective, data, seed)
    dataset = sets["... and of 42,000 without labels"]
    narrow = factorize(fresh(spec, data, seed), ["hidden"], rank=BOTTLENECK, how="random", seed=seed)
    key = (f"the same through {BOTTLENECK} channels", SIZES[-1])
    _learn(found, key, narrow, dataset, Mimicry(10, Imitation()), data, seed)
    assert abs(_accuracy(unfactorize(narrow).module, data) - _accuracy(narrow.module, data)) < 2e-3
    return score


def answers(teachers: Teachers, parts: list[Dataset[Any]]) -> Dataset[Any]:
    """Examples with the teachers' logits, in memory."""
    whole = [answered(part, logits_of(teachers, part, device="cpu")) for part in parts]
    tensors = [part.tensors for part in whole]  # type: ignore[attr-defined]
    return TensorDataset(*(torch.cat(column) for column in zip(*tensors, strict=True)))


def _learn(
    found: dict[tuple[str, int], Found],
    key: tuple[str, int],
    graph: ModelGraph,
    dataset: Dataset[Any],
    objective: Objective,
    data: Data,
    seed: int,
) -> None:
    began = time.process_time()
    history = learn(graph, dataset, objective, data, seed)
    seconds = time.process_time() - began
    parameters = sum(p.numel() for p in graph.module.parameters())
    entry = found.setdefault(key, Found(parameters))
    entry.tests.append(_accuracy(graph.module, data))
    entry.seconds.append(seconds)
    if not entry.curve:
        clock = 0.0
        for record in history.records:
            clock += record.seconds
            entry.curve.append((clock, record.train["total"]))
    print(f"  {key}: {entry.tests[-1]:.4f} {seconds:.1f} s", flush=True)


def _accuracy(module: nn.Module, data: Data) -> float:
    return evaluate(module, data.test, objective_for(data))["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labelled", type=int, default=12000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    whole = load_data(options.data)
    found: dict[tuple[str, int], Found] = {}
    teachers: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        print(f"seed {seed}", flush=True)
        for name, score in one_seed(whole, seed, options.labelled, found).items():
            teachers.setdefault(name, []).append(score)
    names = list(dict.fromkeys(name for name, _ in found))
    rows = [[name, *(_cell(found.get((name, size))) for size in SIZES)] for name in names]
    sizes = [f"{size} hidden ({found[names[0], size].parameters / 1e3:.0f} k)" for size in SIZES]
    text = table(["learnt from", *sizes], rows)
    print(text)
    draw(found)
    command = measured(f"python benchmarks/mimic.py --data {options.data}", time.perf_counter() - began)
    write_section("mimic", f"{command}\n\n{note(options, teachers, found)}\n\n{text}\n\n{PICTURE}")


PICTURE = "![Loss of the students of 1,000 hidden units over the seconds of training](images/mimic.svg)"


def note(options: argparse.Namespace, teachers: dict[str, list[float]], found: dict[tuple[str, int], Found]) -> str:
    """What was run, and what the bottleneck costs."""
    shown = "; ".join(f"{name} {100 * statistics.mean(scores):.2f} %" for name, scores in teachers.items())
    full = found["... and of 42,000 without labels", SIZES[-1]]
    narrow = found[f"the same through {BOTTLENECK} channels", SIZES[-1]]
    share = statistics.mean(narrow.seconds) / statistics.mean(full.seconds)
    return (
        f"Test accuracy of networks with one hidden layer, means and each of {options.seeds} seeds. The teachers are "
        f"`{TEACHER}`, {TEACHING.epochs} epochs on the labels of {options.labelled:,} images: {shown}. Every student "
        f"has {STEPS:,} steps of {LEARNING.batch_size}, whatever it learns from; squared distance of centred logits. "
        f"Through a bottleneck the hidden layer of {SIZES[-1]:,} has {BOTTLENECK * (784 + SIZES[-1]):,} weights in "
        f"place of {784 * SIZES[-1]:,}, and training took {share:.2f} "
        f"times the processor seconds. Copies are of all images, labelled or not."
    )


def _cell(entry: Found | None) -> str:
    if entry is None:
        return ""
    tests = [100 * value for value in entry.tests]
    return f"{statistics.mean(tests):.2f} % ({', '.join(f'{value:.1f}' for value in tests)})"


def draw(found: dict[tuple[str, int], Found]) -> None:
    """The loss over the seconds, with and without bottleneck."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 3.8))
    for name, size in found:
        if size == SIZES[-1] and name.startswith(("... and of 42,000", "the same through")):
            seconds, losses = zip(*found[name, size].curve, strict=True)
            axes.plot(seconds, losses, label=name.removeprefix("... and "), marker=".")
    axes.set(xlabel="seconds", ylabel="training loss", yscale="log")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "mimic.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
