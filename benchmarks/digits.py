"""Merging on scikit-learn digits: five seeds, converged parents, equal total epochs.

    python benchmarks/digits.py

Every network is `paper/cnn?width=3`. Two parents of 60 epochs, 60 epochs of closing gates, 60 of fine-tuning, against
the better of the two parents and one network of 240 epochs. No early stopping: every number is that of the last epoch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from document import measured, table, write_section

from graphsurgery.recipes.demo import PLAN, SPEC
from graphsurgery.recipes.merge import default_plan, merge
from graphsurgery.recipes.outcome import Outcome
from graphsurgery.recipes.train import train
from graphsurgery.training.data import load_data
from graphsurgery.training.progress import SilentReporter

NOTE = f"""`{SPEC}`, {PLAN.epochs} epochs for each parent and each stage, last epochs throughout; the control is one
network trained for as many epochs as everything together. The better parent is chosen by test accuracy, in its favour.
The test set has 360 images, so one image is 0.28 points."""
ROWS = ("ensemble", "weight average", "gated", "cut", "recalibrated", "merged", "control")


def one_seed(seed: int) -> Outcome:
    """Two parents from their own seeds, merged."""
    data, silent = load_data("digits"), SilentReporter()
    plans = [replace(PLAN, seed=2 * seed + index) for index in (0, 1)]
    parents = [train(SPEC, data, plan, reporter=silent)[0] for plan in plans]
    return merge(parents, data, default_plan(parents, seed), reporter=silent).outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    began = time.perf_counter()
    scores: dict[str, list[float]] = {}
    for seed in range(seeds):
        outcome = one_seed(seed)
        found = {row.name: 100 * row.test["accuracy"] for row in outcome.rows}
        parents = [found["parent 1"], found["parent 2"]]
        found["parents, mean"], found["better parent"] = statistics.mean(parents), max(parents)
        for name, value in found.items():
            scores.setdefault(name, []).append(value)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    epochs = {row.name: row.epochs for row in outcome.rows}
    rows = []
    for name in ("parents, mean", "better parent", *ROWS):
        each = ", ".join(f"{value:.1f}" for value in scores[name])
        rows.append([name, f"{epochs.get(name, PLAN.epochs):.0f}", f"{statistics.mean(scores[name]):.2f} %", each])
    command = measured("python benchmarks/digits.py", time.perf_counter() - began, "scikit-learn")
    text = table(["network", "epochs", "test accuracy, mean", "by seed"], rows)
    print(text)
    write_section("digits", f"{command}\n\n{text}\n\n{NOTE}")


if __name__ == "__main__":
    main()
