"""A small student learns what a larger teacher says, next to the same student that learns the labels."""

from __future__ import annotations

import torch

import graphsurgery as gs
from graphsurgery.models import build
from graphsurgery.recipes.mimicking.plan import MimicPlan


def main() -> None:
    """Train a teacher on digits, then a student with a sixth of its parameters on what it says."""
    data = gs.load_data("digits")
    teacher = gs.train("paper/cnn?width=8", data, gs.TrainingPlan(epochs=10, keep_best=True)).graph
    torch.manual_seed(0)
    student = gs.trace(build("paper/cnn?width=3"), torch.zeros(2, *data.input_shape))
    # Copies are shifted and noisy images without labels, which the teacher answers too.
    plan = MimicPlan(gs.TrainingPlan(epochs=10, keep_best=True), copies=1)
    student, outcome = gs.mimic(student, {"teacher": teacher.module}, data, plan)
    for row in outcome.rows:
        print(f"{row.name:24} {row.test['accuracy']:.1%} of the test images, {row.parameters} parameters")
    print(outcome.verdict)
    gs.save(student, "student.pt")


if __name__ == "__main__":
    main()
