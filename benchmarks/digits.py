"""Merging on scikit-learn digits: ten seeds, converged parents, equal total epochs.

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
from graphsurgery.training.loop.progress import SilentReporter

NOTE = f"""`{SPEC}`, {PLAN.epochs} epochs for each parent and each stage, last epochs throughout; the control is one
network trained for as many epochs as everything together. The test set has 360 images, so one image is 0.28 points.
The plan was chosen on seeds 0 to 7; these are others. On seeds 0 to 4 (`--first-seed 0 --seeds 5`), seen by that
choice, the means were 97.94 % merged, 97.67 % the parent that was better in hindsight, 97.72 % the control."""
CHOSEN, HINDSIGHT = "parent chosen on validation", "better parent, in hindsight"
ROWS = ("ensemble", "weight average", "gated", "cut", "recalibrated", "merged", "control")


def one_seed(seed: int) -> Outcome:
    """Two parents from their own seeds, merged."""
    data, silent = load_data("digits"), SilentReporter()
    plans = [replace(PLAN, seed=2 * seed + index) for index in (0, 1)]
    parents = [train(SPEC, data, plan, reporter=silent)[0] for plan in plans]
    return merge(parents, data, default_plan(parents, seed), reporter=silent).outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=10, help="the plan was chosen on seeds 0 to 7")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    scores: dict[str, list[float]] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        outcome = one_seed(seed)
        found = {row.name: 100 * row.test["accuracy"] for row in outcome.rows}
        parents = [row for row in outcome.rows if row.name.startswith("parent")]
        found["parents, mean"] = 100 * statistics.mean(row.test["accuracy"] for row in parents)
        found[CHOSEN] = 100 * max(parents, key=lambda row: row.validation["accuracy"]).test["accuracy"]
        found[HINDSIGHT] = 100 * max(row.test["accuracy"] for row in parents)
        for name, value in found.items():
            scores.setdefault(name, []).append(value)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    epochs = {row.name: row.epochs for row in outcome.rows}
    rows = []
    for name in ("parents, mean", CHOSEN, HINDSIGHT, *ROWS):
        each = ", ".join(f"{value:.1f}" for value in scores[name])
        rows.append([name, f"{epochs.get(name, PLAN.epochs):.0f}", f"{statistics.mean(scores[name]):.2f} %", each])
    command = measured("python benchmarks/digits.py", time.perf_counter() - began, "scikit-learn")
    text = table(["network", "epochs", "test accuracy, mean", "by seed"], rows)
    print(text)
    write_section("digits", f"{command}\n\n{text}\n\n{NOTE}")


if __name__ == "__main__":
    main()
