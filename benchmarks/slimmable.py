"""Does one set of weights do at every width what networks trained for one width do? On Fashion-MNIST.

    python benchmarks/slimmable.py
    python benchmarks/slimmable.py --models narrow --parts alone sandwich
    python benchmarks/slimmable.py --write

A small CNN and a small MobileNetV2 are trained as slimmable networks, by the sandwich rule, by random widths and with
switchable BatchNorms, and alone at each width for as many epochs; a CNN that has too few channels for its task shows
when sharing weights costs accuracy. Each part of each network and seed is a file in `--results`, and is not measured
twice; `--write` puts what is there into docs/benchmarks.md and docs/images/slimmable.svg.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from document import DOCS, measured, table, write_section
from torch import nn
from torch.utils.data import Subset
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops.misc import Conv2dNormActivation

from graphsurgery.graph import ModelGraph
from graphsurgery.recipes.slimming.plan import SlimPlan
from graphsurgery.recipes.slimming.slimmable import train_slimmable
from graphsurgery.recipes.train import fresh
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.channels.slimming import Slimmable
from graphsurgery.surgery.growth.fresh_weights import reinitialized
from graphsurgery.training.data import Data, load_data
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter
from graphsurgery.training.objectives import objective_for
from graphsurgery.training.objectives.sandwich import Sandwich

INPUT_SHAPE = (1, 28, 28)
MODELS = {
    "cnn": ("CNN", f"{__file__}:cnn"),
    "mobilenet": ("MobileNetV2", f"{__file__}:mobilenet"),
    "narrow": ("narrow CNN", f"{__file__}:narrow"),
}
WIDTHS = (0.25, 0.375, 0.5, 0.75, 1.0)
USUAL = ("cnn", "mobilenet")
RATE = 0.1
WARMUP = 0.8
"""Of distillation: the best of 0.2, 0.5 and 0.8 for the CNN on validation data, with a seed that is not used here."""
SILENT = SilentReporter()


def cnn() -> nn.Module:
    """Three convolutions with BatchNorm, of 32, 64 and 128 channels; `[batch, 1, 28, 28]` to `[batch, 10]`."""
    return nn.Sequential(_layer(1, 32, 3, 2), _layer(32, 64, 3, 2), _layer(64, 128, 3, 2), *_head(128))


def mobilenet() -> nn.Module:
    """A MobileNetV2 of four blocks, of 32 to 64 channels between them; `[batch, 1, 28, 28]` to `[batch, 10]`."""
    return nn.Sequential(
        _layer(1, 32, 3, 2),
        InvertedResidual(32, 32, 1, 1),
        InvertedResidual(32, 48, 2, 3),
        InvertedResidual(48, 48, 1, 3),
        InvertedResidual(48, 64, 2, 3),
        _layer(64, 192, 1, 1),
        *_head(192),
    )


def narrow() -> nn.Module:
    """Three convolutions with BatchNorm, of 12, 24 and 48 channels; `[batch, 1, 28, 28]` to `[batch, 10]`."""
    return nn.Sequential(_layer(1, 12, 3, 2), _layer(12, 24, 3, 1), _layer(24, 48, 3, 2), *_head(48))


def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    return Conv2dNormActivation(inputs, outputs, kernel, stride, activation_layer=nn.ReLU6)


def _head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)


def training(seed: int, epochs: int) -> TrainingPlan:
    """How every network is trained."""
    return TrainingPlan(epochs, 64, lr=RATE, weight_decay=1e-4, warmup=0.5, seed=seed, device="cpu")


def slimmed(spec: str, data: Data, seed: int, epochs: int, **options: Any) -> dict[str, Any]:
    """Test accuracies of a slimmable network by width: with statistics of its own, and with the whole network's."""
    plan = SlimPlan(training(seed, epochs), **options)
    known = train_slimmable(fresh(spec, data, seed), data, plan, reporter=SILENT).outcome.statistics
    slimmable = known.slimmable
    found = {"own": {f"{width}": accuracy(known.network(width, data), data) for width in WIDTHS}}
    if not slimmable.switchable:
        found["whole"] = {f"{width}": accuracy(slimmable.extract(width), data) for width in WIDTHS}
    return found


def alone(spec: str, data: Data, seed: int, epochs: int) -> dict[str, Any]:
    """Networks that are trained at one width only, from scratch; with their sizes."""
    slimmable = Slimmable(fresh(spec, data, seed))
    found: dict[str, Any] = {"own": {}, "macs": {}, "parameters": {}}
    for width in WIDTHS:
        graph = reinitialized(slimmable.extract(width), seed)
        fit(graph.module, data.train, training(seed, epochs), objective=objective_for(data), reporter=SILENT)
        found["own"][f"{width}"] = accuracy(graph, data)
        found["macs"][f"{width}"], found["parameters"][f"{width}"] = cost(graph).macs, cost(graph).parameters
    return found


def accuracy(graph: ModelGraph, data: Data) -> float:
    """On test data."""
    return evaluate(graph.module, data.test, objective_for(data))["accuracy"]


def overhead(spec: str, data: Data, seed: int, _: int, rounds: int = 40) -> dict[str, Any]:
    """Processor seconds of the loss and the gradients of four widths: of one slimmable network, and of four plain ones.

    In turn, on the same batch and at the same widths.
    """
    graph = fresh(spec, data, seed)
    graph.module.train()
    slimmable, task = Slimmable(graph), objective_for(data)
    sandwich = Sandwich(slimmable, task, distil=False)
    images, labels = zip(*(data.train[i] for i in range(training(seed, 1).batch_size)), strict=True)
    batch = (torch.stack(images), torch.tensor([int(label) for label in labels]))
    plain: dict[float, nn.Module] = {}

    def shared() -> None:
        graph.module.zero_grad()
        sandwich.loss(graph.module, batch)["total"].backward()

    def apart(widths: list[float]) -> None:
        for width in widths:
            plain[width].zero_grad()
            task.loss(plain[width], batch)["total"].backward()

    times: list[tuple[float, float]] = []
    for turn in range(-5, rounds):
        torch.manual_seed(turn % 5)
        widths = [1.0, *sandwich.chosen()]
        for width in set(widths) - plain.keys():
            plain[width] = slimmable.extract(width).module.train()
        calls: list[Callable[[], None]] = [shared, lambda widths=widths: apart(widths)]  # type: ignore[misc]
        seconds = [0.0, 0.0]
        for number in (0, 1) if turn % 2 else (1, 0):
            torch.manual_seed(turn % 5)
            began = time.process_time()
            calls[number]()
            seconds[number] = time.process_time() - began
        if turn >= 0:
            times.append((seconds[0], seconds[1]))
    return {"times": times}


PARTS: Mapping[str, Callable[[str, Data, int, int], dict[str, Any]]] = {
    "alone": alone,
    "sandwich": lambda *run: slimmed(*run, distil=False),
    "random": lambda *run: slimmed(*run, rule="random"),
    "distilled": lambda *run: slimmed(*run, warmup=WARMUP),
    "switchable": lambda *run: slimmed(*run, distil=False, switchable=WIDTHS),
    "overhead": overhead,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=6000, help="of the training set")
    parser.add_argument("--epochs", type=int, default=20, help="of every network")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=USUAL)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--results", type=Path, default=Path("build/slimmable"))
    parser.add_argument("--write", action="store_true", help="write what is there into docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    if options.write:
        write(options)
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Whatever is not there yet, seed by seed."""
    data = load_data(f"{options.data}?train={options.images}")
    # Nothing is chosen by it here; the loop only logs it.
    data = replace(data, validation=Subset(data.validation, range(500)))
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for model in options.models:
            for part in options.parts:
                file = options.results / f"{model}-{part}-{seed}.json"
                if file.exists():
                    continue
                began = time.perf_counter()
                found = PARTS[part](MODELS[model][1], data, seed, options.epochs)
                settings = {key: getattr(options, key) for key in ("data", "images", "epochs")}
                content = {"found": found, "settings": settings, "seconds": time.perf_counter() - began}
                file.write_text(json.dumps(content) + "\n")
                print(f"{file.name}: {content['seconds']:.0f} s", flush=True)


SHOWN = {
    "alone": ("trained alone", "own"),
    "sandwich": ("sandwich", "own"),
    "random": ("random widths", "own"),
    "distilled": ("sandwich, distilled", "own"),
    "switchable": ("switchable BatchNorm", "own"),
    "sandwich, whole": ("sandwich, the whole network's statistics", "whole"),
}


def write(options: argparse.Namespace) -> None:
    """The section of docs/benchmarks.md, and the plot."""
    files = sorted(options.results.glob("*-*-*.json"))
    runs = {file.stem: json.loads(file.read_text()) for file in files}
    chosen = next(iter(runs.values()))["settings"]
    scores = {model: found for model in MODELS if (found := scores_of(model, runs))}
    seconds = sum(run["seconds"] for run in runs.values())
    parts = [measured("\n".join(commands(chosen, runs)), seconds), settings(chosen)]
    for model, found in scores.items():
        parts += [f"**{MODELS[model][0]}**", rows_of(found, runs[f"{model}-alone-0"]["found"])]
        parts.append("\n".join([findings(found), *step_cost(model, runs)]))
    draw({model: found for model, found in scores.items() if model in USUAL})
    text = "\n\n".join([*parts, PICTURE, NOTE])
    print(text)
    write_section("slimmable", text)


def commands(chosen: Mapping[str, Any], runs: Mapping[str, Any]) -> list[str]:
    """What measures it all again."""
    seeds = 1 + max(int(name.rpartition("-")[2]) for name in runs)
    begin = "python benchmarks/slimmable.py"
    end = f"--data {chosen['data']} --images {chosen['images']} --epochs {chosen['epochs']} --seeds {seeds}"
    rest = [f"{begin} --models narrow --parts alone sandwich {end}"] if "narrow-alone-0" in runs else []
    return [f"{begin} {end}", *rest]


Scores = dict[str, dict[float, list[float]]]
"""Test accuracies in percent, by what was trained and by width, one for each seed."""


def scores_of(model: str, runs: Mapping[str, Any]) -> Scores:
    """What there is of one network."""
    found: Scores = {}
    for key, (_, kind) in SHOWN.items():
        part = key.partition(",")[0]
        seeds = [run["found"][kind] for name, run in runs.items() if name.startswith(f"{model}-{part}-")]
        if seeds:
            found[key] = {width: [100 * seed[f"{width}"] for seed in seeds] for width in WIDTHS}
    return found


def settings(chosen: Mapping[str, Any]) -> str:
    """How everything was trained."""
    plan = training(0, chosen["epochs"])
    return (
        f"Test accuracy in percent after {plan.epochs} epochs on {chosen['images']:,} images, mean and deviation over "
        f"seeds. All train alike: batches of {plan.batch_size}, {plan.optimizer} at {plan.lr:g} (cosine), weight decay "
        f"{plan.weight_decay:g}. A step of the sandwich is the widest, the narrowest and two random widths; a step of "
        "random widths is four; a step with switchable BatchNorms is all five. Statistics are found on 1,000 training "
        f"images. Distillation begins after {WARMUP:g} of the training. Nothing was chosen on the test data."
    )


def rows_of(scores: Scores, sizes: Mapping[str, Any]) -> str:
    """The table of one network."""
    rows = []
    for width in WIDTHS:
        macs, parameters = sizes["macs"][f"{width}"], sizes["parameters"][f"{width}"]
        row = [f"{width:g}", f"{macs / 1e6:.2f} M", f"{parameters / 1e3:.1f} k"]
        rows.append(row + [spread(found[width]) for found in scores.values()])
    return table(["width", "MACs", "parameters", *(SHOWN[key][0] for key in scores)], rows)


def spread(values: list[float]) -> str:
    """Mean and deviation."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def findings(scores: Scores) -> str:
    """What the table says about the claims, in numbers."""
    mean = {key: {width: statistics.mean(values) for width, values in found.items()} for key, found in scores.items()}
    steps = [high - low for low, high in itertools.pairwise(mean["sandwich"].values())]
    low, high = WIDTHS[0], WIDTHS[-1]
    lines = [f"From width to width the sandwich gains {', '.join(f'{step:+.2f}' for step in steps)} points."]
    if "random" in scores:
        ends = {
            width: [a - b for a, b in zip(scores["sandwich"][width], scores["random"][width], strict=True)]
            for width in (low, high)
        }
        gaps = "; ".join(f"{', '.join(f'{gap:+.2f}' for gap in gaps)} at {width:g}" for width, gaps in ends.items())
        lines.append(f"Sandwich less random widths, by seed: {gaps}.")
    for key in ("sandwich", "distilled", "switchable"):
        if key in mean:
            gaps = [f"{mean[key][width] - mean['alone'][width]:+.2f} at {width:g}" for width in WIDTHS]
            lines.append(f"{SHOWN[key][0][0].upper()}{SHOWN[key][0][1:]} less trained alone: {', '.join(gaps)}.")
    worth = mean["sandwich"][low] - mean["sandwich, whole"][low]
    lines.append(f"Statistics of its own are worth {worth:.1f} points at width {low:g}.")
    return "\n".join(f"- {line}" for line in lines)


def step_cost(model: str, runs: Mapping[str, Any]) -> list[str]:
    """The overhead of a step, as a median of ratios, where it was measured."""
    found = [run["found"] for key, run in runs.items() if key.startswith(f"{model}-overhead")]
    if not found:
        return []
    ratios = [shared / plain for run in found for shared, plain in run["times"]]
    low, median, high = statistics.quantiles(ratios, n=4)
    return [
        f"- A step of the sandwich takes {median:.3f} times the processor time of plain networks of the same four "
        f"widths (median of {len(ratios)} rounds in turn, quartiles {low:.3f} and {high:.3f})."
    ]


PICTURE = "![Test accuracy over the width](images/slimmable.svg)"
NOTE = """What holds for the CNN and the MobileNetV2: in the mean over the seeds the one set of weights comes at every
width within a point of a network trained alone at that width, or is above it; accuracy grows with the width; statistics
of its own decide what a narrow network is worth; a step costs what the plain networks cost. At the narrow end the
sandwich is better than random widths in every seed. At the whole width the two are equal within what seeds vary, and in
between random widths are the better ones, as the sandwich trains these widths less often. BatchNorms of their own, for
the widths of a list, are better than the sandwich at every width.

What it takes: enough channels, and enough steps. The narrow CNN has three eighths of the channels, and pays for
sharing; on another seed it did so after 60 epochs too (on 3,000 validation images -2.0 points at 0.25, -1.7 at 0.375
and -1.5 at 0.5, but -0.3 at 0.75 and +0.2 at 1). And after 5 epochs this CNN and a MobileNetV2 of half the channels
were 1.2 to 3.5 points below networks trained alone at most widths.

Distillation adds nothing here, where all widths see the labels of the same few images. Begun early it costs much: a CNN
of 16, 32 and 64 channels had, whole, 71.2 % on validation data with distillation after 0.2 of 6 epochs, 78.6 % after
0.5 and 80.3 % with labels only (6,000 images, batches of 128, one seed). The losses of a step are summed, as in the
paper: with their mean the same network had 77.0 % in place of 79.3 % (12,000 images, 5 epochs, distillation after 0.2).
Networks and epochs were chosen on validation data, with a seed that is not used here. Other work ran on the machine
during all this, so that the minutes say little; the ratios were taken in turn."""


def draw(scores: Mapping[str, Scores]) -> None:
    """Mean test accuracy over the width, a panel for each network."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(scores), figsize=(11, 4.2))
    for axes, (model, found) in zip(panels, scores.items(), strict=True):
        for key, by_width in found.items():
            if key != "sandwich, whole":
                means = [statistics.mean(values) for values in by_width.values()]
                axes.plot(WIDTHS, means, marker="o", markersize=4, linewidth=1.4, label=SHOWN[key][0])
        axes.set(xlabel="width", title=MODELS[model][0])
        axes.legend(fontsize=8, loc="lower right")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "slimmable.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
