"""Net2Net on Fashion-MNIST: each way to initialise a wider and a deeper network, over three seeds.

    python benchmarks/growth.py

A small CNN with BatchNorms is trained; then it is widened by 1.5 and trained on, by each init, and deepened behind each
of its layers. All train for as many steps at a tenth of the teacher's rate, but the new networks at the whole rate.
Writes a section of docs/benchmarks.md and docs/images/growth.svg.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from document import DOCS, measured, table, write_section
from torch.utils.data import TensorDataset

from graphsurgery.graph import ModelGraph
from graphsurgery.passes.deepen import deepen
from graphsurgery.passes.widen import widen
from graphsurgery.recipes.train import train
from graphsurgery.surgery.deviation import changed_by
from graphsurgery.surgery.growth.fresh_weights import reinitialized
from graphsurgery.training.data import Data, load_data
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives import objective_for

SPEC = "paper/cnn?width=8"
BY = 1.5
PLAN = TrainingPlan(epochs=8, batch_size=128, lr=0.1, schedule="cosine", weight_decay=5e-4)
EPOCHS = 12
GAIN = 0.005
"""Half a point above the teacher's accuracy: what the steps are counted to."""


@dataclass
class Found:
    """What one network did in one seed: change of the outputs, accuracies (validation by epoch, test), ranks."""

    change: float
    start: float
    curve: list[float]
    test: float
    rank: str

    def steps(self, goal: float, per_epoch: int) -> float:
        """Steps until the validation accuracy reaches a goal; infinite if it never does."""
        reached = [epoch for epoch, accuracy in enumerate([self.start, *self.curve]) if accuracy >= goal]
        return reached[0] * per_epoch if reached else float("inf")


def starts(teacher: ModelGraph, data: Data, seed: int) -> dict[str, Callable[[], ModelGraph]]:
    """Every network that is trained on, by name."""
    examples = [torch.stack([data.train[i][0] for i in range(1000)])]
    named: dict[str, Callable[[], ModelGraph]] = {
        "teacher continued": lambda: replace(teacher, module=copy.deepcopy(teacher.module))
    }
    for init in ("unequal", "equal", "equal+noise", "random-pad"):
        named[f"wider, {init}"] = lambda init=init: widen(teacher, BY, init=init, seed=seed)
    named["wider, unequal, whole rate"] = lambda: widen(teacher, BY, seed=seed)
    named["wider, from scratch"] = lambda: reinitialized(widen(teacher, BY), seed + 50)
    named["deeper, identity"] = lambda: deepen(teacher, examples=examples, seed=seed)
    named["deeper, not calibrated"] = lambda: deepen(teacher, seed=seed)
    named["deeper, random new layers"] = lambda: random_layers(deepen(teacher, seed=seed), seed)
    named["deeper, from scratch"] = lambda: reinitialized(deepen(teacher), seed + 50)
    named["wider and deeper"] = lambda: deepen(widen(teacher, BY, seed=seed), examples=examples, seed=seed)
    return named


def random_layers(deep: ModelGraph, seed: int) -> ModelGraph:
    """The deepened network with fresh values in its new layers."""
    fresh = reinitialized(deep, seed + 70).tensors()
    with torch.no_grad():
        for name, tensor in deep.tensors().items():
            if "_deeper" in name:
                tensor.copy_(fresh[name])
    return deep


def one(name: str, graph: ModelGraph, teacher: ModelGraph, data: Data, seed: int) -> Found:
    """Train one network on, and look at it."""
    objective = objective_for(data)
    change = changed_by(teacher, graph) if "scratch" not in name else float("nan")
    start = evaluate(graph.module, data.validation, objective)["accuracy"]
    whole = "scratch" in name or "whole rate" in name
    plan = replace(PLAN, epochs=EPOCHS, seed=seed, device="cpu", lr=PLAN.lr if whole else 0.1 * PLAN.lr)
    history = fit(
        graph.module, data.train, plan, objective=objective, validation=data.validation, reporter=SilentReporter()
    )
    curve = [record.validation["accuracy"] for record in history.records]
    test = evaluate(graph.module, data.test, objective)["accuracy"]
    return Found(change, start, curve, test, ranks(graph))


def ranks(graph: ModelGraph) -> str:
    """The rank of the weights of each old convolution, `[out, in times kernel]`, of how much is possible."""
    shown = []
    for name, tensor in graph.tensors().items():
        if tensor.dim() == 4 and "_deeper" not in name:
            matrix = tensor.detach().double().flatten(1)
            shown.append(f"{int(torch.linalg.matrix_rank(matrix, rtol=1e-5))}/{min(matrix.shape)}")
    return " ".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=12000, help="of the training set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    whole = load_data(options.data)
    order = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(0))[: options.images]
    pairs = [whole.train[int(i)] for i in order]
    images, labels = torch.stack([x for x, _ in pairs]), torch.stack([torch.as_tensor(y) for _, y in pairs])
    data = replace(whole, train=TensorDataset(images, labels))
    per_epoch = -(-options.images // PLAN.batch_size)
    found: dict[str, list[Found]] = {}
    steps: dict[str, list[float]] = {}
    teachers: list[float] = []
    for seed in range(options.seeds):
        teacher = train(SPEC, data, replace(PLAN, seed=seed, device="cpu"), reporter=SilentReporter()).graph
        objective = objective_for(data)
        goal = evaluate(teacher.module, data.validation, objective)["accuracy"] + GAIN
        teachers.append(evaluate(teacher.module, data.test, objective)["accuracy"])
        print(f"seed {seed}: teacher {teachers[-1]:.4f}", flush=True)
        for name, make in starts(teacher, data, seed).items():
            result = one(name, make(), teacher, data, seed)
            found.setdefault(name, []).append(result)
            steps.setdefault(name, []).append(result.steps(goal, per_epoch))
            print(f"  {name}: {result.change:.1e} {result.start:.4f} {result.test:.4f} {result.rank}", flush=True)
    rows = [_row(name, results, steps[name]) for name, results in found.items()]
    head = ["network", "outputs change by", "accuracy at step 0", "steps to teacher + 0.5", "test accuracy", "by seed"]
    head.append("ranks of the convolutions")
    command = measured(f"python benchmarks/growth.py --data {options.data}", time.perf_counter() - began)
    text = table(head, rows)
    print(text)
    draw(found)
    write_section("growth", f"{command}\n\n{note(options, teachers, per_epoch)}\n\n{text}\n\n{PICTURE}")


PICTURE = "![Validation accuracy over the steps after growing](images/growth.svg)"


def note(options: argparse.Namespace, teachers: list[float], per_epoch: int) -> str:
    """What was run."""
    each = ", ".join(f"{100 * accuracy:.2f}" for accuracy in teachers)
    return (
        f"`{SPEC}`, {options.images:,} training images, {options.seeds} seeds. The teacher has {PLAN.epochs} epochs at "
        f"{PLAN.lr:g} and then {100 * statistics.mean(teachers):.2f} % on the test set ({each}). Every network below "
        f"gets {EPOCHS} epochs of {per_epoch} steps at a tenth of that rate, falling to zero as the teacher's did; "
        f"from scratch at the whole rate. Step 0 and steps are on validation data, read after every epoch; a dash is "
        f"a network that never got there, and a number in brackets says in how many seeds it did. Accuracies are "
        f"means, of the last epoch; ranks are those of the first seed, of at most. No two layers of this network have "
        f"one shape, so `next` would be `equal`."
    )


def _row(name: str, results: list[Found], steps: list[float]) -> list[str]:
    reached = sorted(count for count in steps if count != float("inf"))
    shown = f"{statistics.mean(reached):.0f}" if reached else "–"
    if reached and len(reached) < len(steps):
        shown += f" ({len(reached)} of {len(steps)})"
    change = max(result.change for result in results)
    tests = [100 * result.test for result in results]
    return [
        name,
        "–" if change != change else f"`{change:.0e}`" if change else "0",
        f"{100 * statistics.mean(result.start for result in results):.2f} %",
        shown,
        f"{statistics.mean(tests):.2f} %",
        ", ".join(f"{value:.1f}" for value in tests),
        results[0].rank,
    ]


def draw(found: dict[str, list[Found]]) -> None:
    """Mean validation accuracy over the epochs, one panel for wider and one for deeper networks."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axes, kind in zip(panels, ("wider", "deeper"), strict=True):
        for name, results in found.items():
            if kind in name or name == "teacher continued":
                curves = torch.tensor([[result.start, *result.curve] for result in results]).mean(0)
                axes.plot(100 * curves, label=name, linewidth=1.4)
        axes.set(xlabel="epochs after growing", ylim=(80, None), title=kind)
        axes.legend(fontsize=7, loc="lower right")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation accuracy, %")
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "growth.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
