"""Two trainings of one network become one network of the same size, and the table says against what it was measured."""

from __future__ import annotations

from dataclasses import replace

import graphsurgery as gs
from graphsurgery.recipes.merging.plan import default_plan


def main() -> None:
    """Train two small networks on scikit-learn's digits, and merge them."""
    data = gs.load_data("digits")
    plan = gs.TrainingPlan(epochs=8, keep_best=True)
    parents = [gs.train("paper/cnn?width=3", data, replace(plan, seed=seed)).graph for seed in (0, 1)]
    # All five controls are trained by default; this one costs the least.
    merging = replace(default_plan(parents), controls=("distilled",))
    merged, outcome = gs.merge(parents, data, merging)
    for row in outcome.rows:
        print(f"{row.name:24} {row.test['accuracy']:.1%} of the test images, {row.parameters} parameters")
    print(outcome.verdict)
    gs.save(merged, "merged.pt")


if __name__ == "__main__":
    main()
