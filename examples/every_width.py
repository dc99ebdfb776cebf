"""One set of weights that works at every width: take the width that the device can afford, as a plain network."""

from __future__ import annotations

import torch

import graphsurgery as gs
from graphsurgery.models import build
from graphsurgery.recipes.slimming.plan import SlimPlan


def main() -> None:
    """Train a slimmable network on digits, and deliver it at two widths."""
    data = gs.load_data("digits")
    torch.manual_seed(0)
    graph = gs.trace(build("paper/cnn?width=8"), torch.zeros(2, *data.input_shape))
    _, outcome = gs.train_slimmable(graph, data, SlimPlan(gs.TrainingPlan(epochs=6)))
    for width, row in zip(outcome.widths, outcome.rows, strict=True):
        print(f"width {width:4.0%}: {row.test['accuracy']:.1%} of the test images, {row.macs:,} multiply-accumulates")
    for width in (1.0, 0.5):
        gs.export_onnx(outcome.statistics.network(width, data), f"width-{width}.onnx")


if __name__ == "__main__":
    main()
