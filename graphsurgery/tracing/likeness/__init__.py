"""A trace compared with its module: values, gradients and buffers, in both modes, and at other sizes of the inputs."""

from graphsurgery.tracing.likeness.comparing import Likeness
from graphsurgery.tracing.likeness.verdicts import UnlikeModuleError

__all__ = ["Likeness", "UnlikeModuleError"]
