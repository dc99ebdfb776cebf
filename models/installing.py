"""An edited network back in the class that it came from, whichever kind that is."""

from __future__ import annotations

from torch import nn

from graphsurgery.graph import ModelGraph
from graphsurgery.models.detection import detectors
from graphsurgery.surgery.installing import install as classes
from graphsurgery.tracing.trace import is_detector


def install(graph: ModelGraph, model: nn.Module) -> nn.Module:
    """A copy of a model, of its own class, that computes what an edited network computes; `model` is not modified.

    Tensors go to their places, layers get their sizes, and integers in attributes (`self.heads`, `self.config.width`)
    the values that the network has in the arguments which they end up in. Both are run on random inputs, in evaluation,
    at other sizes and in training with gradients, and a copy that differs is refused. A detector of torchvision runs
    the edited core in place of its own (`models.detection.install`).

    Args:
        graph: a network that was traced from this class (of a detector, from its `core`) and edited.
        model: an instance of the class with the sizes from before.

    Returns:
        The copy, in the modes of `model`. What the network does not read has the values of `model`.

    Raises:
        SurgeryError: the class cannot hold the edit; the message says what it lacks.
    """
    return detectors.install(graph, model) if is_detector(model) else classes.install(graph, model)
