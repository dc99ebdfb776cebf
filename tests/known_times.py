"""A runtime whose times are known: every weight takes a microsecond."""

from __future__ import annotations

import numpy as np

from graphsurgery.onnx.runtime.profiling import TimedOperator


def weights(model):
    """The elements of the weights of every operator that has some, by its name."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    return {node.name: sum(sizes.get(name, 0) for name in node.input) for node in model.graph.node}


def profile(models, *_, **__):
    return [{name: TimedOperator(float(n), str(n)) for name, n in weights(model).items()} for model in models]
