"""Merging on the sine task: two teachers, gates, cut and fine-tuning, against equal training of single networks.

MLPs 1-100-1 learn `y = sin(10 pi x) + N(0, 0.2)` from 10,000 points. Every network is traced, concatenated, gated and
compressed by the library; only the training loop is the benchmark's own: it trains the same stage of all seeds as one
batch of networks (`torch.func.vmap` over the traced module). Every network has its own data order and its own masks.

Source: Pašen & Boža, "Merging of neural networks", arXiv:2204.09973, section 4.1.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

from graphsurgery.surgery.gates import gates

matplotlib.use("svg")

import torch
from document import DOCS, measured, table, write_section
from matplotlib import pyplot
from torch import Tensor
from torch.func import functional_call, vmap

import graphsurgery as gs
from graphsurgery.models.specs import build
from graphsurgery.network.layers import ChannelGate
from graphsurgery.passes import compress, concatenate, gate

POINTS, BATCH, NOISE, KEEP = 10_000, 32, 0.2, 0.5
GRID = torch.linspace(-1, 1, 2001)[:, None]
TEACHERS = 3


def sine(x: Tensor) -> Tensor:
    return torch.sin(10 * math.pi * x)


@dataclass(frozen=True)
class Stage:
    """Epochs of one training, and after how many of them the rate of 0.01 becomes 0.001."""

    epochs: int
    drop: int

    def scaled(self, factor: float) -> Stage:
        return Stage(max(1, round(self.epochs * factor)), max(1, round(self.drop * factor)))


STAGES = {
    "teacher": Stage(300, 250),
    "gates": Stage(150, 150),
    "fine-tune": Stage(150, 100),
    "one network": Stage(900, 800),
}
RATE, GATE_RATE, MOMENTUM = 0.01, 0.1, 0.9
PENALTY, PENALTY_STEP = 0.01, 0.05


class Population:
    """Traced networks of one structure, with their weights stacked so that one call runs them all."""

    def __init__(self, graphs: Sequence[gs.ModelGraph]) -> None:
        self.graphs = list(graphs)
        self.structure = graphs[0].module
        modules = [graph.module for graph in graphs]
        self.weights = {
            name: torch.stack([module.get_parameter(name).detach() for module in modules]).requires_grad_()
            for name, _ in self.structure.named_parameters()
        }

    def __call__(self, x: Tensor) -> Tensor:
        """`[networks, batch, 1]` from `[networks, batch, 1]`."""
        return vmap(self._run, randomness="different")(self.weights, x)

    def _run(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.structure, dict(weights), (x,))

    def open_probability(self) -> list[Tensor]:
        """`P[g > 0]` of every gate, `[networks, channels]` for each gated space."""
        found = [(path, m) for path, m in self.structure.named_modules() if isinstance(m, ChannelGate)]
        return [torch.sigmoid(self.weights[f"{path}.loc"] - m.beta * math.log(-m.gamma / m.zeta)) for path, m in found]

    def unstack(self) -> list[gs.ModelGraph]:
        """The networks with their weights of now, in evaluation mode; each is checked to give what the batch gives."""
        self.structure.eval()
        with torch.no_grad():
            together = self(GRID.expand(len(self.graphs), -1, -1))
            for index, graph in enumerate(self.graphs):
                for name, stacked in self.weights.items():
                    graph.module.get_parameter(name).copy_(stacked[index])
                graph.module.eval()
                torch.testing.assert_close(graph(GRID), together[index], rtol=1e-4, atol=1e-5)
        return self.graphs


def train(
    graphs: Sequence[gs.ModelGraph], x: Tensor, y: Tensor, stage: Stage, seed: int, say: str
) -> list[gs.ModelGraph]:
    """Train networks by SGD with momentum on the mean squared error; gates, if there are any, also on their budget.

    Args:
        graphs: networks of one structure; they are trained in place.
        x, y: data of each network `[networks, points, 1]`.
        stage: epochs and rates.
        seed: draws the data orders, and the masks of the gates.
        say: what to call this stage.
    """
    torch.manual_seed(seed)
    start = time.perf_counter()
    population = Population(graphs)
    population.structure.train()
    names = list(population.weights)
    weights = [population.weights[name] for name in names]
    velocities = [torch.zeros_like(weight) for weight in weights]
    penalty = PENALTY
    for epoch in range(stage.epochs):
        rate = RATE if epoch < stage.drop else RATE / 10
        rates = [GATE_RATE if name.endswith(".loc") else rate for name in names]
        penalty += PENALTY_STEP * math.sqrt(penalty)
        for inputs, targets in _batches(x, y):
            error = (population(inputs) - targets).square().mean((1, 2)).sum()
            budget = [(KEEP - p.mean(1)).square().sum() for p in population.open_probability()]
            gradients = torch.autograd.grad(error + penalty * sum(budget), weights)
            with torch.no_grad():
                torch._foreach_mul_(velocities, MOMENTUM)
                torch._foreach_add_(velocities, gradients)
                torch._foreach_sub_(weights, torch._foreach_mul(velocities, rates))
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise FloatingPointError(f"{say}: a weight is not finite after epoch {epoch + 1}")
    print(f"{say}: {len(graphs)} networks, {stage.epochs} epochs, {time.perf_counter() - start:.0f} s", flush=True)
    return population.unstack()


def _batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """One epoch in batches `[networks, batch, 1]`, each network in its own order; the last batch is shorter."""
    order = torch.rand(x.shape[:2]).argsort(1)[..., None]
    shuffled = (t.gather(1, order).split(BATCH, 1) for t in (x, y))
    return list(zip(*shuffled, strict=True))


def grid_errors(graphs: Sequence[gs.ModelGraph]) -> list[float]:
    """Mean squared error of each network against the noiseless sine, on a grid."""
    with torch.no_grad():
        return [float((graph(GRID) - sine(GRID)).square().mean()) for graph in graphs]


@dataclass
class Results:
    """Test errors by point, one for each seed; what else the report tells."""

    seeds: int
    errors: dict[str, list[float]] = field(default_factory=dict)
    teachers: list[list[float]] = field(default_factory=list)
    open_share: list[float] = field(default_factory=list)
    fits: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def wins(self) -> int:
        """In how many seeds the merged network is better than both controls."""
        points = (self.errors[name] for name in ("merged", "one network", "best of three"))
        return sum(merged < min(one, best) for merged, one, best in zip(*points, strict=True))


def run(seeds: int, factor: float = 1.0) -> Results:
    """The whole experiment; `factor` shortens every stage."""
    start = time.perf_counter()
    stages = {name: stage.scaled(factor) for name, stage in STAGES.items()}
    results = Results(seeds)
    x, y = _data(seeds)

    x_thrice, y_thrice = (data.repeat_interleave(TEACHERS, 0) for data in (x, y))
    nets = train(_fresh(seeds * TEACHERS, 0), x_thrice, y_thrice, stages["teacher"], 1, "teachers")
    errors = grid_errors(nets)
    results.teachers = [errors[TEACHERS * s : TEACHERS * (s + 1)] for s in range(seeds)]
    for number in range(TEACHERS):
        results.errors[f"teacher {number + 1}"] = [found[number] for found in results.teachers]

    pairs = [nets[TEACHERS * s : TEACHERS * s + 2] for s in range(seeds)]
    wide = [concatenate.concatenate(pair) for pair in pairs]
    for whole, (a, b) in zip(wide, pairs, strict=True):
        torch.testing.assert_close(whole(GRID), (a(GRID) + b(GRID)) / 2)
    results.errors["concatenated"] = grid_errors(wide)

    gated = [gate.gate(whole, seed=s) for s, whole in enumerate(wide)]
    gated = train(gated, x, y, stages["gates"], 2, "gates")
    results.errors["gated"] = grid_errors(gated)
    results.open_share = [_open_share(graph) for graph in gated]

    cut = [compress.compress(graph, keep=KEEP, importance="gate") for graph in gated]
    results.errors["cut"] = grid_errors(cut)
    merged = train(cut, x, y, stages["fine-tune"], 3, "fine-tuning")
    results.errors["merged"] = grid_errors(merged)

    single = train(_fresh(seeds, 10_000), x, y, stages["one network"], 4, "one network")
    results.errors["one network"] = grid_errors(single)
    results.errors["best of three"] = [min(found) for found in results.teachers]
    best = nets[min(range(TEACHERS), key=results.teachers[0].__getitem__)]
    with torch.no_grad():
        results.fits = {"merged": merged[0](GRID), "one network": single[0](GRID), "best of three": best(GRID)}
    results.seconds = time.perf_counter() - start
    return results


def _data(seeds: int) -> tuple[Tensor, Tensor]:
    """Inputs and noisy targets of each seed, `[seeds, points, 1]`."""
    xs, ys = [], []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        xs.append(torch.rand(POINTS, 1, generator=generator) * 2 - 1)
        ys.append(sine(xs[-1]) + NOISE * torch.randn(POINTS, 1, generator=generator))
    return torch.stack(xs), torch.stack(ys)


def _fresh(count: int, first_seed: int) -> list[gs.ModelGraph]:
    graphs = []
    for seed in range(first_seed, first_seed + count):
        torch.manual_seed(seed)
        graphs.append(gs.trace(build("paper/mlp"), torch.zeros(1, 1)))
    return graphs


def _open_share(graph: gs.ModelGraph) -> float:
    """The expected share of open channels of a gated network."""
    with torch.no_grad():
        return float(torch.cat([module.open_probability() for module in gates(graph).values()]).mean())


LABELS = {
    "concatenated": "concatenated (200 channels)",
    "gated": "gated, 150 epochs, deterministic gates",
    "cut": "cut to 100 channels, gains folded",
    "merged": "**merged**: fine-tuned 150 epochs",
    "one network": "control: one network, 900 epochs",
    "best of three": "control: best of three, 300 epochs each",
}


def report(results: Results, command: str) -> str:
    """The section of docs/benchmarks.md."""
    rows = []
    for name, errors in results.errors.items():
        cells = (f"{statistics.median(errors):.3f}", f"{statistics.mean(errors):.3f}")
        rows.append([LABELS.get(name, f"{name}, 300 epochs"), *cells, f"{min(errors):.3f}–{max(errors):.3f}"])
    low, high = min(results.open_share), max(results.open_share)
    summary = (
        f"Merged is better than both controls in **{results.wins} of {results.seeds}** seeds. At the cut the expected"
        f" share of open gates is {low:.3f} to {high:.3f}; the budget is {KEEP}. Merged and both controls train for 900"
        " epochs in all, gates included; as the gated network is twice as wide, that is 1050 epochs of a single network"
        " in multiplications. Every result is the last epoch's; best of three is chosen by test error, in its favour."
    )
    return "\n\n".join(
        [
            measured(command, results.seconds),
            table(["test error (mean squared)", "median", "mean", "range"], rows),
            summary,
            "![Test errors of every seed, and the fits of one](images/sine.svg)",
        ]
    )


def plot(results: Results, path: Path) -> None:
    """Errors of every seed, and what the networks of the first seed learned."""
    pyplot.rcParams.update({"svg.hashsalt": "sine", "font.size": 10})
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 3.6), width_ratios=(1.3, 1), layout="constrained")
    teachers = [error for found in results.teachers for error in found]
    shown = {"teachers": teachers, **{name: errors for name, errors in results.errors.items() if name in LABELS}}
    colors = {"merged": "tab:red", "one network": "tab:blue", "best of three": "tab:green"}
    for place, (name, errors) in enumerate(shown.items()):
        color = colors.get(name, "0.45")
        spread = [place + 0.3 * ((i + 0.5) / len(errors) - 0.5) for i in range(len(errors))]
        left.scatter(spread, errors, s=14, color=color, alpha=0.75, linewidths=0)
        left.hlines(statistics.median(errors), place - 0.3, place + 0.3, color=color)
    left.set_xticks(range(len(shown)), [name.replace(" ", "\n", 1) for name in shown], fontsize=8)
    left.set_ylim(0)
    left.set_ylabel("test error (mean squared)")
    left.set_title(f"{results.seeds} seeds; a dot each, lines are medians", fontsize=10)
    grid = GRID[:, 0]
    right.plot(grid, sine(grid), color="0.8", linewidth=4, label="sin(10 π x)")
    for name, fit in results.fits.items():
        right.plot(grid, fit[:, 0], color=colors[name], linewidth=1.2, label=name)
    right.set_ylim(-1.7, 2.3)
    right.set_xlabel("x")
    right.set_title("What the networks of the first seed learned", fontsize=10)
    right.legend(ncols=2, loc="upper center", fontsize=8, frameon=False)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    metadata: dict[str, Any] = {"Date": None}
    figure.savefig(path, metadata=metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description="Merging on the sine task, against equal training.")
    parser.add_argument("--seeds", type=int, default=10, help="independent repetitions, trained together")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the epochs; prints and writes nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = run(arguments.seeds, 0.02 if arguments.quick else 1.0)
    command = "python benchmarks/sine.py" + (f" --seeds {arguments.seeds}" if arguments.seeds != 10 else "")
    print(report(results, command))
    if not arguments.quick:
        DOCS.joinpath("images").mkdir(exist_ok=True)
        plot(results, DOCS / "images" / "sine.svg")
        write_section("sine", report(results, command))


if __name__ == "__main__":
    main()
