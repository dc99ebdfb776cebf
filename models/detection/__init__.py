"""Torchvision's detectors: the tensor core that can be traced, and the way back into the detector."""

from graphsurgery.models.detection.detectors import DETECTORS, core, install

__all__ = [
    "DETECTORS",
    "core",
    "install",
]
