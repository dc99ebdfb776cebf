"""Does one set of weights do at every width what networks trained for one width do? On Fashion-MNIST.

    python benchmarks/slimmable.py
    python benchmarks/slimmable.py --write

A small CNN and a small MobileNetV2 are trained as slimmable networks, by the sandwich rule, by random widths and with
switchable BatchNorms, and alone at each width for as many epochs. Each part of each network and seed is a file in
`--results`, and is not measured twice; `--write` puts what is there into docs/benchmarks.md and
docs/images/slimmable.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from document import DOCS, measured, table, write_section
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops.misc import Conv2dNormActivation

from graphsurgery.cost import cost
from graphsurgery.graph import ModelGraph
from graphsurgery.initializing import reinitialized
from graphsurgery.recipes.slimmable import SlimPlan, Statistics, train_slimmable
from graphsurgery.recipes.train import fresh
from graphsurgery.slimming import Slimmable
from graphsurgery.training.data import Data, load_data
from graphsurgery.training.evaluation import evaluate
from graphsurgery.training.loop import fit
from graphsurgery.training.objectives import objective_for
from graphsurgery.training.plan import TrainingPlan
from graphsurgery.training.progress import SilentReporter
from graphsurgery.training.sandwich import Sandwich

INPUT_SHAPE = (1, 28, 28)
MODELS = {"cnn": ("CNN", f"{__file__}:cnn"), "mobilenet": ("MobileNetV2", f"{__file__}:mobilenet")}
WIDTHS = (0.25, 0.375, 0.5, 0.75, 1.0)
RATE = 0.1
SILENT = SilentReporter()


def cnn() -> nn.Module:
    """Three convolutions with BatchNorm, of 16, 32 and 64 channels; `[batch, 1, 28, 28]` to `[batch, 10]`."""
    return nn.Sequential(_layer(1, 16, 3, 2), _layer(16, 32, 3, 1), _layer(32, 64, 3, 2), *_head(64))


def mobilenet() -> nn.Module:
    """A MobileNetV2 of four blocks, of 16 to 32 channels between them; `[batch, 1, 28, 28]` to `[batch, 10]`."""
    return nn.Sequential(
        _layer(1, 16, 3, 2),
        InvertedResidual(16, 16, 1, 1),
        InvertedResidual(16, 24, 2, 3),
        InvertedResidual(24, 24, 1, 3),
        InvertedResidual(24, 32, 2, 3),
        _layer(32, 96, 1, 1),
        *_head(96),
    )


def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    return Conv2dNormActivation(inputs, outputs, kernel, stride, activation_layer=nn.ReLU6)


def _head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)


def training(seed: int, epochs: int) -> TrainingPlan:
    """How every network is trained."""
    return TrainingPlan(epochs, 128, lr=RATE, weight_decay=1e-4, warmup=0.5, seed=seed, device="cpu")


def slimmed(spec: str, data: Data, seed: int, epochs: int, **options: Any) -> dict[str, Any]:
    """The accuracies of a slimmable network by width: with statistics of its own, and with those of the whole network.

    Accuracies are pairs: on validation data, on test data.
    """
    plan = SlimPlan(training(seed, epochs), **options)
    slimmable, _ = train_slimmable(fresh(spec, data, seed), data, plan, reporter=SILENT)
    known = Statistics(slimmable)
    found = {"own": {f"{width}": accuracies(known.network(width, data), data) for width in WIDTHS}}
    if not slimmable.switchable:
        found["whole"] = {f"{width}": accuracies(slimmable.extract(width), data) for width in WIDTHS}
    return found


def alone(spec: str, data: Data, seed: int, epochs: int) -> dict[str, Any]:
    """Networks that are trained at one width only, from scratch; with their sizes."""
    slimmable = Slimmable(fresh(spec, data, seed))
    found: dict[str, Any] = {"own": {}, "macs": {}, "parameters": {}}
    for width in WIDTHS:
        graph = reinitialized(slimmable.extract(width), seed)
        fit(graph.module, data.train, training(seed, epochs), objective=objective_for(data), reporter=SILENT)
        found["own"][f"{width}"] = accuracies(graph, data)
        found["macs"][f"{width}"], found["parameters"][f"{width}"] = cost(graph).macs, cost(graph).parameters
    return found


def accuracies(graph: ModelGraph, data: Data) -> tuple[float, float]:
    """On validation and on test data."""
    objective = objective_for(data)
    validation, test = (evaluate(graph.module, part, objective)["accuracy"] for part in (data.validation, data.test))
    return validation, test


def overhead(spec: str, data: Data, seed: int, _: int, rounds: int = 40) -> dict[str, Any]:
    """Processor seconds of the loss and the gradients of four widths: of one slimmable network, and of four plain ones.

    In turn, on the same batch and at the same widths.
    """
    graph = fresh(spec, data, seed)
    graph.module.train()
    slimmable, task = Slimmable(graph), objective_for(data)
    sandwich = Sandwich(slimmable, task, distil=False)
    x = torch.stack([data.train[i][0] for i in range(128)])
    batch = (x, torch.tensor([int(data.train[i][1]) for i in range(128)]))
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
    "sandwich": slimmed,
    "random": lambda *run: slimmed(*run, rule="random"),
    "labels": lambda *run: slimmed(*run, distil=False),
    "switchable": lambda *run: slimmed(*run, switchable=WIDTHS),
    "overhead": overhead,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=12000, help="of the training set")
    parser.add_argument("--epochs", type=int, default=6, help="of every network")
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
    for seed in range(options.seeds):
        for model, (_, spec) in MODELS.items():
            for part, run in PARTS.items():
                file = options.results / f"{model}-{part}-{seed}.json"
                if file.exists():
                    continue
                began = time.perf_counter()
                found = run(spec, data, seed, options.epochs)
                settings = {key: getattr(options, key) for key in ("data", "images", "epochs")}
                content = {"found": found, "settings": settings, "seconds": time.perf_counter() - began}
                file.write_text(json.dumps(content) + "\n")
                print(f"{file.name}: {content['seconds']:.0f} s", flush=True)
