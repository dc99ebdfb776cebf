"""What is trained for: tasks, gates, teachers, several widths, and masks that are learned."""

from graphsurgery.training.objectives.tasks import CrossEntropy, MeanSquaredError, Objective, objective_for

__all__ = [
    "CrossEntropy",
    "MeanSquaredError",
    "Objective",
    "objective_for",
]
