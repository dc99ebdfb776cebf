"""Networks by name: model specs, and the small networks of the papers."""

from graphsurgery.models.specs import available, build, input_shape

__all__ = ["available", "build", "input_shape"]
